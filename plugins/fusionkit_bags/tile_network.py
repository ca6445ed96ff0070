"""A bag of pictures: each tile through one network by itself, then pooled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit import InputSpec, RecipeError, load_weights
from fusionkit_bags import TileOptions
from fusionkit_bags.pooling import Pooling

CHUNK = 256
"""Tiles that a frozen network sees at once: a batch of bags has many; ours."""
SMALL = (16, 32, 64)
"""Channels of the small network; ours."""


class TileBag(nn.Module):
    """Sees each tile by itself, and pools what it saw.

    Shape:
        tiles (n, k, 3, size, size), mask (n, k) -> (n, output_dim)

    Args:
        config: What sees a tile, and how a bag is pooled.
        input_spec: What it reads.
        normalize: Brings tiles in bytes to what the network was made for.
        size: Side of a tile in pixels.
        size_option: The option that sets it, for messages.
    """

    def __init__(
        self,
        config: TileOptions,
        input_spec: InputSpec,
        normalize: Callable[[Tensor], Tensor],
        size: int,
        size_option: str,
    ) -> None:
        super().__init__()
        self.input_spec, self.normalize = input_spec, normalize
        self.network, self.output_dim = make_network(config.network, config.weights, size, size_option)
        self.pooling = Pooling(config.pooling, self.output_dim, config.hidden)
        self.token_dim, self.n_tokens = self.output_dim, config.max_tiles or 0

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        pooled: Tensor = self.pooling(*self.tokens(inputs))
        return pooled

    def tokens(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns what it saw of each tile, (n, k, token_dim), and which are there, (n, k)."""
        mask = inputs["mask"]
        # what fills bags up is never seen: it would move batch statistics
        tiles = inputs["tiles"][mask]
        chunks = [tiles] if self.training else torch.split(tiles, CHUNK)
        seen = torch.cat([self.network(self.normalize(chunk)) for chunk in chunks])
        bags = seen.new_zeros(*mask.shape, self.output_dim)
        bags[mask] = seen
        return bags, mask


def make_network(name: str, weights: str, size: int, size_option: str) -> tuple[nn.Module, int]:
    """Returns what sees a tile, and the width of what it gives; nothing is ever fetched."""
    if name == "small":
        if weights != "none":
            raise RecipeError("weights: the small network learns from scratch. Name a network of timm.")
        return _small(), SMALL[-1]
    import timm

    if not timm.is_model(name):
        raise RecipeError(
            f"network: timm has no such network ({name}). `timm.list_models()` names all; or say `small`."
        )
    known = timm.get_pretrained_cfg(name)
    sized: dict[str, Any] = {"img_size": size} if known is not None and known.fixed_input_size else {}
    network = timm.create_model(name, num_classes=0, **sized)
    if weights != "none":
        with torch.device("meta"):
            whole = timm.create_model(name, **sized)
        expected = network.state_dict()
        network.load_state_dict(
            load_weights(weights, expected=expected, beyond=frozenset(whole.state_dict()) - set(expected))
        )
    return network, _width_of(network, name, size, size_option)


def _width_of(network: nn.Module, name: str, size: int, size_option: str) -> int:
    """Returns what a network gives for a tile of zeros; raises RecipeError where it cannot see one."""
    network.eval()
    try:
        with torch.inference_mode():
            return int(network(torch.zeros(1, 3, size, size)).shape[1])
    except (RuntimeError, ValueError) as error:
        raise RecipeError(
            f"{size_option}: {name} cannot see a tile of {size} x {size} pixels "
            f"({str(error).splitlines()[0]}). Set a larger `{size_option}`."
        ) from None
    finally:
        network.train()


def _small() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip((3, *SMALL), SMALL, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
