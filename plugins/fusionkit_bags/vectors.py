"""Bags of vectors: one .npy or .safetensors file (k, width) per sample."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionkit import Cells, ColumnSpec, Cut, DataError, InputSpec, IntegrityError, RecipeError, load_weights
from fusionkit_bags import VectorBagConfig
from fusionkit_bags.bag_input import VERSION, BagInput, bag_key
from fusionkit_bags.pooling import Pooling

Vectors = NDArray[np.float32]


class VectorBagInput(BagInput):
    """Reads one column of files; an item is a tensor (k, width)."""

    def __init__(self, config: VectorBagConfig, columns: Mapping[str, ColumnSpec]) -> None:
        if len(columns) != 1:
            given = ", ".join(columns) or "none"
            raise RecipeError(f"columns: a bag is read from one column (given: {given}). Name it.")
        super().__init__(tuple(columns), config)
        self.config = config

    def identity(self) -> Mapping[str, Any]:
        """Returns all that changes an item."""
        return {"input": "vector_bag", "version": VERSION, "max_tiles": self.max_tiles}

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of all vectors, or None where there is none."""
        cell = cells[self.columns[0]]
        return None if cell is None else bag_key(_digests(self._read(Path(cell))))

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Reads the file once and returns the tiles taken for each cut."""
        vectors = self._read(Path(cells[self.columns[0]] or ""))
        digests = _digests(vectors)
        return [torch.from_numpy(vectors[self.choose(digests, cut.seed)]) for cut in cuts]

    def _read(self, path: Path) -> Vectors:
        values = _read_array(path, self.config.tensor)
        is_bag = values.dtype.kind in "fiu" and values.ndim == 2
        if not is_bag or (len(values) and values.shape[1] != self.config.width):
            raise DataError(
                f"{path}: {values.shape} {values.dtype} is there, and (k, {self.config.width}) numbers are "
                "due. Mend the file, or set `width`."
            )
        vectors = np.asarray(values, dtype=np.float32)
        if not np.isfinite(vectors).all():
            tile = int((~np.isfinite(vectors)).any(1).argmax())
            raise DataError(f"{path}: tile {tile} has a value that is not finite. Mend what computed it.")
        return vectors


def _read_array(path: Path, tensor: str) -> NDArray[Any]:
    if path.suffix == ".npy":
        if tensor:
            raise DataError(f"{path}: a .npy file has no tensor of a name ('{tensor}'). Leave `tensor` out.")
        try:
            # a map reads only what is there, whatever the header claims; Python objects are refused
            return np.lib.format.open_memmap(path, mode="r")
        except (OSError, ValueError, OverflowError, SyntaxError) as error:
            raise DataError(f"{path}: not a .npy file of numbers ({error}). Save it again.") from None
    try:
        tensors = load_weights(path)
    except IntegrityError as error:
        raise DataError(str(error)) from None
    names = [tensor] if tensor else list(tensors)
    if len(names) != 1 or names[0] not in tensors:
        known = ", ".join(sorted(tensors)[:5]) or "none"
        raise DataError(
            f"{path}: which tensor is meant is not clear (there: {known}). Set the option `tensor`."
        )
    found: NDArray[Any] = tensors[names[0]].float().numpy()
    return found


def _digests(vectors: Vectors) -> list[bytes]:
    return [hashlib.blake2b(vector.tobytes(), digest_size=16).digest() for vector in vectors]


class VectorBag(nn.Module):
    """Pools a bag of vectors.

    Shape:
        tiles (n, k, width), mask (n, k) -> (n, output_dim)
    """

    def __init__(self, config: VectorBagConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.input_spec: InputSpec = VectorBagInput(config, columns)
        self.output_dim = config.embed or config.width
        self.embed = nn.Linear(config.width, config.embed) if config.embed else None
        self.pooling = Pooling(config.pooling, self.output_dim, config.hidden)
        self.token_dim, self.n_tokens = self.output_dim, config.max_tiles or 0

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        pooled: Tensor = self.pooling(*self.tokens(inputs))
        return pooled

    def tokens(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the tiles' vectors, (n, k, token_dim), and which are there, (n, k)."""
        tiles = inputs["tiles"] if self.embed is None else self.embed(inputs["tiles"]).relu()
        return tiles, inputs["mask"]
