"""Features of frozen prefixes: computed once per row, kept in the store, read row by row."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from fusionkit.data.batches import KEY_BYTES, ModalityReader, Units, read_ahead
from fusionkit.data.threads import prefetch
from fusionkit.errors import IntegrityError, PluginError
from fusionkit.store import Store, address_of

FLUSH_SECONDS = 5.0
FLUSH_BYTES = 1 << 24
SORTED = np.dtype(f"S{KEY_BYTES}")
"""How keys are compared; numpy does not sort its void type."""
BATCH = 32
"""Rows that an encoder sees at once, the last one repeated where fewer are left.

CPUs sum otherwise in batches of another size: measured, a linear layer in bf16 on AMX gives other digits in
every size, VGG16 in fp32 without AMX below 8. In batches of one size a row is the same wherever it stands, so
that what was missing, which depends on who came first, does not change it.
"""


class FeatureTable:
    """The stored features of one frozen prefix: `features/<prefix>/<own sha256>.safetensors`.

    Args:
        store: Where they are.
        prefix: Address of what computed them.
    """

    def __init__(self, store: Store, prefix: str) -> None:
        self.store = store
        self.folder = Path("features") / prefix
        # sorted keys, and where each one's values are: the number of the file, and the row in it
        self._keys = np.zeros(0, dtype=SORTED)
        self._places = np.zeros((0, 2), dtype=np.int32)
        self._files: list[_FeatureFile] = []
        self._known: set[str] = set()
        self._buffer: list[tuple[NDArray[np.void], Tensor]] = []
        self._n_buffered = 0
        self._flushed = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """Reads files that other processes have added."""
        folder = self.store.path(str(self.folder))
        found = sorted(folder.glob("*.safetensors")) if folder.exists() else []
        self._add_files(
            path
            for path in found
            if path.name not in self._known and self.store.verify(str(self.folder / path.name))
        )

    def _add_files(self, paths: Iterable[Path]) -> None:
        keys, places = [self._keys], [self._places]
        for path in paths:
            self._known.add(path.name)
            file = _FeatureFile(path)
            rows = np.arange(len(file.keys), dtype=np.int32)
            keys.append(file.keys)
            places.append(np.stack([np.full_like(rows, len(self._files)), rows], 1))
            self._files.append(file)
        if len(keys) == 1:
            return
        every = np.concatenate(keys)
        order = np.argsort(every, kind="stable")
        self._keys, self._places = every[order], np.concatenate(places)[order]

    def _find(self, keys: NDArray[np.void]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Returns the index of each key among the sorted ones, and whether it is there."""
        index = np.searchsorted(self._keys, keys.view(SORTED))
        if not len(self._keys):
            return index, np.zeros(len(keys), dtype=bool)
        index = np.minimum(index, len(self._keys) - 1)
        return index, self._keys[index] == keys.view(SORTED)

    def missing(self, keys: NDArray[np.void]) -> NDArray[np.int64]:
        """Returns the indices of keys that are not stored, each distinct key once."""
        absent = np.flatnonzero(~self._find(keys)[1])
        _, first = np.unique(keys[absent].view(SORTED), return_index=True)
        return absent[np.sort(first)]

    def add(self, keys: NDArray[np.void], values: Tensor) -> None:
        """Adds rows; they reach the disk every few seconds."""
        self._buffer.append((keys, values))
        self._n_buffered += values.nbytes
        if time.monotonic() - self._flushed > FLUSH_SECONDS or self._n_buffered > FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        """Writes what was added as one more file."""
        if self._buffer:
            keys = np.concatenate([keys for keys, _ in self._buffer]).view(np.uint8).reshape(-1, KEY_BYTES)
            values = torch.cat([values for _, values in self._buffer]).float().cpu().contiguous()
            data = save({"keys": torch.from_numpy(keys), "values": values})
            name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
            self.store.put(str(self.folder / name), data)
            self._buffer.clear()
            self._n_buffered = 0
            self._add_files([self.store.path(str(self.folder / name))])
        self._flushed = time.monotonic()

    def gather(self, keys: NDArray[np.void]) -> Tensor:
        """Returns (n, d) for keys that are all stored, at least one."""
        index, is_there = self._find(keys)
        if not is_there.all():
            raise KeyError(
                f"{int((~is_there).sum())} of {len(keys)} features are not stored in {self.folder}"
            )
        files, rows = self._places[index].T
        out = np.empty((len(keys), self._files[files[0]].dim), dtype=np.float32)
        for number in np.unique(files):
            here = np.flatnonzero(files == number)
            self._files[number].read(rows[here], out, here)
        return torch.from_numpy(out)


class _FeatureFile:
    """One file of features: its keys are read at once, its values row by row when they are asked for.

    Not through a memory map: the system maps far more than the rows asked for, and all of it counts as ours.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            self._start = header["values"]["data_offsets"][0] + 8 + length
            file.seek(header["keys"]["data_offsets"][0] + 8 + length)
            self.n_rows, self.dim = header["values"]["shape"]
            self.keys = np.frombuffer(file.read(self.n_rows * KEY_BYTES), SORTED)

    def read(self, rows: NDArray[np.int32], out: NDArray[np.float32], at: NDArray[np.int64]) -> None:
        """Reads some rows into others of `out`."""
        size = out.itemsize * self.dim
        with open(self.path, "rb", buffering=0) as file:
            for row, place in zip(rows.tolist(), at.tolist(), strict=True):
                if os.preadv(file.fileno(), [out[place]], self._start + row * size) != size:
                    raise IntegrityError(f"{self.path}: shorter than what was written. Run again.")


def fill_up(raw: Any) -> Any:
    """Returns a raw batch with its last row repeated up to a whole batch; what is no tensor as it is."""
    if not isinstance(raw, Tensor) or not 0 < len(raw) < BATCH:
        return raw
    return raw[torch.arange(BATCH, device=raw.device).clamp(max=len(raw) - 1)]


def prefix_address(node: dict[str, Any]) -> str:
    """Returns the address of a frozen prefix."""
    return address_of({"features": 2, **node})


def ensure_features(
    table: FeatureTable,
    reader: ModalityReader,
    units: Units,
    encode: Callable[[Any, Callable[[Sequence[int]], Any]], Tensor],
    progress: Callable[[int, int], None],
    *,
    training: bool,
    pin: Callable[[Any], Any] = lambda raw: raw,
) -> int:
    """Computes what a table lacks for some present units.

    Args:
        table: Where features go.
        reader: Reads raw batches.
        units: Views and draws of rows that have the modality.
        encode: Maps a raw batch to (n, d); is given what makes a raw batch of some rows of it, too.
        progress: Is told (done, all) rows.
        training: Whether the units are training views.
        pin: Makes a raw batch ready for the device, in the thread that reads ahead.

    Returns:
        How many rows were computed.
    """
    keys = reader.feature_keys(units, training=training)
    if not len(table.missing(keys)):
        return 0
    with table.store.lock(table.folder.name, f"features of {reader.name}"):
        table.refresh()  # another process may just have computed them
        missing = table.missing(keys)
        parts = read_ahead(units.take(missing), BATCH, [reader], training=training)
        done = 0
        try:
            batches = ((part, pin(reader.read(part, training=training))) for part in parts)
            for part, raw in prefetch(batches, look=reader.tell_slow):

                def again(places: Sequence[int], part: Units = part) -> Any:
                    return pin(reader.read(part.take(list(places)), training=training))

                values = _checked(encode(raw, again), reader, part)
                table.add(keys[missing[done : done + len(values)]], values)
                done += len(values)
                progress(done, len(missing))
        finally:
            # what is computed is kept, whatever stopped the rest
            table.flush()
    return done


def _checked(values: Tensor, reader: ModalityReader, part: Units) -> Tensor:
    path = f"{reader.name}.encoder"
    if len(values) != len(part):
        raise PluginError(f"{path}: gives {len(values)} rows of features for {len(part)}. Mend the plugin.")
    is_bad = ~torch.isfinite(values).all(1)
    if bool(is_bad.any()):
        where = reader.manifest.where(int(part.rows[int(is_bad.nonzero()[0])]))
        raise PluginError(
            f"{path}: its features are not finite for {where}. Look at this row's file, mend the plugin or "
            "the weights."
        )
    return values
