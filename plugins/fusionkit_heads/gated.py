"""The gated multimodal unit of Arevalo et al. 2017, for any number of modalities."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fusionkit_heads.concat import classifier
from fusionkit_heads.presence import blank_absent, stack_present

if TYPE_CHECKING:
    from fusionkit_heads import GatedConfig


class Gated(nn.Module):
    """Maps (n, d) per modality to a sum of their hidden vectors, each feature gated, then to (n, output_dim).

    h_m = tanh(W_m x_m); the gates see all modalities; h = sum of z_m * h_m. Tied gates are a softmax over the
    modalities that are there: for two, the paper's z and 1 - z. Untied ones are its sigmoids for more. An
    absent modality has h_m = 0, since there is no bias; a row with nothing at all has h = 0.
    """

    def __init__(self, config: GatedConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.modalities, self.are_tied = tuple(input_dims), config.gates == "tied"
        joined_dim = sum(input_dims.values())
        self.input_dropout = nn.Dropout(config.input_dropout)
        # prefixes: a modality may be called as a method of ModuleDict is
        self.maps = nn.ModuleDict(
            {f"of_{name}": nn.Linear(dim, config.width, bias=False) for name, dim in input_dims.items()}
        )
        # a softmax over one modality is 1, and has nothing to learn
        is_gated = len(input_dims) > 1 or not self.are_tied
        self.gates = nn.ModuleDict(
            {f"of_{name}": nn.Linear(joined_dim, config.width, bias=False) for name in input_dims if is_gated}
        )
        self.classifier = classifier(
            [config.width, *config.hidden, output_dim], "relu", config.dropout, config.dropout
        )

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        parts = [self.input_dropout(part) for part in blank_absent(features, present, self.modalities)]
        pairs = zip(self.modalities, parts, strict=True)
        hidden = torch.stack([self.maps[f"of_{name}"](part).tanh() for name, part in pairs], 1)
        return cast(Tensor, self.classifier((self._weigh(parts, present) * hidden).sum(1)))

    def _weigh(self, parts: list[Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns the gates (n, modalities, width)."""
        if not self.gates:
            return parts[0].new_ones(())
        joined = torch.cat(parts, 1)
        scores = torch.stack([gate(joined) for gate in self.gates.values()], 1)
        if not self.are_tied:
            return scores.sigmoid()
        here = stack_present(present, self.modalities)
        return scores.masked_fill(~here[:, :, None], -torch.inf).softmax(1)
