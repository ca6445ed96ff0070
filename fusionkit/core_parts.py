"""The parts that are the core's own: a modality's scale, and what stands for it where it is absent."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import torch
from torch import Tensor, nn

from fusionkit.tokens import pack_tokens, unpack_tokens

SCALE_EPSILON = 1e-6
SCALE_VERSION = 2
"""Part of every address: raised when the same features would be scaled otherwise."""
ABSENT_VERSION = 2
"""Part of the addresses of what has one: raised when the same vector would be used otherwise."""


class Scale(nn.Module):
    """Standardises one modality's features; buffers only, fitted on present training rows, frozen after.

    Shape:
        (n, dim) -> (n, dim), or packed tokens (n, n_tokens * (dim + 1)) alike; a feature that never varied is
        shifted and not divided, as scikit-learn does.

    Args:
        dim: Width of the features.
        n_tokens: How many tokens a row has at most, packed; each that is there counts as a row. 0: none.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, n_tokens: int = 0) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("std", torch.ones(dim))

    def fit(self, inputs: Tensor, targets: Any = None, *, seed: int = 0) -> Self:
        """Learns mean and standard deviation of (n, dim)."""
        return self.fit_parts([inputs])

    def fit_parts(self, parts: Iterable[Tensor]) -> Self:
        """Learns from features in parts, one at a time: a large cohort's features need not fit in memory.

        Source: Chan, Golub and LeVeque 1979, Updating formulae and a pairwise algorithm for sample variances.
        """
        n_rows, mean, squares = 0, torch.zeros_like(self.mean).double(), torch.zeros_like(self.mean).double()
        for part in parts:
            values = self._rows(part).double()
            n_new, centre = len(values), values.mean(0)
            shift, n_rows = centre - mean, n_rows + n_new
            mean = mean + shift * (n_new / n_rows)
            squares += (values - centre).square().sum(0) + shift.square() * (
                (n_rows - n_new) * n_new / n_rows
            )
        self.mean.copy_(mean)
        std = (squares / n_rows).sqrt()
        self.std.copy_(torch.where(std > SCALE_EPSILON, std, 1.0))
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Returns what came in, scaled."""
        if self.n_tokens:
            values, mask = unpack_tokens(features, self.n_tokens)
            return pack_tokens((values - self.mean) / self.std, mask, self.n_tokens)
        return (features - self.mean) / self.std

    def _rows(self, features: Tensor) -> Tensor:
        if not self.n_tokens:
            return features
        values, mask = unpack_tokens(features, self.n_tokens)
        return values[mask]


class Absent(nn.Module):
    """Stands for one modality where a sample lacks it: a vector that learns with the head.

    It starts as zero, which is the mean of standardised features.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.zeros(dim))

    def forward(self, n_rows: int) -> Tensor:
        """Returns (n_rows, dim)."""
        return self.vector.repeat(n_rows, 1)


def is_core_part(path: str) -> bool:
    """Says whether a part is the core's own, and no component: a scale, or what stands for the absent."""
    return path.endswith((".scale", ".absent"))
