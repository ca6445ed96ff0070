"""Concatenation and fully connected layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fusionkit_heads.presence import blank_absent

if TYPE_CHECKING:
    from fusionkit_heads import ConcatMlpConfig

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


def classifier(widths: Sequence[int], activation: str, dropout: float, input_dropout: float) -> nn.Sequential:
    """Returns fully connected layers of these widths, from input to output."""
    layers: list[nn.Module] = [nn.Dropout(input_dropout)]
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation](), nn.Dropout(dropout)]
    return nn.Sequential(*layers, nn.Linear(widths[-2], widths[-1]))


class ConcatMlp(nn.Module):
    """Joins (n, d) per modality, in recipe order, and maps them to (n, output_dim).

    An absent modality counts as zeros, which is the mean of its standardised features.
    """

    def __init__(self, config: ConcatMlpConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.modalities = tuple(input_dims)
        widths = [sum(input_dims.values()), *config.hidden, output_dim]
        self.layers = classifier(widths, config.activation, config.dropout, config.input_dropout)

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        return cast(Tensor, self.layers(torch.cat(blank_absent(features, present, self.modalities), 1)))
