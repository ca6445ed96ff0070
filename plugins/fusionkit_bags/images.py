"""Bags of images: what is read of each, and the encoder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fusionkit import Cells, ColumnSpec, Cut, DataError, ImageInput
from fusionkit_bags import ImageBagConfig
from fusionkit_bags.bag_input import VERSION, BagInput, bag_key
from fusionkit_bags.tile_files import TileFiles, tile_digest
from fusionkit_bags.tile_network import TileBag

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


def make_image_bag(config: ImageBagConfig, columns: Mapping[str, ColumnSpec]) -> TileBag:
    """Returns the encoder."""
    spec = ImageBagInput(config, columns)
    return TileBag(config, spec, spec.images.normalize, config.input.size, "input.size")
