"""From rows to batches: what one epoch sees, in which order, with which draws."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fusionkit.data.manifest import Manifest
from fusionkit.data.sampling import balanced_rows
from fusionkit.data.tables import TabularInput
from fusionkit.data.threads import map_in_threads
from fusionkit.errors import DataError, FusionkitError, PluginError, is_out_of_memory, one_line
from fusionkit.interfaces import Cut, InputSpec
from fusionkit.specs import TABULAR_KINDS

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
BLOCK = 2048
"""Units that are shuffled and read together when a row has many, so that a row is decoded once per epoch."""
SLOW_SECONDS = 30.0
"""When a read that is not done is told; then each time that it has taken twice as long."""

SPEC_MEMBERS = ("columns", "draws", "identity", "views", "is_random", "content_key", "load", "collate")
KEY_BYTES = 32
Keys = np.dtype(f"V{KEY_BYTES}")
"""A sha256 in an array, its zero bytes at the end included."""
_UNKNOWN, _ABSENT, _PRESENT = 0, 1, 2
Kept = Mapping[str, NDArray[np.bool_]]
"""By modality, which units (n,) have it."""


@dataclass(frozen=True)
class Units:
    """What a pass goes through: one view and one draw of a row each.

    Args:
        rows: (n,) manifest rows.
        views: (n,) index of the view.
        draws: (n,) number of the draw; -1 where nothing is random.
    """

    rows: NDArray[np.int64]
    views: NDArray[np.int64]
    draws: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, index: Any) -> Units:
        """Returns a selection."""
        return Units(self.rows[index], self.views[index], self.draws[index])

    def chunks(self, size: int) -> Iterator[Units]:
        """Yields consecutive selections of at most `size`."""
        for start in range(0, len(self), size):
            yield self.take(slice(start, start + size))


def make_units(rows: Sequence[int] | NDArray[np.int64], n_views: int, n_draws: int = 1) -> Units:
    """Returns every view and draw of the rows, row by row; without draws, every view as it is."""
    rows = np.asarray(rows, dtype=np.int64)
    draws = np.arange(n_draws) if n_draws else np.array([-1])
    return Units(
        np.repeat(rows, n_views * len(draws)),
        np.tile(np.repeat(np.arange(n_views), len(draws)), len(rows)),
        np.tile(draws, len(rows) * n_views),
    )


def epoch_order(
    units: Units,
    seed: int,
    epoch: int,
    *,
    in_blocks: bool = True,
    classes: NDArray[np.int64] | None = None,
) -> Units:
    """Returns an epoch's order, a pure function of seed and epoch; the draws move on with the epoch.

    Rows are shuffled whole, then the units of some neighbouring rows among themselves: all views of a row
    stay close, so that it is decoded once. Without blocks all units are shuffled, for what is not decoded.

    Args:
        units: Every view and draw of the rows, row by row.
        seed: All randomness derives from it and the epoch.
        epoch: Which.
        in_blocks: Whether views of a row stay close.
        classes: (n rows,) the class of each row, to have as many rows of every class: some of them several
            times, others not in this epoch, and as many in all.
    """
    rng = np.random.Generator(np.random.PCG64([seed, epoch]))
    n_rows, per_row = _shape(units)
    n_draws = int(units.draws.max(initial=0)) + 1
    order = rng.permutation(n_rows)
    if classes is not None:
        order = balanced_rows(classes, rng)[order]
    order = order[:, None] * per_row + np.arange(per_row)
    blocks = []
    rows_per_block = max(1, BLOCK // per_row if in_blocks and per_row > 1 else n_rows)
    for start in range(0, n_rows, rows_per_block):
        block = order[start : start + rows_per_block].reshape(-1)
        blocks.append(rng.permutation(block))
    shuffled = units.take(np.concatenate(blocks) if blocks else np.zeros(0, dtype=np.int64))
    return Units(shuffled.rows, shuffled.views, shuffled.draws + epoch * n_draws)


def _shape(units: Units) -> tuple[int, int]:
    """Returns how many rows there are, and how many units of each."""
    n_rows = len(np.unique(units.rows))
    return n_rows, max(1, len(units) // max(1, n_rows))


def cut_batches(n_rows: int, size: int) -> list[slice]:
    """Returns the batches of an epoch that learns; a last batch of a single row joins the one before.

    Batch normalisation cannot learn from one row, and one row alone would steer a whole step. Batches of one
    that are asked for (`size` 1), and a single row in all, stay as they are.
    """
    stops = [*range(size, n_rows, size), n_rows]
    if size > 1 and n_rows > size and n_rows % size == 1:
        del stops[-2]
    return [slice(start, stop) for start, stop in pairwise([0, *stops]) if stop > start]


def read_ahead(
    units: Units,
    size: int,
    readers: Sequence[ModalityReader],
    *,
    training: bool,
    learning: bool = False,
    keep: Callable[[Units], Kept] | None = None,
) -> Iterator[Units]:
    """Yields batches of units; where a row has many, readers have read a block of rows, each once, before.

    Args:
        units: What to read, in order.
        size: Units per batch.
        readers: Who reads them.
        training: Whether they are training views.
        learning: Whether batches are cut by `cut_batches`.
        keep: Says by modality which units will be asked for; all that are present by default.
    """
    per_row = _shape(units)[1]
    block, ready = max(1, BLOCK // per_row) * per_row, 0
    for reader in readers:
        reader.forget()
    plain = [slice(start, start + size) for start in range(0, len(units), size)]
    for part in cut_batches(len(units), size) if learning else plain:
        while per_row > 1 and ready < min(part.stop, len(units)):
            some = units.take(slice(ready, ready + block))
            kept = keep(some) if keep is not None else None
            for reader in readers:
                # what is read and never taken would fill the memory
                reader.prepare(some if kept is None else some.take(kept[reader.name]), training=training)
            ready += block
        yield units.take(part)


class ModalityReader:
    """Reads one modality's rows of a manifest.

    Args:
        name: The modality.
        manifest: The rows.
        spec: How cells become a tensor.
        seed: What every draw derives from.
        workers: How many threads read rows side by side; 0 for none. No result depends on it.
        tell: Is told `still_reading`.
    """

    def __init__(
        self,
        name: str,
        manifest: Manifest,
        spec: InputSpec,
        seed: int,
        workers: int = 0,
        tell: Callable[[str, Mapping[str, Any]], None] = lambda name, data: None,
    ) -> None:
        lacking = [member for member in SPEC_MEMBERS if not hasattr(spec, member)]
        if lacking:
            raise PluginError(
                f"{name}.encoder: {type(spec).__name__} lacks {', '.join(lacking)} (an InputSpec). Mend it."
            )
        self.name, self.manifest, self.spec, self.seed = name, manifest, spec, seed
        self.workers, self.tell = workers, tell
        self._reading: dict[int, tuple[float, float]] = {}
        # arrays, not dictionaries: a cohort of a million rows must fit
        self._keys = np.zeros(len(manifest), dtype=Keys)
        self._state = np.zeros(len(manifest), dtype=np.uint8)
        self._ahead: dict[tuple[int, int, int, bool], Any] = {}
        self._items: dict[int, Any] = {}
        # features of files are worth keeping on disk; those of tables are computed faster than read
        self.is_stored = any(
            column not in manifest.schema or manifest.schema[column].kind not in TABULAR_KINDS
            for column in spec.columns
        )
        views = spec.views(training=True)
        self._has_one_record = not self.is_stored and len(views) == 1 and views == spec.views(training=False)
        self._table: NDArray[np.float32] | None = None
        if self._has_one_record and type(spec) is TabularInput:
            self._table = np.zeros((len(manifest), spec.output_dim), dtype=np.float32)
            self._is_read = np.zeros(len(manifest), dtype=bool)

    def n_views(self, *, training: bool) -> int:
        """Returns how many views a row has."""
        return len(self.spec.views(training=training))

    def key(self, row: int) -> bytes | None:
        """Returns a row's content key, None where the modality is absent."""
        if self._state[row] == _UNKNOWN:
            key = self._call(
                row,
                "content_key",
                lambda: self.spec.content_key(self.manifest.cells_of(row, self.spec.columns)),
            )
            if key is not None and not (isinstance(key, bytes) and len(key) == KEY_BYTES):
                raise PluginError(
                    f"{self.name}.encoder: content_key gives {type(key).__name__}, and {KEY_BYTES} bytes or "
                    "None are due. Mend the plugin."
                )
            self._state[row] = _ABSENT if key is None else _PRESENT
            if key is not None:
                self._keys[row] = np.void(key)
        return self._keys[row].tobytes() if self._state[row] == _PRESENT else None

    def present(self, rows: Iterable[int]) -> NDArray[np.bool_]:
        """Says for which rows the modality exists."""
        index = np.fromiter(rows, dtype=np.int64)
        for row in index[self._state[index] == _UNKNOWN]:
            self.key(int(row))
        found: NDArray[np.bool_] = self._state[index] == _PRESENT
        return found

    def keys(self, rows: NDArray[np.int64]) -> NDArray[np.void]:
        """Returns the rows' content keys, zeros where the modality is absent."""
        self.present(rows)
        return self._keys[rows]

    def cuts(self, units: Units, *, training: bool) -> list[Cut]:
        """Returns what to cut for each unit; all of their rows are present."""
        views = self.spec.views(training=training)
        is_random = training and self.spec.is_random(training=True)
        cuts = []
        for row, view, draw in zip(units.rows, units.views, units.draws, strict=True):
            name = views[int(view) % len(views)]
            key = self.key(int(row))
            has_draw = is_random and key is not None and draw >= 0
            cuts.append(Cut(name, draw_seed(self.seed, key or b"", name, int(draw)) if has_draw else None))
        return cuts

    def feature_keys(self, units: Units, *, training: bool) -> NDArray[np.void]:
        """Returns the key of each unit's features: content, view, and the draw's seed where it is random."""
        views = self.spec.views(training=training)
        is_random = training and self.spec.is_random(training=True)
        keys = np.empty(len(units), dtype=Keys)
        for index, (row, view, draw) in enumerate(_triples(units)):
            name, content = views[view % len(views)], self.key(row) or b""
            text = content + name.encode() + b"\0"
            if is_random and content and draw >= 0:
                text += draw_seed(self.seed, content, name, draw).to_bytes(8, "big")
            keys[index] = np.void(hashlib.sha256(text).digest())
        return keys

    def read(self, units: Units, *, training: bool) -> Any:
        """Returns the raw batch of present units, each row read once."""
        if self._has_one_record and not (training and self.spec.is_random(training=True)):
            return self._records(units.rows)
        return self.spec.collate(self._cut_items(units, training))

    def prepare(self, units: Units, *, training: bool) -> None:
        """Reads the present ones of some units ahead, each row once; `read` takes them from here."""
        here = units.take(self.present(units.rows))
        self._ahead.update(zip(_marks(here, training), self._cut_items(here, training), strict=True))

    def forget(self) -> None:
        """Forgets what was read ahead and not taken."""
        self._ahead.clear()

    def _cut_items(self, units: Units, training: bool) -> list[Any]:
        items: list[Any] = [self._ahead.pop(mark, None) for mark in _marks(units, training)]
        cuts = self.cuts(units, training=training)
        by_row: dict[int, list[int]] = {}
        for index, row in enumerate(units.rows):
            if items[index] is None:
                by_row.setdefault(int(row), []).append(index)
        loaded = map_in_threads(
            lambda row: self.load(row, [cuts[i] for i in by_row[row]]), list(by_row), self.workers
        )
        for indices, found in zip(by_row.values(), loaded, strict=True):
            for index, item in zip(indices, found, strict=True):
                items[index] = item
        return items

    def _records(self, rows: NDArray[np.int64]) -> Any:
        """Returns the batch of table rows' one view, read once: they are small, and read in every epoch."""
        if self._table is None:
            return self.spec.collate([self._record(row) for row in rows.tolist()])
        for row in rows[~self._is_read[rows]].tolist():
            self._table[row] = self.load(row, [Cut(self.spec.views(training=False)[0])])[0].numpy()
            self._is_read[row] = True
        return torch.from_numpy(self._table[rows])

    def _record(self, row: int) -> Any:
        if row not in self._items:
            self._items[row] = self.load(row, [Cut(self.spec.views(training=False)[0])])[0]
        return self._items[row]

    def load(self, row: int, cuts: Sequence[Cut]) -> list[Any]:
        """Returns the items of a present row, one per cut; whatever goes wrong names the row."""
        now = time.monotonic()
        self._reading[row] = now, now + SLOW_SECONDS
        try:
            return self._call(
                row,
                "load",
                lambda: self.spec.load(self.manifest.cells_of(row, self.spec.columns), cuts),
            )
        finally:
            self._reading.pop(row, None)

    def _call(self, row: int, method: str, call: Callable[[], ResultT]) -> ResultT:
        """Calls the input spec for a row, and names the row in whatever it raises."""
        try:
            return call()
        except DataError as error:
            where = self.manifest.where(row)
            raise DataError([f"{where}: {problem}" for problem in error.problems]) from error
        except (FusionkitError, KeyboardInterrupt):
            raise
        except OSError as error:
            raise DataError(
                f"{self.manifest.where(row)}: {self._cells(row)}: cannot be read ({one_line(error)}). "
                "Check the file and its rights."
            ) from error
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            if is_out_of_memory(error):
                raise
            raise PluginError(
                f"{self.name}.encoder: `{method}` of {type(self.spec).__name__} fails on "
                f"{self.manifest.where(row)}: {self._cells(row)} ({one_line(error)}). "
                "Mend the plugin, or look at this row."
            ) from error

    def _cells(self, row: int) -> str:
        """Names what a row's cells hold: the path of a file, or the text."""
        cells = [str(self.manifest.cells[name][row])[:80] for name in self.spec.columns]
        return ", ".join(cells[:3]) + (", ..." if len(cells) > 3 else "")

    def tell_slow(self) -> None:
        """Tells `still_reading` for every row whose read takes long: a slow disk is waited for, not ended."""
        now = time.monotonic()
        for row, (since, due) in list(self._reading.items()):
            if now >= due:
                # unless it has just been done
                if row in self._reading:
                    self._reading[row] = since, now + (now - since)
                what = {"sample": self.manifest.samples[row], "subject": self.manifest.subjects[row]}
                what["where"] = self.manifest.where(row)
                seconds = round(now - since)
                self.tell(
                    "still_reading",
                    {"modality": self.name, **what, "cells": self._cells(row), "seconds": seconds},
                )


def _marks(units: Units, training: bool) -> list[tuple[int, int, int, bool]]:
    return [(row, view, draw, training) for row, view, draw in _triples(units)]


def _triples(units: Units) -> Iterator[tuple[int, int, int]]:
    return zip(units.rows.tolist(), units.views.tolist(), units.draws.tolist(), strict=True)


def draw_seed(seed: int, key: bytes, view: str, draw: int) -> int:
    """Returns hash(seed, content key, view, draw), 63 bits: no result depends on who computes it, or when."""
    text = b"%d\0%s\0%s\0%d" % (seed, key, view.encode(), draw)
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
