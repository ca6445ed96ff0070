"""From a bag of vectors to one: gated attention, mean or max; the order of the tiles does not matter."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Pooling(nn.Module):
    """Pools bags of different sizes.

    Shape:
        tiles (n, k, d), mask (n, k) bool, True for at least one tile of each bag -> (n, d)

    Source: Ilse, Tomczak and Welling 2018, equation 9.
    """

    def __init__(self, kind: str, width: int, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.content, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
            self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, tiles: Tensor, mask: Tensor) -> Tensor:
        """Returns (n, d)."""
        if self.kind == "max":
            return tiles.masked_fill(~mask[..., None], -torch.inf).amax(1)
        return (self.weigh(tiles, mask)[..., None] * tiles).sum(1)

    def weigh(self, tiles: Tensor, mask: Tensor) -> Tensor:
        """Returns how much each tile weighs, (n, k): 0 where there is none, 1 in all over a bag."""
        if self.kind == "mean":
            return mask / mask.sum(1, keepdim=True)
        scores: Tensor = self.score(self.content(tiles).tanh() * self.gate(tiles).sigmoid()).squeeze(2)
        return scores.float().masked_fill(~mask, -torch.inf).softmax(1)
