"""When memory is full: a batch is computed in parts, and stays one batch."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from fusionkit.errors import ResourceError, is_out_of_memory, one_line
from fusionkit.interfaces import Tell

ResultT = TypeVar("ResultT")


class Portions:
    """Computes batches whole, and from the first time that memory is full in halves, quarters, ...

    Args:
        where: Names the work, for messages.
        tell: Is told `memory_full`.
        n_parts: Into how many parts batches are cut to begin with.
        least: Fewest rows of a part: 2 where batch normalisation learns.
    """

    def __init__(self, where: str, tell: Tell, n_parts: int = 1, least: int = 1) -> None:
        self.where, self.tell, self.n_parts, self.least = where, tell, n_parts, least

    def cut(self, n_rows: int) -> list[slice]:
        """Returns the parts of a batch: consecutive, their sizes differ by at most one."""
        n_parts = max(1, min(self.n_parts, n_rows // self.least))
        bounds = [n_rows * part // n_parts for part in range(n_parts + 1)]
        return [slice(start, stop) for start, stop in pairwise(bounds)]

    def run(self, n_rows: int, compute: Callable[[slice], ResultT]) -> list[ResultT]:
        """Returns what a function gives for each part; from the first part again where memory was full.

        Raises:
            ResourceError: Memory is full even for the smallest parts.
        """
        while True:
            try:
                return [compute(part) for part in self.cut(n_rows)]
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = one_line(error, 160)
            # not above: as long as the error is held, so are the tensors of the failed attempt
            self._halve(n_rows, reason)

    def _halve(self, n_rows: int, reason: str) -> None:
        before = len(self.cut(n_rows))
        self.n_parts = 2 * before
        if len(self.cut(n_rows)) == before:
            size = -(-n_rows // before)
            rows = "one row" if size == 1 else f"{size} rows, the fewest that can be taken,"
            raise ResourceError(
                f"{self.where}: memory is full even for {rows} at a time ({reason}). "
                "Use smaller inputs, narrower layers or another device."
            )
        self.n_parts = len(self.cut(n_rows))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self.tell("memory_full", {"where": self.where, "rows": n_rows, "parts": self.n_parts, "why": reason})


def fewest_rows(modules: Mapping[str, nn.Module]) -> int:
    """Returns how many rows these modules need at once to learn: 2 with batch normalisation, else 1."""
    has_norm = any(isinstance(layer, _BatchNorm) for part in modules.values() for layer in part.modules())
    return 2 if has_norm else 1


def count_rows(raw: Any) -> int | None:
    """Returns how many rows a raw batch has: the length that its tensors share, or None."""
    lengths = set(_lengths(raw))
    return lengths.pop() if len(lengths) == 1 else None


def _lengths(raw: Any) -> list[int | None]:
    if isinstance(raw, Tensor):
        return [len(raw) if raw.ndim else None]
    values: Sequence[Any] = ()
    if isinstance(raw, Mapping):
        values = list(raw.values())
    elif isinstance(raw, list | tuple):
        values = raw
    return [length for value in values for length in _lengths(value)] or [None]


def take_rows(raw: Any, rows: Any) -> Any:
    """Returns some rows of a raw batch whose tensors share their length; `rows` is a slice or an index."""
    if isinstance(raw, Tensor):
        return raw[rows]
    if isinstance(raw, Mapping):
        return {name: take_rows(value, rows) for name, value in raw.items()}
    return type(raw)(take_rows(value, rows) for value in raw)
