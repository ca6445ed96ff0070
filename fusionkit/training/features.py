"""Features of frozen prefixes: computed once per row, kept in the store, gathered by memory map."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save
from torch import Tensor

from fusionkit.data.batches import ModalityReader, Units, prefetch, read_ahead
from fusionkit.errors import PluginError
from fusionkit.store import Store, address_of

FLUSH_SECONDS = 5.0
BATCH = 32
"""Rows that an encoder sees at once; a row's features do not depend on it."""
LEAST_ROWS = 8
"""Rows that it sees at least, the last one repeated: for fewer, CPUs take kernels that round otherwise.

Measured with VGG16 in fp32 on CPU: 1, 2, 3 and 5 rows give other last digits than 32; 8 and more do not. What
was missing must not change a row, since that depends on who came first.
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
        self._position: dict[bytes, tuple[int, int]] = {}
        self._files: list[NDArray[np.float32]] = []
        self._known: set[str] = set()
        self._buffer: list[tuple[list[bytes], Tensor]] = []
        self._flushed = time.monotonic()
        self.refresh()

    def refresh(self) -> None:
        """Reads files that other processes have added."""
        folder = self.store.path(str(self.folder))
        for path in sorted(folder.glob("*.safetensors")) if folder.exists() else []:
            if path.name not in self._known and self.store.verify(str(self.folder / path.name)):
                self._add_file(path)

    def _add_file(self, path: Path) -> None:
        keys, values = _map_file(path)
        self._known.add(path.name)
        number = len(self._files)
        self._files.append(values)
        for position, key in enumerate(keys):
            self._position.setdefault(key.tobytes(), (number, position))

    def missing(self, keys: Sequence[bytes]) -> list[int]:
        """Returns the indices of keys that are not stored, each distinct key once."""
        seen: set[bytes] = set()
        found = []
        for index, key in enumerate(keys):
            if key not in self._position and key not in seen:
                seen.add(key)
                found.append(index)
        return found

    def add(self, keys: Sequence[bytes], values: Tensor) -> None:
        """Adds rows; they reach the disk every few seconds."""
        self._buffer.append((list(keys), values))
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what was added as one more file."""
        if self._buffer:
            keys = [key for part, _ in self._buffer for key in part]
            table = np.frombuffer(b"".join(keys), dtype=np.uint8).reshape(len(keys), 32).copy()
            values = torch.cat([values for _, values in self._buffer]).float().cpu().contiguous()
            data = save({"keys": torch.from_numpy(table), "values": values})
            name = f"{hashlib.sha256(data).hexdigest()}.safetensors"
            self.store.put(str(self.folder / name), data)
            self._buffer.clear()
            self._add_file(self.store.path(str(self.folder / name)))
        self._flushed = time.monotonic()

    def gather(self, keys: Sequence[bytes]) -> Tensor:
        """Returns (n, d) for keys that are all stored, at least one."""
        places = [self._position[key] for key in keys]
        out = np.empty((len(keys), self._files[places[0][0]].shape[1]), dtype=np.float32)
        files = np.array([file for file, _ in places])
        positions = np.array([position for _, position in places])
        for number in np.unique(files):
            here = files == number
            out[here] = self._files[number][positions[here]]
        return torch.from_numpy(out)


def _map_file(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Maps a feature file into memory, so that only the rows asked for are read."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))

    def part(name: str, dtype: Any) -> Any:
        start = header[name]["data_offsets"][0] + 8 + length
        return np.memmap(path, dtype=dtype, mode="r", offset=start, shape=tuple(header[name]["shape"]))

    return np.array(part("keys", np.uint8)), part("values", np.float32)


def fill_up(raw: Any) -> Any:
    """Returns a raw batch with its last row repeated up to the least number; what is no tensor as it is."""
    if not isinstance(raw, Tensor) or not 0 < len(raw) < LEAST_ROWS:
        return raw
    return raw[torch.arange(LEAST_ROWS, device=raw.device).clamp(max=len(raw) - 1)]


def prefix_address(node: dict[str, Any]) -> str:
    """Returns the address of a frozen prefix."""
    return address_of({"features": 2, **node})


def ensure_features(
    table: FeatureTable,
    reader: ModalityReader,
    units: Units,
    encode: Callable[[Any], Tensor],
    tell: Callable[[int, int], None],
    *,
    training: bool,
) -> int:
    """Computes what a table lacks for some present units.

    Args:
        table: Where features go.
        reader: Reads raw batches.
        units: Views and draws of rows that have the modality.
        encode: Maps a raw batch to (n, d).
        tell: Is told (done, all) rows.
        training: Whether the units are training views.

    Returns:
        How many rows were computed.
    """
    keys = reader.feature_keys(units, training=training)
    if not table.missing(keys):
        return 0
    with table.store.lock(table.folder.name, f"features of {reader.name}"):
        table.refresh()  # another process may just have computed them
        missing = table.missing(keys)
        parts = read_ahead(units.take(missing), BATCH, [reader], training=training)
        done = 0
        try:
            for raw in prefetch(reader.read(part, training=training) for part in parts):
                values = _checked(encode(raw), reader.name)
                table.add([keys[index] for index in missing[done : done + len(values)]], values)
                done += len(values)
                tell(done, len(missing))
        finally:
            # what is computed is kept, whatever stopped the rest
            table.flush()
    return done


def _checked(values: Tensor, modality: str) -> Tensor:
    if not bool(torch.isfinite(values).all()):
        raise PluginError(f"{modality}.encoder: its features are not finite. Mend the plugin or the weights.")
    return values
