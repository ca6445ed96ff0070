"""An encoder of 1-D signals in .npy files: its card. What is heavy is imported inside a function.

Three places are to change, each marked by a comment: the options and the card here, how a file becomes an
array (and arrays a batch, where lengths differ) in signals.py, and the network in network.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from fusionkit import Cells, ColumnSpec, ComponentConfig, Encoder, EncoderSpec, hookimpl


class MyEncoderConfig(ComponentConfig):
    """Options of my_encoder."""

    # yours: what a recipe may set, each with a default, bounds, and where its number is from
    length: int = Field(256, ge=16, le=100_000)
    """How many values the encoder sees: a longer signal is cut, a shorter one filled up with zeros."""
    width: int = Field(16, ge=1, le=4096)
    """How many features; ours."""


def _build(config: MyEncoderConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_my_encoder.network import MyEncoder

    return MyEncoder(config, columns)


def _example_files(config: MyEncoderConfig, folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    """Writes six small files and returns their column and rows, for `fusionkit check`."""
    import numpy as np

    rows: list[Cells] = []
    for number in range(6):
        path = folder / f"{number}.npy"
        np.save(path, np.sin(np.arange(20 + 10 * number) / (1 + number)))  # yours: files like your own
        rows.append({"signal": path})
    return {"signal": ColumnSpec(kind="file")}, rows


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card."""
    return [
        EncoderSpec(
            name="my_encoder",
            summary="Two convolutions over a 1-D signal, averaged over time.",  # yours
            source="ours",  # yours: the paper or page that it follows
            config=MyEncoderConfig,
            examples=(MyEncoderConfig(length=32, width=4),),  # yours: small, so that the checks are quick
            build=_build,
            reads=("file",),
            example_files=_example_files,
            # yours, perhaps: gives_tokens=lambda config: True (docs/plugins.md, Tokens)
        )
    ]
