"""The network; torch is imported here, not when cards are read."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from fusionkit import ColumnSpec, InputSpec
from fusionkit_my_encoder import MyEncoderConfig
from fusionkit_my_encoder.signals import SignalInput


class MyEncoder(nn.Module):
    """Two convolutions over a signal, averaged over time.

    Shape:
        (n, 1, length) -> (n, output_dim).
    """  # yours: say what it does, and of which shape

    def __init__(self, config: MyEncoderConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.input_spec: InputSpec = SignalInput(config.length, columns)
        self.output_dim = config.width
        # yours: the layers
        self.layers = nn.Sequential(
            nn.Conv1d(1, config.width, 7, stride=2, padding=3),
            nn.ReLU(),
            nn.Conv1d(config.width, config.width, 7, stride=2, padding=3),
            nn.ReLU(),
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        # yours: from a batch to one vector per sample, each by itself
        features: Tensor = self.layers(inputs)
        return features.mean(2)
