"""Bags of images: every tile through one network, then pooled."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit import Cells, ColumnSpec, Cut, DataError, ImageInput, InputSpec, RecipeError, load_weights
from fusionkit_bags import ImageBagConfig
from fusionkit_bags.bag_input import VERSION, BagInput, bag_key
from fusionkit_bags.pooling import Pooling
from fusionkit_bags.tile_files import TileFiles, tile_digest

CHUNK = 256
"""Tiles that a frozen network sees at once: a batch of bags has many; ours."""
SMALL = (16, 32, 64)
"""Channels of the small network; ours."""
TILE = "tile"


class ImageBagInput(BagInput):
    """Reads the tiles of a row; an item is a uint8 tensor (k, 3, size, size)."""

    def __init__(self, config: ImageBagConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__(tuple(columns), config)
        self.files = TileFiles(config, columns)
        self.images = ImageInput(config.input, {TILE: ColumnSpec(kind="file")})
        self.has_augment = config.input.augment is not None

    def identity(self) -> Mapping[str, Any]:
        """Returns all that changes an item."""
        tile = dict(self.images.identity())
        return {"input": "image_bag", "version": VERSION, "max_tiles": self.max_tiles, "tile": tile}

    def is_random(self, *, training: bool) -> bool:
        """Whether training draws tiles, or changes them."""
        return super().is_random(training=training) or (training and self.has_augment)

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of all tiles, or None where there is none."""
        return bag_key([tile_digest(path) for path in self.files.find(cells)])

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Decodes the tiles taken for each cut; raises DataError that names every tile that is no image."""
        paths = self.files.find(cells)
        digests = [tile_digest(path) for path in paths]
        items: list[list[Tensor]] = []
        problems: list[str] = []
        for cut in cuts:
            tiles: list[Tensor] = []
            for place in self.choose(digests, cut.seed):
                try:
                    tiles += self.images.load({TILE: paths[place]}, [_tile_cut(cut, digests[place])])
                except DataError as error:
                    problems += error.problems
            items.append(tiles)
        if problems:
            raise DataError(list(dict.fromkeys(problems)))
        return [torch.stack(tiles) for tiles in items]


def _tile_cut(cut: Cut, digest: bytes) -> Cut:
    """Returns how one tile is cut: the bag's seed and the tile's content decide how it is changed."""
    if cut.seed is None:
        return Cut("whole")
    text = b"%d\0%s" % (cut.seed, digest)
    return Cut("whole", int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1)


class ImageBag(nn.Module):
    """Sees each tile by itself, and pools what it saw.

    Shape:
        tiles (n, k, 3, size, size), mask (n, k) -> (n, output_dim)
    """

    def __init__(self, config: ImageBagConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        spec = ImageBagInput(config, columns)
        self.input_spec: InputSpec = spec
        self.images = spec.images
        self.network, self.output_dim = make_network(config.network, config.weights, config.input.size)
        self.pooling = Pooling(config.pooling, self.output_dim, config.hidden)

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        mask = inputs["mask"]
        # what fills bags up is never seen: it would move batch statistics
        tiles = inputs["tiles"][mask]
        chunks = [tiles] if self.training else torch.split(tiles, CHUNK)
        seen = torch.cat([self.network(self.images.normalize(chunk)) for chunk in chunks])
        bags = seen.new_zeros(*mask.shape, self.output_dim)
        bags[mask] = seen
        pooled: Tensor = self.pooling(bags, mask)
        return pooled


def make_network(name: str, weights: str, size: int) -> tuple[nn.Module, int]:
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
    return network, _width_of(network, name, size)


def _width_of(network: nn.Module, name: str, size: int) -> int:
    """Returns what a network gives for a tile of zeros; raises RecipeError where it cannot see one."""
    network.eval()
    try:
        with torch.inference_mode():
            return int(network(torch.zeros(1, 3, size, size)).shape[1])
    except (RuntimeError, ValueError) as error:
        raise RecipeError(
            f"input.size: {name} cannot see a tile of {size} x {size} pixels "
            f"({str(error).splitlines()[0]}). Set a larger `input.size`."
        ) from None
    finally:
        network.train()


def _small() -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in zip((3, *SMALL), SMALL, strict=False):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
