"""Every pixel a feature."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from fusionkit import ColumnSpec, ImageInput, InputSpec
from fusionkit_pixels import PixelsConfig

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in ITU-R BT.601."""


class Pixels(nn.Module):
    """Flattens an image; nothing is learned.

    Shape:
        (n, 3, size, size) -> (n, output_dim): size x size where grey, three times that in colour.
    """

    def __init__(self, config: PixelsConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.images = ImageInput(config.input, columns)
        self.input_spec: InputSpec = self.images
        self.colour = config.colour
        self.output_dim = config.input.size**2 * (1 if config.colour == "grey" else 3)
        self.register_buffer("luma", torch.tensor(LUMA), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        values = self.images.normalize(images)
        if self.colour == "grey":
            values = (values * self.get_buffer("luma")[:, None, None]).sum(1)
        return values.flatten(1)
