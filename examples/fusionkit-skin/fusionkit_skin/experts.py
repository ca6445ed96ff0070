"""The head; torch is imported here, not when cards are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusionkit_skin import ExpertsConfig


class ProductOfExperts(nn.Module):
    """A classifier per modality; what is answered is the sum of their logits, over those present.

    A sum of logits is a product of probabilities, so that an expert who is sure outvotes one who is not.

    Shape:
        features[m] (n, input_dims[m]), present[m] (n,) -> (n, output_dim).
    """

    def __init__(self, config: ExpertsConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.experts = nn.ModuleDict(
            {name: _expert(dim, config.hidden, output_dim) for name, dim in input_dims.items()}
        )

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim): zeros, which call no class, where no modality is present."""
        said = []
        for name, expert in self.experts.items():
            is_there = present[name][:, None].bool()
            # what stands in a row of an absent modality must not reach the output, not even as NaN times 0
            logits = expert(features[name].where(is_there, 0.0))
            said.append(logits.where(is_there, 0.0))
        return torch.stack(said).sum(0)


def _expert(input_dim: int, hidden: int, output_dim: int) -> nn.Module:
    if hidden == 0:
        return nn.Linear(input_dim, output_dim)
    return nn.Sequential(nn.Linear(input_dim, hidden), nn.ReLU(), nn.Linear(hidden, output_dim))
