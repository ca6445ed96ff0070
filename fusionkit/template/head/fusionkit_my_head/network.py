"""The module; torch is imported here, not when cards are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusionkit_my_head import MyHeadConfig


class MyHead(nn.Module):
    """A linear layer per modality, their mean over those that are present, and a linear classifier.

    Shape:
        features[m] (n, input_dims[m]), present[m] (n,) -> (n, output_dim).
    """

    def __init__(self, config: MyHeadConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        # yours: the layers
        self.layers = nn.ModuleDict({name: nn.Linear(dim, config.width) for name, dim in input_dims.items()})
        self.classifier = nn.Linear(config.width, output_dim)

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        # yours: what stands in a row of an absent modality must not reach the output, whatever it is
        weights = torch.stack([present[name].float() for name in self.layers], 1)
        hidden = torch.stack(
            [
                torch.relu(layer(features[name].where(present[name][:, None].bool(), 0.0)))
                for name, layer in self.layers.items()
            ],
            1,
        )
        mean = (hidden * weights[:, :, None]).sum(1) / weights.sum(1, keepdim=True).clamp_min(1.0)
        out: Tensor = self.classifier(mean)
        return out
