"""What both bags share: which tiles are taken, and how bags of different sizes become one batch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from fusionkit_bags import PoolingOptions

VERSION = 1
"""Part of every address: raised when the same bag would give other tiles."""


class BagInput:
    """One view, the bag; random only where training draws from more tiles than are taken."""

    def __init__(self, columns: Sequence[str], config: PoolingOptions) -> None:
        self.columns = tuple(columns)
        self.draws = 1
        self.max_tiles = config.max_tiles

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns the one view."""
        return ("bag",)

    def is_random(self, *, training: bool) -> bool:
        """Whether the draw's seed decides which tiles are taken."""
        return training and self.max_tiles is not None

    def choose(self, digests: Sequence[bytes], seed: int | None) -> list[int]:
        """Returns which tiles are taken, in the order of their contents: where they lay does not matter.

        Without a seed those whose digests come first, which is a draw that is always the same.
        """
        order = sorted(range(len(digests)), key=digests.__getitem__)
        if self.max_tiles is None or len(order) <= self.max_tiles:
            return order
        if seed is None:
            return order[: self.max_tiles]
        drawn = np.random.Generator(np.random.PCG64(seed)).choice(len(order), self.max_tiles, replace=False)
        return [order[place] for place in sorted(drawn.tolist())]

    def collate(self, items: Sequence[Tensor]) -> Mapping[str, Tensor]:
        """Returns {tiles (n, k, ...), mask (n, k)}, as wide as the largest bag, zeros where there is none."""
        most = max(len(item) for item in items)
        tiles = torch.zeros((len(items), most, *items[0].shape[1:]), dtype=items[0].dtype)
        mask = torch.zeros(len(items), most, dtype=torch.bool)
        for row, item in enumerate(items):
            tiles[row, : len(item)] = item
            mask[row, : len(item)] = True
        return {"tiles": tiles, "mask": mask}


def bag_key(digests: Sequence[bytes]) -> bytes | None:
    """Returns the content key of a bag, whatever the order of its tiles; None where it is empty."""
    return hashlib.sha256(b"".join(sorted(digests))).digest() if digests else None
