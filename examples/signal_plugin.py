"""A second plugin: 1-D signals in .npy files, with an InputSpec of its own and a small encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from fusionkit import (
    Cells,
    ColumnSpec,
    ComponentConfig,
    Cut,
    DataError,
    Encoder,
    EncoderSpec,
    InputSpec,
    RecipeError,
    hookimpl,
)

if TYPE_CHECKING:
    from torch import Tensor


class SignalConfig(ComponentConfig):
    """Options of conv_signal."""

    length: int = Field(256, ge=16)
    """How many values the encoder sees: a longer signal is cut, a shorter one filled up with zeros."""
    width: int = Field(16, ge=1)
    """How many features; ours."""


class SignalInput:
    """Reads one column of .npy files; an item is an array (length,), a batch a tensor (n, 1, length)."""

    def __init__(self, config: SignalConfig, columns: Mapping[str, ColumnSpec]) -> None:
        if len(columns) != 1:
            given = ", ".join(columns) or "none"
            raise RecipeError(f"columns: a signal is read from one column (given: {given}). Name it.")
        self.columns = tuple(columns)
        self.draws = 1
        self.length = config.length

    def identity(self) -> Mapping[str, Any]:
        """Returns what changes an item."""
        return {"input": "signal", "version": 1, "length": self.length}

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns the one view."""
        return ("whole",)

    def is_random(self, *, training: bool) -> bool:
        """Says that no view is random."""
        return False

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of the file, or None where the row has no signal."""
        cell = cells[self.columns[0]]
        return None if cell is None else hashlib.sha256(Path(cell).read_bytes()).digest()

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Reads the file once and returns one array per cut."""
        import numpy as np
        from numpy.lib.format import read_array  # reads .npy and nothing else

        path = Path(cells[self.columns[0]] or "")
        try:
            with path.open("rb") as file:
                values = read_array(file, allow_pickle=False).astype(np.float32)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not a .npy file of numbers ({error}). Save it again.") from None
        if values.ndim != 1 or not np.isfinite(values).all():
            raise DataError(
                f"{path}: not a signal (shape: {values.shape}). One finite value per step is read."
            )
        signal = np.zeros(self.length, dtype=np.float32)
        signal[: len(values)] = values[: self.length]
        return [signal for _ in cuts]

    def collate(self, items: Sequence[Any]) -> Tensor:
        """Stacks arrays into (n, 1, length), float32."""
        import numpy as np
        import torch

        return torch.from_numpy(np.stack(items)).unsqueeze(1)


def _build(config: SignalConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from torch import nn

    class ConvSignal(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_spec: InputSpec = SignalInput(config, columns)
            self.output_dim = config.width
            self.layers = nn.Sequential(
                *(nn.Conv1d(1, config.width, 7, stride=2, padding=3), nn.ReLU()),
                *(nn.Conv1d(config.width, config.width, 7, stride=2, padding=3), nn.ReLU()),
            )

        def forward(self, inputs: Tensor) -> Tensor:
            features: Tensor = self.layers(inputs)
            return features.mean(2)

    return ConvSignal()


def _samples(config: SignalConfig, folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    """Writes six signals, for the conformance kit."""
    import numpy as np

    rows: list[Cells] = []
    for number in range(6):
        path = folder / f"{number}.npy"
        np.save(path, np.sin(np.arange(20 + 10 * number) / (1 + number)))
        rows.append({"signal": path})
    return {"signal": ColumnSpec(kind="file")}, rows


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card."""
    return [
        EncoderSpec(
            name="conv_signal",
            summary="Two convolutions over a 1-D signal, averaged over time.",
            source="ours",
            config=SignalConfig,
            examples=(SignalConfig(length=32, width=4),),
            build=_build,
            reads=("file",),
            samples=_samples,
        )
    ]
