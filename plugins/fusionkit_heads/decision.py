"""Decision-level fusion: each modality has a classifier of its own, and their probabilities are averaged."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fusionkit_heads.concat import classifier

if TYPE_CHECKING:
    from fusionkit_heads import DecisionConfig


class Decision(nn.Module):
    """Maps (n, d) per modality to the logarithm of the mean of the present modalities' probabilities.

    A row of which only one modality is there gets that one's answer. In a train stage the classifiers learn
    together, from the loss of the mean.
    """

    def __init__(self, config: DecisionConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.modalities = tuple(input_dims)
        self.classifiers = nn.ModuleDict(
            {
                # a prefix: a modality may be called as a method of ModuleDict is
                f"of_{name}": classifier(
                    [dim, *config.hidden, output_dim], config.activation, config.dropout, config.input_dropout
                )
                for name, dim in input_dims.items()
            }
        )
        weights = torch.zeros(len(input_dims))
        self.log_weights: Tensor
        if config.weights == "learned":
            self.log_weights = nn.Parameter(weights)
        else:
            self.register_buffer("log_weights", weights, persistent=False)

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        each = torch.stack(
            [self.classifiers[f"of_{name}"](features[name]).log_softmax(1) for name in self.modalities], 1
        )
        here = torch.stack([present[name] for name in self.modalities], 1)
        # a row with nothing at all has no weights that could be normalised, and counts all
        here = here | ~here.any(1, keepdim=True)
        weights = self.log_weights.masked_fill(~here, -torch.inf).log_softmax(1)
        return (each + weights[:, :, None]).logsumexp(1)
