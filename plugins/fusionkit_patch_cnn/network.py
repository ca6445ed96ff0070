"""The networks' layers; torch loads here, not when components are listed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from fusionkit import ColumnSpec, ImageInput, InputSpec

if TYPE_CHECKING:
    from fusionkit_patch_cnn import PatchCnnConfig


@dataclass(frozen=True)
class Layers:
    """A published network: convolutions of one size as (channels, pooling), then fully connected layers."""

    kernel: int
    convolutions: tuple[tuple[int, int], ...]
    nodes: tuple[int, ...]


PUBLISHED = {
    "araujo": Layers(3, ((16, 3), (32, 2), (64, 2), (64, 3), (32, 3)), (256, 128)),
    "spanhol": Layers(5, ((32, 2), (32, 2), (64, 2)), (64,)),
}
LEAST_SIDE = 4
"""Side of the smallest map in either original: a pooling that would leave less is left out."""


class PatchCnn(nn.Module):
    """Convolutions with ReLU and max-pooling, then the fully connected layers before the classifier.

    Shape:
        (n, 3, size, size) -> (n, output_dim): 128 (araujo) or 64 (spanhol).
    """

    def __init__(self, config: PatchCnnConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.images = ImageInput(config.input, columns)
        self.input_spec: InputSpec = self.images
        published = PUBLISHED[config.layers]
        layers: list[nn.Module] = []
        before, side = 3, config.input.size
        for channels, pooling in published.convolutions:
            layers += [nn.Conv2d(before, channels, published.kernel, padding="same"), nn.ReLU()]
            if side // pooling >= LEAST_SIDE:
                layers.append(nn.MaxPool2d(pooling))
                side //= pooling
            before = channels
        layers.append(nn.Flatten())
        width = before * side * side
        for nodes in published.nodes:
            layers += [nn.Linear(width, nodes), nn.ReLU()]
            width = nodes
        self.layers = nn.Sequential(*layers)
        self.output_dim = width
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, images: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        return cast(Tensor, self.layers(self.images.normalize(images)))
