"""The encoder of vectors; nothing is learned: they are features already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fusionkit import Cells, ColumnSpec, Cut, DataError, InputSpec, RecipeError
from fusionkit_vectors import VectorsConfig
from fusionkit_vectors.files import Array, Table, open_table, read_vector

VERSION = 1
"""Part of every address: raised when the same file would give another vector."""


class VectorsInput:
    """Reads one column; an item is an array (width,), a batch a tensor (n, width)."""

    def __init__(self, config: VectorsConfig, columns: Mapping[str, ColumnSpec]) -> None:
        kind, what = ("file", "files") if config.table == "none" else ("text", "ids")
        if [spec.kind for spec in columns.values()] != [kind]:
            given = ", ".join(f"{name} is {spec.kind}" for name, spec in columns.items()) or "none"
            raise RecipeError(
                f"columns: vectors are found by one column of {what} (given: {given}). "
                f"Name one of kind {kind}."
            )
        self.columns = tuple(columns)
        self.draws = 1
        self.config = config
        self.width = _width_of(config)

    def identity(self) -> Mapping[str, Any]:
        """Returns what changes a vector beside its content."""
        return {"input": "vectors", "version": VERSION, "width": self.width}

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns the one view."""
        return ("whole",)

    def is_random(self, *, training: bool) -> bool:
        """Says that no view is random."""
        return False

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of the vector, or None where the row has none."""
        vector = self._read(cells)
        return None if vector is None else hashlib.sha256(vector.tobytes()).digest()

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Reads the vector once and returns it for each cut."""
        vector = self._read(cells)
        return [vector for _ in cuts]

    def collate(self, items: Sequence[Any]) -> Tensor:
        """Stacks arrays into (n, width), float32."""
        return torch.from_numpy(np.stack(items))

    def _read(self, cells: Cells) -> Array | None:
        """Returns a row's vector (width,), or None where it has none; raises DataError."""
        cell = cells[self.columns[0]]
        if cell is None:
            return None
        if isinstance(cell, Path):
            where, vector = str(cell), read_vector(cell, self.config.tensor)
        else:
            where, table = f"{self.config.table}: {cell}", _table_of(self.config)
            place = table.places.get(cell)
            if place is None and self.config.unknown == "absent":
                return None
            if place is None:
                raise DataError(
                    f"{self.config.table}: there is no vector of that id ({cell}). Add it, leave the cell "
                    "empty, or set `unknown: absent`."
                )
            vector = table.values[place]
        return self._checked(where, vector)

    def _checked(self, where: str, vector: Array) -> Array | None:
        if vector.shape != (self.width,):
            raise DataError(
                f"{where}: {len(vector)} numbers are there, and {self.width} are due. Set `width`, or "
                "compute all vectors in one way."
            )
        if np.isinf(vector).any():
            place = int(np.isinf(vector).argmax())
            raise DataError(f"{where}: number {place} is infinite. Mend what computed it.")
        is_missing = np.isnan(vector)
        if is_missing.any() and self.config.missing == "refuse":
            raise DataError(
                f"{where}: number {int(is_missing.argmax())} is NaN. Mend it, or set `missing: keep`."
            )
        return None if is_missing.all() else vector


def _table_of(config: VectorsConfig) -> Table:
    return open_table(Path(config.table), config.key)


def _width_of(config: VectorsConfig) -> int:
    if config.table == "none":
        if config.width is None:
            raise RecipeError(
                "width: where each row has a file, it has to be known before any is read. Set it."
            )
        return config.width
    width = int(_table_of(config).values.shape[1])
    if config.width not in (None, width):
        raise DataError(
            f"{config.table}: {width} numbers a row are there, and {config.width} are due (`width`)."
        )
    return width


class Vectors(nn.Module):
    """Hands vectors on as they are.

    Shape:
        (n, output_dim) -> (n, output_dim); NaN only where `missing` is `keep`.
    """

    def __init__(self, config: VectorsConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        spec = VectorsInput(config, columns)
        self.input_spec: InputSpec = spec
        self.output_dim = spec.width

    def forward(self, vectors: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        return vectors
