"""Piecewise linear encoding of Gorishniy et al. 2022, with bins from quantiles."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from fusionkit import PluginError

RESOLUTION = 1e-6
"""The narrowest bin, as a share of a field's range: narrower ones would be rounding errors of fp32; ours."""


class PiecewiseLinear(nn.Module):
    """Maps each field to how far it has filled each of its bins: (n, input_dim) -> (n, input_dim * n_bins).

    A bin below the value is 1, one above it 0, and the value's own between. Beyond the training rows' values
    the first and the last bin go on in a straight line, as in the paper. Quantiles that coincide make one bin
    of several: those left over, all of a constant field's, are 0. A missing value gets the field's mean code
    of the training rows.

    Args:
        input_dim: How many fields.
        n_bins: Bins of each field.
    """

    least: Tensor
    width: Tensor
    n_used: Tensor
    mean: Tensor
    is_fitted: Tensor

    def __init__(self, input_dim: int, n_bins: int) -> None:
        super().__init__()
        self.input_dim, self.n_bins, self.output_dim = input_dim, n_bins, input_dim * n_bins
        self.register_buffer("least", torch.zeros(input_dim, n_bins))
        self.register_buffer("width", torch.ones(input_dim, n_bins))
        self.register_buffer("n_used", torch.zeros(input_dim, dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(input_dim, n_bins))
        self.register_buffer("is_fitted", torch.tensor(False))

    def fit(self, inputs: Tensor, targets: Any = None, *, seed: int) -> Self:
        """Takes each field's quantiles over the rows that have it; forgets an earlier fit."""
        self.least.zero_()
        self.width.fill_(1)
        self.n_used.zero_()
        self.mean.zero_()
        for field, values in enumerate(inputs.double().unbind(1)):
            edges = find_edges(values[~values.isnan()], self.n_bins)
            n_used = max(len(edges) - 1, 0)
            self.n_used[field] = n_used
            self.least[field, :n_used] = edges[:n_used]
            self.width[field, :n_used] = edges.diff()
        codes = self._encode(inputs)
        n_present = (~inputs.isnan()).sum(0).clamp(min=1)
        self.mean.copy_(codes.double().nansum(0) / n_present[:, None])
        self.is_fitted.fill_(True)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Returns (n, output_dim), field by field; raises PluginError before it was fitted."""
        if not self.is_fitted:
            raise PluginError("piecewise_linear: not fitted yet. Name this raiser in a fit or train stage.")
        codes = torch.where(features.isnan()[:, :, None], self.mean, self._encode(features))
        return codes.flatten(1)

    def _encode(self, features: Tensor) -> Tensor:
        """Returns (n, input_dim, n_bins), NaN where a value is missing."""
        filled = (features[:, :, None] - self.least) / self.width
        number = torch.arange(self.n_bins, device=features.device)
        is_first, is_last = number == 0, number == self.n_used[:, None] - 1
        filled = torch.where(is_first, filled, filled.clamp(min=0))
        filled = torch.where(is_last, filled, filled.clamp(max=1))
        return torch.where(number < self.n_used[:, None], filled, 0.0 * features[:, :, None])


def find_edges(values: Tensor, n_bins: int) -> Tensor:
    """Returns at most n_bins + 1 rising edges: the quantiles of values (n,), those that coincide once."""
    if not len(values):
        return values.float()
    shares = torch.linspace(0, 1, n_bins + 1, dtype=values.dtype, device=values.device)
    ordered = values.sort().values
    places = shares * (len(values) - 1)
    # by hand: torch's quantile takes 16 million values at most; in fp32, as edges are kept and compared
    edges = ordered[places.floor().long()].lerp(ordered[places.ceil().long()], places.frac()).float()
    least_gap = max(float(edges[-1] - edges[0]) * RESOLUTION, torch.finfo(torch.float32).tiny)
    kept = [edges[0]]
    for edge in edges[1:]:
        if edge - kept[-1] > least_gap:
            kept.append(edge)
    return torch.stack(kept)
