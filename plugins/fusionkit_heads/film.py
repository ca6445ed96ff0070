"""Feature-wise linear modulation of Perez et al. 2018: the other modalities steer the layers of one."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fusionkit import RecipeError, suggest
from fusionkit_heads.presence import blank_absent

if TYPE_CHECKING:
    from fusionkit_heads import FilmConfig


class Film(nn.Module):
    """Maps one modality by fully connected layers, each modulated by all others, to (n, output_dim).

    After each hidden layer x becomes (1 + change) * x + shift, both linear in the others' joined features;
    then rectified. 1 + change as in the paper, so that what modulates little leaves x as it is. An absent
    modality comes in as zeros on either side; a modality by itself is modulated by nothing.
    """

    def __init__(self, config: FilmConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.modulated = config.modulated or next(iter(input_dims))
        if len(input_dims) == 1:
            (self.modulated,) = input_dims  # as where each modality is scored alone
        elif self.modulated not in input_dims:
            raise RecipeError(
                f"film: modulated is no modality of the recipe ({self.modulated}). "
                f"{suggest(self.modulated, input_dims)}"
            )
        self.others = tuple(name for name in input_dims if name != self.modulated)
        self.input_dropout, self.dropout = nn.Dropout(config.input_dropout), nn.Dropout(config.dropout)
        widths = (input_dims[self.modulated], *config.hidden)
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))
        others_dim = sum(input_dims[name] for name in self.others)
        self.modulations = nn.ModuleList(
            nn.Linear(others_dim, 2 * width) for width in (config.hidden if self.others else ())
        )
        self.output = nn.Linear(widths[-1], output_dim)

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        names = (self.modulated, *self.others)
        values, *others = [self.input_dropout(part) for part in blank_absent(features, present, names)]
        for number, layer in enumerate(self.layers):
            values = layer(values)
            if self.others:
                change, shift = self.modulations[number](torch.cat(others, 1)).chunk(2, 1)
                values = (1 + change) * values + shift
            values = self.dropout(values.relu())
        return cast(Tensor, self.output(values))
