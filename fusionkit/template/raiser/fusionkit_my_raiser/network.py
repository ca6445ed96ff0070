"""The module; torch is imported here, not when cards are read."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from fusionkit import PluginError
from fusionkit_my_raiser import MyRaiserConfig


class MyRaiser(nn.Module):
    """Radial basis functions around training rows.

    Shape:
        (n, input_dim) -> (n, output_dim).
    """

    def __init__(self, config: MyRaiserConfig, input_dim: int) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, config.centres
        # yours: what it learns, as buffers or parameters whose shapes are known now
        self.register_buffer("centres", torch.zeros(config.centres, input_dim))
        self.register_buffer("spread", torch.zeros(()))  # 0 until it was fitted

    def fit(self, inputs: Tensor, targets: Tensor | None = None, *, seed: int) -> Self:
        """Draws centres from the training rows; all randomness comes from `seed`."""
        # yours; another way to learn has another method, or none
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(len(inputs), (self.output_dim,), generator=generator)
        self.get_buffer("centres").copy_(inputs[drawn.to(inputs.device)])
        self.get_buffer("spread").copy_(inputs.std(0).mean().clamp_min(1e-6) * self.input_dim**0.5)
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Returns (n, output_dim), between 0 and 1."""
        spread = self.get_buffer("spread")
        if not spread.is_meta and spread == 0:
            raise PluginError("my_raiser was not fitted. Name it in a `fit` or `train` stage.")
        # yours: each row by itself
        distances = (features[:, None, :] - self.get_buffer("centres")).square().sum(2)
        return torch.exp(-distances / (2 * spread.square()))
