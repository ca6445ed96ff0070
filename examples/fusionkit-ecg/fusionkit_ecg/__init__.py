"""An encoder of electrocardiograms: its card. What is heavy is imported inside a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from fusionkit import Cells, ColumnSpec, ComponentConfig, Encoder, EncoderSpec, hookimpl


class EcgConfig(ComponentConfig):
    """Options of ecg."""

    leads: int = Field(12, ge=1, le=64)
    """How many leads a file has; 12 are the usual ones."""
    length: int = Field(1000, ge=64, le=100_000)
    """How many steps the encoder sees: a longer recording is cut, a shorter one filled up with zeros.
    1000 are ten seconds at 100 Hz."""
    width: int = Field(32, ge=1, le=1024)
    """How many channels the last layer has; twice as many features come out. Ours."""


def _build(config: EcgConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_ecg.network import EcgEncoder

    return EcgEncoder(config, columns)


def _example_files(config: EcgConfig, folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    """Writes six small recordings and returns their column and rows, for `fusionkit check`."""
    import numpy as np

    rows: list[Cells] = []
    for number in range(6):
        path = folder / f"{number}.npy"
        steps = np.arange(config.length // 2 + 20 * number)[:, None]
        np.save(path, np.sin(steps / (1 + number + np.arange(config.leads))))
        rows.append({"ecg": path})
    return {"ecg": ColumnSpec(kind="file")}, rows


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card."""
    return [
        EncoderSpec(
            name="ecg",
            summary="Convolutions over the leads of an electrocardiogram; mean and maximum over time.",
            source="ours",
            config=EcgConfig,
            examples=(EcgConfig(leads=2, length=64, width=4), EcgConfig(leads=1, length=128, width=8)),
            build=_build,
            reads=("file",),
            example_files=_example_files,
        )
    ]
