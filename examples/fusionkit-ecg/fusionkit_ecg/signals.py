"""How a cell becomes an array, and arrays a batch: the input spec."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fusionkit import Cells, ColumnSpec, Cut, DataError, RecipeError

if TYPE_CHECKING:
    from torch import Tensor


def read(path: Path, leads: int, length: int) -> np.ndarray[Any, Any]:
    """Returns a recording, float32, of shape (leads, length); each lead has median 0 and deviation 1.

    Raises:
        DataError: It is not a .npy file of finite numbers, one row a step and one column a lead.
    """
    from numpy.lib.format import read_array  # reads .npy and nothing else

    try:
        with path.open("rb") as file:
            values = read_array(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a .npy file of numbers ({error}). Save it again.") from None
    if values.dtype.kind not in "iuf":  # a complex number or a truth value is no measurement
        raise DataError(f"{path}: not real numbers (dtype: {values.dtype}). Save integers or floats.")
    values = values.astype(np.float32)
    if values.ndim != 2 or values.shape[1] != leads or not len(values) or not np.isfinite(values).all():
        raise DataError(
            f"{path}: not an electrocardiogram of {leads} leads (shape: {values.shape}). "
            "Finite values are read, a row for each step, a column for each lead."
        )
    centred = values[:length] - np.median(values[:length], 0)
    recording = np.zeros((leads, length), dtype=np.float32)
    recording[:, : len(centred)] = (centred / (centred.std(0) + 1e-6)).T
    return recording


class EcgInput:
    """Reads one column of files; an item is an array (leads, length), a batch a tensor (n, leads, length)."""

    def __init__(self, leads: int, length: int, columns: Mapping[str, ColumnSpec]) -> None:
        if len(columns) != 1:
            given = ", ".join(columns) or "none"
            raise RecipeError(f"columns: ecg reads one column (given: {given}). Name it.")
        self.columns = tuple(columns)
        self.draws = 1
        self.leads, self.length = leads, length

    def identity(self) -> Mapping[str, Any]:
        """Returns all that changes what `read` gives; stored features are known by it."""
        return {"input": "ecg", "version": 1, "leads": self.leads, "length": self.length}

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns the one view of a recording."""
        return ("whole",)

    def is_random(self, *, training: bool) -> bool:
        """Says that no view is drawn at random."""
        return False

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of the file, or None where the row has none."""
        cell = cells[self.columns[0]]
        return None if cell is None else hashlib.sha256(Path(cell).read_bytes()).digest()

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Reads the file once and returns one array per cut."""
        recording = read(Path(cells[self.columns[0]] or ""), self.leads, self.length)
        return [recording for _ in cuts]

    def collate(self, items: Sequence[Any]) -> Tensor:
        """Stacks arrays into (n, leads, length), float32."""
        import torch

        return torch.from_numpy(np.stack(items))
