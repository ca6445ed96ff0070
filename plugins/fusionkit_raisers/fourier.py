"""Random Fourier features of Rahimi and Recht 2007."""

from __future__ import annotations

from math import pi, sqrt
from typing import Any, Self

import torch
from torch import Generator, Tensor, nn

from fusionkit import PluginError

MAX_ROWS = 2000
"""Of how many rows distances are taken, drawn at random where there are more; ours."""


class RandomFourier(nn.Module):
    """Maps (n, input_dim) to root(2 / output_dim) cos(W x + b), (n, output_dim).

    The inner product of two rows approximates the kernel exp(-|x - y|^2 / (2 bandwidth^2)).

    Args:
        input_dim: Width of the input.
        output_dim: Width of the result.
        bandwidth: The kernel's, in units of the input; None for the median distance of training rows.
    """

    frequencies: Tensor
    phases: Tensor
    is_fitted: Tensor

    def __init__(self, input_dim: int, output_dim: int, bandwidth: float | None) -> None:
        super().__init__()
        self.input_dim, self.output_dim, self.bandwidth = input_dim, output_dim, bandwidth
        self.register_buffer("frequencies", torch.zeros(output_dim, input_dim))
        self.register_buffer("phases", torch.zeros(output_dim))
        self.register_buffer("is_fitted", torch.tensor(False))

    def fit(self, inputs: Tensor, targets: Any = None, *, seed: int) -> Self:
        """Draws frequencies and phases from the seed, and finds the bandwidth; forgets an earlier fit."""
        generator = Generator().manual_seed(seed)
        normal = torch.randn(self.output_dim, self.input_dim, generator=generator, dtype=torch.float64)
        uniform = torch.rand(self.output_dim, generator=generator, dtype=torch.float64)
        bandwidth = self.bandwidth or find_median_distance(inputs.double().cpu(), generator)
        self.frequencies.copy_(normal / bandwidth)
        self.phases.copy_(uniform * 2 * pi)
        self.is_fitted.fill_(True)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Returns (n, output_dim); raises PluginError before it was fitted."""
        if not self.is_fitted:
            raise PluginError("random_fourier: not fitted yet. Name this raiser in a fit or train stage.")
        angles = nn.functional.linear(features, self.frequencies, self.phases)
        return angles.cos() * sqrt(2 / self.output_dim)


def find_median_distance(rows: Tensor, generator: Generator) -> float:
    """Returns the median Euclidean distance between different rows (n, d); 1 where all are equal.

    Equal rows are left out: where most are, the median would be 0, and the kernel would tell all others
    apart only by whether they are equal.

    Source: the heuristic as in Gretton et al. 2012, A kernel two-sample test, JMLR 13.
    """
    if len(rows) > MAX_ROWS:
        rows = rows[torch.randperm(len(rows), generator=generator)[:MAX_ROWS]]
    distances = nn.functional.pdist(rows)
    distances = distances[distances > 0]
    return float(distances.quantile(0.5)) if len(distances) else 1.0
