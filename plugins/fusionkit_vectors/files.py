"""Reads vectors from .npy, .safetensors, CSV and Parquet files; no pickle is ever opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit import DataError, IntegrityError, load_weights, read_table

Array = NDArray[Any]


def read_vector(path: Path, tensor: str) -> Array:
    """Returns a row's vector (d,); raises DataError that names the file."""
    if path.suffix == ".npy":
        if tensor:
            raise DataError(f"{path}: a .npy file has no tensor of a name ('{tensor}'). Leave `tensor` out.")
        values = np.asarray(_open_npy(path))
    elif path.suffix == ".safetensors":
        values = _pick(path, _read_safetensors(path), tensor)
    else:
        raise DataError(f"{path}: not a file of a vector. Only .npy and .safetensors are read.")
    values = values[0] if values.ndim == 2 and len(values) == 1 else values
    return _as_vectors(path, values, n_axes=1)


@dataclass(frozen=True)
class Table:
    """A cohort's vectors: (n, d) float32, and at which of them each id is."""

    values: Array
    places: Mapping[str, int]


def open_table(path: Path, key: str) -> Table:
    """Returns a cohort's table, read once until it changes; raises DataError that names file and id."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: the table cannot be read ({error.strerror}). Check its name.") from None
    return _open_table(path, key, (status.st_ino, status.st_mtime_ns, status.st_size))


@lru_cache(4)
def _open_table(path: Path, key: str, mark: tuple[int, ...]) -> Table:
    if path.suffix == ".npy":
        ids, values = _split_npy(path, key)
    elif path.suffix == ".safetensors":
        ids, values = _stack(path, _read_safetensors(path))
    else:
        ids, values = _split_text(path, key)
    values = _as_vectors(path, values, n_axes=2)
    places = {name: place for place, name in enumerate(ids)}
    if len(places) < len(ids):
        twice = next(name for place, name in enumerate(ids) if places[name] != place)
        raise DataError(f"{path}: an id is there twice ({twice}). Leave one out.")
    return Table(values, places)


def _as_vectors(path: Path, values: Array, *, n_axes: int) -> Array:
    """Returns values as float32; raises DataError where they are no numbers, or of another shape."""
    if values.dtype.kind not in "fiub" or values.ndim != n_axes or not values.size:
        due = "one vector, (d,)" if n_axes == 1 else "(n, d)"
        raise DataError(f"{path}: {values.shape} {values.dtype} is there, and {due} numbers are due.")
    with np.errstate(over="ignore"):  # what is too large is infinite, which is refused by name
        return values.astype(np.float32)


def _open_npy(path: Path) -> Array:
    try:
        # a map reads only what is there, whatever the header claims; Python objects are refused
        return np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, OverflowError, SyntaxError) as error:
        raise DataError(f"{path}: not a .npy file of numbers ({error}). Save it again, as numbers.") from None


def _read_safetensors(path: Path) -> dict[str, Array]:
    try:
        tensors = load_weights(path)
    except IntegrityError as error:
        raise DataError(str(error)) from None
    return {name: tensor.double().numpy() for name, tensor in tensors.items()}


def _pick(path: Path, tensors: Mapping[str, Array], tensor: str) -> Array:
    if tensor in tensors:
        return tensors[tensor]
    if tensor or len(tensors) != 1:
        known = ", ".join(sorted(tensors)[:5]) or "none"
        asked = f"no tensor '{tensor}'" if tensor else f"{len(tensors)} tensors, not one"
        raise DataError(f"{path}: {asked} (there: {known}). Set the option `tensor`.")
    return next(iter(tensors.values()))


def _split_npy(path: Path, key: str) -> tuple[list[str], Array]:
    """Returns ids and values of a structured array with two fields: ids, and (d,) numbers."""
    table = _open_npy(path)
    others = [name for name in table.dtype.names or () if name != key]
    if table.ndim != 1 or table.dtype.names is None or len(others) != 1 or key not in table.dtype.names:
        raise DataError(
            f"{path}: {table.dtype} is there, and two fields are due: '{key}' with the ids, and one of the "
            "vectors. Save a structured array, or Parquet."
        )
    ids = table[key]
    if ids.dtype.kind not in "USiu":
        raise DataError(f"{path}: the ids are {ids.dtype}. Save texts or whole numbers.")
    texts = [name.decode("utf-8", "replace") if isinstance(name, bytes) else str(name) for name in ids]
    return texts, table[others[0]]


def _stack(path: Path, tensors: Mapping[str, Array]) -> tuple[list[str], Array]:
    shapes = {tensor.shape: name for name, tensor in tensors.items()}
    if len(shapes) > 1:
        (one, name), (other, another) = list(shapes.items())[:2]
        raise DataError(f"{path}: {name} is {one}, and {another} is {other}. All must have one width.")
    if not tensors:
        raise DataError(f"{path}: there is no tensor in it. Save one per id.")
    return list(tensors), np.stack(list(tensors.values()))


def _split_text(path: Path, key: str) -> tuple[list[str], Array]:
    """Returns ids and values of a table of texts: every other column is one number of the vector."""
    import polars as pl

    table = read_table(path)
    if key not in table.columns:
        raise DataError(f"{path}: there is no column '{key}'. Set the option `key`.")
    ids = table[key].to_list()
    if None in ids:
        raise DataError(f"{path}: {key}: an id is missing (row {ids.index(None) + 1}). Fill it in.")
    texts = table.drop(key)
    numbers = texts.with_columns(pl.all().cast(pl.Float64, strict=False))
    for name in texts.columns:
        lost = texts[name].is_not_null() & numbers[name].is_null()
        if lost.any():
            row = int(lost.arg_true()[0])
            raise DataError(
                f"{path}: {ids[row]}: {name}: not a number ({texts[name][row]}). Every column but "
                f"'{key}' is one number of the vector; leave others out."
            )
    return ids, numbers.fill_null(float("nan")).to_numpy()
