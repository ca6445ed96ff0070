"""How a cell becomes an array, and arrays a batch: the input spec. Change `read`, and perhaps `collate`."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionkit import Cells, ColumnSpec, Cut, DataError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor


def read(path: Path, length: int) -> np.ndarray[Any, Any]:
    """Returns a file's signal, float32, of shape (length,); raises DataError for anything else."""
    # yours: how your files are read; whatever cannot be read must raise DataError
    from numpy.lib.format import read_array  # reads .npy and nothing else

    try:
        with path.open("rb") as file:
            values = read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a .npy file of numbers ({error}). Save it again.") from None
    if values.dtype.kind not in "iuf":  # a complex number or a truth value is no measurement
        raise DataError(f"{path}: not real numbers (dtype: {values.dtype}). Save integers or floats.")
    values = values.astype(np.float32)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise DataError(
            f"{path}: not a signal (shape: {values.shape}). One finite value a step is due, at least one."
        )
    signal = np.zeros(length, dtype=np.float32)
    signal[: len(values)] = values[:length]
    return signal


class SignalInput:
    """Reads one column of files; an item is an array (length,), a batch a tensor (n, 1, length)."""

    # yours: this docstring and collate's say the shapes
    def __init__(self, length: int, columns: Mapping[str, ColumnSpec]) -> None:
        if len(columns) != 1:
            given = ", ".join(columns) or "none"
            raise RecipeError(f"columns: my_encoder reads one column (given: {given}). Name it.")
        self.columns = tuple(columns)
        self.draws = 1
        self.length = length

    def identity(self) -> Mapping[str, Any]:
        """Returns all that changes what `read` gives; stored features are known by it."""
        return {
            "input": "my_encoder",
            # yours: raise it in a released package when `read` gives something else; with -p and after
            # `pip install -e` a hash of these files is part of what features are known by
            "version": 1,
            "length": self.length,  # yours: say all options of `read`
        }

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns the names of the views of one file: here one."""
        return ("whole",)

    def is_random(self, *, training: bool) -> bool:
        """Says whether a view is drawn at random: here never."""
        return False

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of the file, or None where the row has none."""
        cell = cells[self.columns[0]]
        return None if cell is None else hashlib.sha256(Path(cell).read_bytes()).digest()

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Reads the file once and returns one array per cut."""
        signal = read(Path(cells[self.columns[0]] or ""), self.length)
        return [signal for _ in cuts]

    def collate(self, items: Sequence[Any]) -> Tensor:
        """Stacks arrays into (n, 1, length), float32."""
        import torch

        # yours, where lengths differ: pad, and hand over a mask (docs/plugins.md: rows of several lengths)
        return torch.from_numpy(np.stack(items)).unsqueeze(1)
