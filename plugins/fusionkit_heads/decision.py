"""Decision-level fusion: each modality has a classifier of its own, and their answers are combined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fusionkit_heads.concat import classifier
from fusionkit_heads.presence import blank_absent, stack_present

if TYPE_CHECKING:
    from fusionkit_heads import DecisionConfig


class Decision(nn.Module):
    """Maps (n, d) per modality to each one's class probabilities, and these to (n, output_dim).

    average, weighted: the logarithm of the mean of the present modalities' probabilities, so that a row of
    which only one modality is there gets that one's answer. stacked: a linear layer reads all logarithms,
    each modality's with mean zero, and zero where it is absent; it begins as their sum. In a train stage all
    learn together, from the loss of what they say in common.
    """

    def __init__(self, config: DecisionConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.modalities, self.is_stacked = tuple(input_dims), config.rule == "stacked"
        self.classifiers = nn.ModuleDict(
            {
                # a prefix: a modality may be called as a method of ModuleDict is
                f"of_{name}": classifier(
                    [dim, *config.hidden, output_dim], config.activation, config.dropout, config.input_dropout
                )
                for name, dim in input_dims.items()
            }
        )
        if self.is_stacked:
            self.second = nn.Linear(len(input_dims) * output_dim, output_dim)
            with torch.no_grad():
                self.second.weight.copy_(torch.eye(output_dim).repeat(1, len(input_dims)))
                self.second.bias.zero_()
            return
        weights = torch.zeros(len(input_dims))
        self.log_weights: Tensor
        if config.rule == "weighted":
            self.log_weights = nn.Parameter(weights)
        else:
            self.register_buffer("log_weights", weights, persistent=False)

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        parts = zip(self.modalities, blank_absent(features, present, self.modalities), strict=True)
        each = torch.stack(
            [self.classifiers[f"of_{name}"](part).log_softmax(1) for name, part in parts], 1
        )  # (n, modalities, output_dim)
        if self.is_stacked:
            here = torch.stack([present[name] for name in self.modalities], 1)
            answers = (each - each.mean(2, keepdim=True)) * here[:, :, None]
            return cast(Tensor, self.second(answers.flatten(1)))
        here = stack_present(present, self.modalities)
        weights = self.log_weights.masked_fill(~here, -torch.inf).log_softmax(1)
        return (each + weights[:, :, None]).logsumexp(1)
