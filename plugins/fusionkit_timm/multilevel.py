"""The timm module; torch and timm load here, not when components are listed."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import timm
import torch
from torch import Tensor, nn

from fusionkit import ColumnSpec, DataError, ImageInput, InputSpec, RecipeError, load_weights

if TYPE_CHECKING:
    from fusionkit_timm import TimmConfig


class TimmMultilevel(nn.Module):
    """Averages the chosen stages of a timm network over the image, or over each of its tiles, and joins them.

    Shape:
        (n, 3, size, size) -> (n, output_dim), the tapped stages' channels, once for every tile.
    """

    def __init__(self, config: TimmConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.images = ImageInput(config.input, columns)
        self.input_spec: InputSpec = self.images
        self.grid = config.grid
        tile = _tile_side(config)
        self.network = _create(config, tile)
        channels = [int(stage["num_chs"]) for stage in self.network.feature_info]
        self.last = len(channels) - 1
        self.tapped = _find_stages(config, len(channels))
        # what follows the last stage has no part in any feature
        self.network.prune_intermediate_layers(self.last, prune_norm=True, prune_head=True)
        if config.weights not in ("none", "pretrained"):
            _load(self.network, config)
        self.output_dim = sum(channels[stage] for stage in self.tapped) * config.grid**2
        self.pretraining_dim = channels[self.last]
        self.token_dim = channels[self.tapped[-1]]
        self.n_tokens = self._try(config.model, channels, tile)[self.tapped[-1]] * config.grid**2

    def forward(self, images: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        maps = self._maps(self._tiles(images), self.tapped)
        joined = torch.cat([one.float().mean((2, 3)) for one in maps], 1)
        return joined.reshape(len(images), self.output_dim)

    def pretraining_features(self, images: Tensor) -> Tensor:
        """Returns the last stage, (n, pretraining_dim, height, width), its tiles side by side."""
        (tiles,) = self._maps(self._tiles(images), (self.last,))
        n_tiles, channels, height, width = tiles.shape
        grid = self.grid
        rows = tiles.reshape(n_tiles // grid**2, grid, grid, channels, height, width)
        return rows.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, grid * height, grid * width)

    def tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the places of the last tapped stage, tile by tile, (n, k, token_dim), all of them there."""
        (tiles,) = self._maps(self._tiles(images), self.tapped[-1:])
        places = tiles.flatten(2).transpose(1, 2).reshape(len(images), self.n_tokens, self.token_dim)
        return places, places.new_ones(places.shape[:2], dtype=torch.bool)

    def _tiles(self, images: Tensor) -> Tensor:
        """Returns (n * grid * grid, 3, tile, tile), normalised, row by row."""
        x = self.images.normalize(images)
        tile = x.shape[-1] // self.grid
        x = x.reshape(len(x), 3, self.grid, tile, self.grid, tile)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, tile, tile)

    def _maps(self, x: Tensor, stages: tuple[int, ...]) -> list[Tensor]:
        network = cast(Any, self.network)
        found = network.forward_intermediates(x, indices=list(stages), intermediates_only=True)
        return cast(list[Tensor], found)

    def _try(self, name: str, channels: list[int], tile: int) -> list[int]:
        """Returns how many places each stage has; RecipeError where it cannot see so small a picture."""
        self.network.eval()
        try:
            with torch.inference_mode():
                maps = self._maps(torch.zeros(1, 3, tile, tile), tuple(range(len(channels))))
        except (RuntimeError, ValueError) as error:
            raise RecipeError(
                f"input.size: {name} cannot see a picture of {tile} x {tile} pixels "
                f"({str(error).splitlines()[0]}). Set a larger `input.size`."
            ) from None
        finally:
            self.network.train()
        if [one.shape[1] for one in maps] != channels:
            raise RecipeError(f"model: timm says wrong widths of {name}'s stages ({channels}). Name another.")
        return [one.shape[2] * one.shape[3] for one in maps]


def _tile_side(config: TimmConfig) -> int:
    if config.input.size % config.grid:
        raise RecipeError(
            f"grid: {config.input.size} pixels cannot be cut into {config.grid} equal tiles. "
            "Set an `input.size` that is a multiple of `grid`."
        )
    return config.input.size // config.grid


def _create(config: TimmConfig, tile: int) -> Any:
    """Returns timm's network without its classifier; nothing is fetched unless the option asks for it."""
    name = config.model
    if not timm.is_model(name):
        known = timm.list_models()
        near = difflib.get_close_matches(name, known, n=5)
        hint = f"Near it: {', '.join(near)}. " if near else ""
        raise RecipeError(
            f"model: timm has no such network ({name}). {hint}`timm.list_models()` names all {len(known)}."
        )
    pretrained = timm.get_pretrained_cfg(name)
    # a transformer's grid of positions is made for one size of picture
    is_fixed = pretrained is not None and pretrained.fixed_input_size
    sized: dict[str, Any] = {"img_size": tile} if is_fixed else {}
    network = _fetch(name, sized) if config.weights == "pretrained" else timm.create_model(name, **sized)
    methods = ("forward_intermediates", "prune_intermediate_layers", "feature_info")
    if not all(hasattr(network, method) for method in methods):
        raise RecipeError(f"model: timm's {name} does not hand out its stages. Name another network.")
    return network


def _fetch(name: str, sized: dict[str, Any]) -> Any:
    """Returns a network with timm's own weights, from its cache or from the network."""
    try:
        return timm.create_model(name, pretrained=True, **sized)
    except Exception as error:  # what a download may raise is its library's affair
        reason = " ".join(str(error).split())[:200]
        raise DataError(
            f"weights: timm's for {name} cannot be fetched ({reason}). Go online, or name a safetensors file."
        ) from error


def _find_stages(config: TimmConfig, n_stages: int) -> tuple[int, ...]:
    stages = [stage if stage >= 0 else n_stages + stage for stage in config.stages]
    if any(not 0 <= stage < n_stages for stage in stages):
        raise RecipeError(
            f"stages: {config.model} has {n_stages} stages (given: {list(config.stages)}). "
            f"Known: 0 to {n_stages - 1}, or -{n_stages} to -1 from the end."
        )
    if stages != sorted(set(stages)):
        raise RecipeError(
            f"stages: name each stage once, in rising order (given: {list(config.stages)}, of {n_stages})."
        )
    return tuple(stages)


def _load(network: nn.Module, config: TimmConfig) -> None:
    """Loads a file with timm's names; what belongs to the classifier may be in it, and is left out."""
    expected = network.state_dict()
    found = load_weights(config.weights, expected=expected, beyond=_classifier_names(config, expected))
    network.load_state_dict(found)


def _classifier_names(config: TimmConfig, expected: Mapping[str, Tensor]) -> frozenset[str]:
    with torch.device("meta"):
        whole = timm.create_model(config.model)
    return frozenset(whole.state_dict()) - set(expected)
