"""What sees a slide's tiles, and pools them: as in fusionkit_bags, since no plugin knows another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit import ColumnSpec, InputSpec, RecipeError, load_weights
from fusionkit_wsi import SlideBagConfig
from fusionkit_wsi.slides import SlideInput

CHUNK = 256
"""Tiles that a frozen network sees at once: a batch of slides has many; ours."""
SMALL = (16, 32, 64)
"""Channels of the small network; ours."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as torchvision has them."""


class Pooling(nn.Module):
    """Pools bags of different sizes.

    Shape:
        tiles (n, k, d), mask (n, k) bool, True for at least one tile of each bag -> (n, d)

    Source: Ilse, Tomczak and Welling 2018, equation 9.
    """

    def __init__(self, kind: str, width: int, hidden: int) -> None:
        super().__init__()
        self.kind = kind
        if kind == "attention":
            self.content, self.gate = nn.Linear(width, hidden), nn.Linear(width, hidden)
            self.score = nn.Linear(hidden, 1, bias=False)

    def forward(self, tiles: Tensor, mask: Tensor) -> Tensor:
        """Returns (n, d)."""
        if self.kind == "max":
            return tiles.masked_fill(~mask[..., None], -torch.inf).amax(1)
        return (self.weigh(tiles, mask)[..., None] * tiles).sum(1)

    def weigh(self, tiles: Tensor, mask: Tensor) -> Tensor:
        """Returns how much each tile weighs, (n, k): 0 where there is none, 1 in all over a bag."""
        if self.kind == "mean":
            return mask / mask.sum(1, keepdim=True)
        scores: Tensor = self.score(self.content(tiles).tanh() * self.gate(tiles).sigmoid()).squeeze(2)
        return scores.float().masked_fill(~mask, -torch.inf).softmax(1)


class SlideBag(nn.Module):
    """Sees each tile by itself, and pools what it saw.

    Shape:
        tiles (n, k, 3, tile, tile), mask (n, k) -> (n, output_dim)
    """

    def __init__(self, config: SlideBagConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.input_spec: InputSpec = SlideInput(config, columns)
        self.network, self.output_dim = make_network(config)
        self.pooling = Pooling(config.pooling, self.output_dim, config.hidden)
        self.register_buffer("mean", torch.tensor(MEAN)[:, None, None] * 255, persistent=False)
        self.register_buffer("std", torch.tensor(STD)[:, None, None] * 255, persistent=False)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        mask = inputs["mask"]
        # what fills bags up is never seen: it would move batch statistics
        tiles = inputs["tiles"][mask]
        chunks = [tiles] if self.training else torch.split(tiles, CHUNK)
        seen = torch.cat([self.network(self._normalize(chunk)) for chunk in chunks])
        bags = seen.new_zeros(*mask.shape, self.output_dim)
        bags[mask] = seen
        pooled: Tensor = self.pooling(bags, mask)
        return pooled

    def _normalize(self, tiles: Tensor) -> Tensor:
        return (tiles.float() - self.get_buffer("mean")) / self.get_buffer("std")


def make_network(config: SlideBagConfig) -> tuple[nn.Module, int]:
    """Returns what sees a tile, and the width of what it gives; nothing is ever fetched."""
    if config.network == "small":
        if config.weights != "none":
            raise RecipeError("weights: the small network learns from scratch. Name a network of timm.")
        return _small(), SMALL[-1]
    import timm

    name = config.network
    if not timm.is_model(name):
        raise RecipeError(
            f"network: timm has no such network ({name}). `timm.list_models()` names all; or say `small`."
        )
    known = timm.get_pretrained_cfg(name)
    sized: dict[str, Any] = {"img_size": config.tile} if known is not None and known.fixed_input_size else {}
    network = timm.create_model(name, num_classes=0, **sized)
    if config.weights != "none":
        with torch.device("meta"):
            whole = timm.create_model(name, **sized)
        expected = network.state_dict()
        beyond = frozenset(whole.state_dict()) - set(expected)
        network.load_state_dict(load_weights(config.weights, expected=expected, beyond=beyond))
    return network, _width_of(network, name, config.tile)


def _width_of(network: nn.Module, name: str, side: int) -> int:
    """Returns what a network gives for a tile of zeros; raises RecipeError where it cannot see one."""
    network.eval()
    try:
        with torch.inference_mode():
            return int(network(torch.zeros(1, 3, side, side)).shape[1])
    except (RuntimeError, ValueError) as error:
        raise RecipeError(
            f"tile: {name} cannot see a tile of {side} x {side} pixels "
            f"({str(error).splitlines()[0]}). Set a larger `tile`."
        ) from None
    finally:
        network.train()


def _small() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip((3, *SMALL), SMALL, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
