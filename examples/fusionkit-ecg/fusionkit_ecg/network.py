"""The network; torch is imported here, not when cards are read."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusionkit import ColumnSpec, InputSpec
from fusionkit_ecg import EcgConfig
from fusionkit_ecg.signals import EcgInput


def _layer(in_channels: int, out_channels: int) -> nn.Sequential:
    """Halves the steps; normalised by row, since a row must not depend on its batch."""
    convolution = nn.Conv1d(in_channels, out_channels, 7, stride=2, padding=3)
    return nn.Sequential(convolution, nn.GroupNorm(1, out_channels), nn.ReLU())


class EcgEncoder(nn.Module):
    """Three convolutions over time, then mean and maximum of each channel.

    Shape:
        (n, leads, length) -> (n, 2 width).
    """

    def __init__(self, config: EcgConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.input_spec: InputSpec = EcgInput(config.leads, config.length, columns)
        self.output_dim = 2 * config.width
        self.layers = nn.Sequential(
            _layer(config.leads, config.width),
            _layer(config.width, config.width),
            _layer(config.width, config.width),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        channels: Tensor = self.layers(inputs)
        return torch.cat([channels.mean(2), channels.amax(2)], 1)
