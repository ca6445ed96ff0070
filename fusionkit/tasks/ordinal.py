"""Ordinal: classes that are ranks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from fusionkit.task import WithClasses


class Ordinal(WithClasses):
    """One of k ranks; output j of k - 1 says whether who is at least at rank j is above it.

    So ranks are in order whatever the head is, and need no weights or cut points in common.

    Args:
        classes: The ranks' names, from the lowest on.

    Source: Shi, Cao and Raschka 2021, Deep neural networks for rank-consistent ordinal regression based on
    conditional probabilities (CORN); the loss is divided by rows, not by conditional cases, which makes it
    the likelihood of a continuation-ratio model.
    """

    kind = "ordinal"

    def __init__(self, classes: Sequence[str]) -> None:
        super().__init__(classes)
        self.output_dim = len(self.classes) - 1

    def identity(self) -> dict[str, Any]:
        """Returns what determines the task, for addresses."""
        return {"task": "ordinal", "classes": list(self.classes)}

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Returns the mean over rows of weight x minus log-probability of the rank, of (n, k - 1) logits."""
        rank = torch.arange(self.output_dim, device=logits.device)
        is_above, is_at = rank < targets[:, None], rank == targets[:, None]
        losses = -(logsigmoid(logits) * is_above + logsigmoid(-logits) * is_at).sum(1)
        return (losses * weights).mean()

    def link(self, logits: Tensor) -> Tensor:
        """Maps logits (..., k - 1) to the ranks' probabilities (..., k)."""
        above = logits.sigmoid().cumprod(-1)
        ones = torch.ones_like(above[..., :1])
        return torch.cat([torch.cat([ones, above[..., :-1]], -1) * (-logits).sigmoid(), above[..., -1:]], -1)
