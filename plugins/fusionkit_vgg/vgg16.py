"""The VGG16 modules; torch loads here, not when components are listed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d
from torchvision.models import VGG16_Weights, vgg16

from fusionkit import ColumnSpec, DataError, ImageInput, InputSpec, load_weights

if TYPE_CHECKING:
    from fusionkit_vgg import FcConfig, MultilevelConfig, VggConfig

LAST_LAYER = {1: 3, 2: 8, 3: 15, 4: 22, 5: 29}
"""Index, in torchvision's VGG16, of each block's last ReLU: the output before the block's pooling."""
N_LAYERS = {1: 2, 2: 2, 3: 3, 4: 3, 5: 3}
CHANNELS = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}
POOL = 7
"""VGG16's own: 7 x 7 x 512."""


def _convolutions(weights: str) -> nn.Sequential:
    """Returns the 13 convolution layers, from scratch or with the weights that the option names."""
    # without in-place ReLU, so that a tapped output is never written over
    layers: list[nn.Module] = []
    before = 3
    for block, n_layers in N_LAYERS.items():
        for _ in range(n_layers):
            layers += [nn.Conv2d(before, CHANNELS[block], 3, padding=1), nn.ReLU()]
            before = CHANNELS[block]
        layers.append(nn.MaxPool2d(2))
    convolutions = nn.Sequential(*layers)
    if weights == "none":
        for layer in convolutions:
            if isinstance(layer, nn.Conv2d):  # as torchvision starts its VGG16
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(cast(Tensor, layer.bias))
        return convolutions
    if weights == "imagenet":
        state = _fetch_imagenet()
    else:
        state = load_weights(weights, prefix="features.", expected=convolutions.state_dict())
    convolutions.load_state_dict(state)
    return convolutions


def _fetch_imagenet() -> dict[str, Tensor]:
    """Returns torchvision's ImageNet weights, from its cache or from the network."""
    try:
        # torch says there that it is fetching, and standard output is the report's
        with redirect_stdout(sys.stderr):
            return cast(dict[str, Tensor], vgg16(weights=VGG16_Weights.IMAGENET1K_V1).features.state_dict())
    except OSError as error:
        raise DataError(
            f"weights: ImageNet's cannot be fetched ({error}). Go online, or name a safetensors file."
        ) from None


class _Vgg16(nn.Module):
    """The convolutions, and what a pretrain stage classifies: block 5, whichever blocks are tapped."""

    def __init__(self, config: VggConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.images = ImageInput(config.input, columns)
        self.input_spec: InputSpec = self.images
        self.features = _convolutions(config.weights)

    def blocks(self, images: Tensor, last: int) -> dict[int, Tensor]:
        """Returns the outputs of blocks 1 to `last`, each (n, channels, height, width)."""
        x = self.images.normalize(images)
        outputs = {}
        for index, layer in enumerate(self.features):
            x = layer(x)
            for block, tapped in LAST_LAYER.items():
                if index == tapped:
                    outputs[block] = x
            if last in outputs:
                break
        return outputs


class Vgg16Multilevel(_Vgg16):
    """Averages the chosen blocks over the image and joins them.

    Shape:
        (n, 3, height, width) -> (n, output_dim), 256 + 512 + 512 = 1280 for blocks 3, 4, 5.
    """

    def __init__(self, config: MultilevelConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__(config, columns)
        self.tapped = config.blocks
        self.output_dim = sum(CHANNELS[block] for block in config.blocks)
        self.pretraining_dim = CHANNELS[5]
        self.last = max(self.tapped)
        # a block's outputs are halved before the next one
        self.places = max(1, min(POOL, config.input.size // 2 ** (self.last - 1)))
        self.n_tokens, self.token_dim = self.places**2, CHANNELS[self.last]

    def forward(self, images: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        outputs = self.blocks(images, max(self.tapped))
        return torch.cat([outputs[block].float().mean((2, 3)) for block in self.tapped], 1)

    def pretraining_features(self, images: Tensor) -> Tensor:
        """Returns block 5, (n, 512, height / 16, width / 16)."""
        return self.blocks(images, 5)[5]

    def tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the places of the last tapped block, pooled to 7 x 7 where there are more, none missing.

        Shape:
            (n, 3, size, size) -> (n, n_tokens, token_dim), (n, n_tokens)
        """
        # 14 x 14 pooled to 7 x 7 is VGG's own last pooling
        pooled = adaptive_max_pool2d(self.blocks(images, self.last)[self.last], self.places)
        places = pooled.flatten(2).transpose(1, 2)
        return places, places.new_ones(places.shape[:2], dtype=torch.bool)


class Vgg16Fc(_Vgg16):
    """Ends VGG16 in one fully connected layer.

    Shape:
        (n, 3, height, width) -> (n, nodes).
    """

    def __init__(self, config: FcConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__(config, columns)
        self.output_dim = config.nodes
        self.pool = nn.AdaptiveAvgPool2d(POOL)
        self.layer = nn.Linear(512 * POOL * POOL, config.nodes)
        self.activation = nn.ReLU() if config.activation == "relu" else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        """Returns (n, nodes)."""
        x = self.features[-1](self.blocks(images, 5)[5])
        return cast(Tensor, self.activation(self.layer(self.pool(x).flatten(1))))
