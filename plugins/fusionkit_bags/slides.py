"""Whole slides: tissue, and the pixels there; openslide loads here, not when components are listed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fusionkit import Cells, ColumnSpec, Cut, DataError, RecipeError
from fusionkit_bags import SlideBagConfig
from fusionkit_bags.bag_input import BagInput
from fusionkit_bags.tile_network import TileBag

VERSION = 1
"""Part of every address: raised when the same slide would give other tiles."""
OVERVIEW = 1024
"""Longest side of the picture in which tissue is looked for, in pixels; ours."""
LEAST_SATURATION = 0.05
"""Below it nothing is tissue, whatever Otsu's threshold says of a slide of nothing but glass; ours."""
SEVERAL_FILES = (".mrxs", ".vms", ".vmu", ".dcm")
"""Formats whose pixels lie in other files: one file's content would not be the slide's."""
POWER = "openslide.objective-power"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of ImageNet, as torchvision has them."""


def require_openslide() -> Any:
    """Returns the library; raises RecipeError that says how to get it."""
    try:
        import openslide
    except (ImportError, OSError) as error:
        raise RecipeError(
            f"use: slide_bag needs openslide, which is not installed ({error}). "
            "Say: pip install 'fusionkit[wsi]'."
        ) from None
    return openslide


@contextmanager
def open_slide(path: Path) -> Iterator[Any]:
    """Opens a slide; raises DataError that names the file for whatever is wrong with it."""
    openslide = require_openslide()
    if path.suffix.lower() in SEVERAL_FILES:
        raise DataError(f"{path}: a slide in several files. Convert it to one pyramidal TIFF.")
    try:
        with openslide.OpenSlide(str(path)) as slide:
            yield slide
    except (openslide.OpenSlideError, OSError) as error:
        raise DataError(f"{path}: not a whole slide that openslide reads ({error}). Scan it again.") from None


@dataclass(frozen=True)
class Grid:
    """Where tiles lie.

    Args:
        level: The pyramid's level that is read.
        side: Of a tile, in pixels of that level.
        places: Upper left corners of tiles with tissue, in pixels of level 0.
    """

    level: int
    side: int
    places: tuple[tuple[int, int], ...]


def make_grid(path: Path, slide: Any, config: SlideBagConfig) -> Grid:
    """Returns the tiles of a slide that have tissue, row by row."""
    level, side = _reading_of(path, slide, config)
    step = side * float(slide.level_downsamples[level])
    width, height = slide.dimensions
    mask = tissue_mask(np.asarray(slide.get_thumbnail((OVERVIEW, OVERVIEW)).convert("RGB")))
    down = np.array(mask.shape) / (height, width)
    places = []
    for row in range(int(height / step)):
        for column in range(int(width / step)):
            top, left = row * step, column * step
            box = np.ceil(np.array([top, left, top + step, left + step]) * np.tile(down, 2)).astype(int)
            part = mask[box[0] : max(box[2], box[0] + 1), box[1] : max(box[3], box[1] + 1)]
            if part.size and part.mean() >= config.tissue and part.any():
                places.append((round(left), round(top)))
    return Grid(level, side, tuple(places))


def _reading_of(path: Path, slide: Any, config: SlideBagConfig) -> tuple[int, int]:
    """Returns the level that tiles are read from, and their side there."""
    if config.magnification is None:
        if config.level >= slide.level_count:
            raise DataError(
                f"{path}: {slide.level_count} levels are there, and level {config.level} is due. Set `level`."
            )
        return config.level, config.tile
    power = slide.properties.get(POWER)
    if power is None:
        raise DataError(f"{path}: the slide does not say its magnification. Set `level` instead.")
    down = float(power) / config.magnification
    if down < 1:
        raise DataError(f"{path}: scanned at {power}, and {config.magnification} is due. Set a smaller one.")
    level = int(slide.get_best_level_for_downsample(down * 1.001))
    return level, max(1, round(config.tile * down / float(slide.level_downsamples[level])))


def tissue_mask(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Says which pixels (h, w, 3) are more saturated than Otsu's threshold: glass is grey, stain is not."""
    from skimage.filters import threshold_otsu

    values = picture.astype(np.float32)
    greatest = values.max(2)
    saturation = (greatest - values.min(2)) / np.maximum(greatest, 1)
    if saturation.min() == saturation.max():
        threshold = LEAST_SATURATION
    else:
        threshold = max(float(cast(Any, threshold_otsu)(saturation)), LEAST_SATURATION)
    mask: NDArray[np.bool_] = saturation > threshold
    return mask


class SlideInput(BagInput):
    """Reads one column of slides; an item is a uint8 tensor (k, 3, tile, tile)."""

    def __init__(self, config: SlideBagConfig, columns: Mapping[str, ColumnSpec]) -> None:
        if len(columns) != 1:
            given = ", ".join(columns) or "none"
            raise RecipeError(f"columns: a slide is read from one column (given: {given}). Name it.")
        super().__init__(tuple(columns), config)
        self.config = config

    def identity(self) -> Mapping[str, Any]:
        """Returns all that changes pixels."""
        names = ("magnification", "level", "tile", "tissue", "max_tiles")
        options = {name: getattr(self.config, name) for name in names}
        library = require_openslide().__library_version__
        return {"input": "slide_bag", "version": VERSION, "openslide": library, **options}

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of the file, or None where there is none, or no tissue in it."""
        cell = cells[self.columns[0]]
        if cell is None:
            return None
        digest, grid = _look(Path(cell), _mark(Path(cell)), self.config)
        return digest if grid.places else None

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Reads the tiles taken for each cut, and no other part of the slide."""
        path = Path(cells[self.columns[0]] or "")
        digest, grid = _look(path, _mark(path), self.config)
        with open_slide(path) as slide:
            return [
                torch.stack([_read_tile(slide, grid, place, self.config.tile) for place in places])
                for places in (self._choose(grid.places, digest, cut.seed) for cut in cuts)
            ]

    def _choose(
        self, places: Sequence[tuple[int, int]], digest: bytes, seed: int | None
    ) -> list[tuple[int, int]]:
        """Returns the tiles taken, row by row; without a seed, the slide's content draws them."""
        most = self.max_tiles
        if most is None or len(places) <= most:
            return list(places)
        number = int.from_bytes(digest[:8], "big") if seed is None else seed
        drawn = np.random.Generator(np.random.PCG64(number)).choice(len(places), most, replace=False)
        return [places[index] for index in sorted(drawn.tolist())]


def _mark(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: the slide cannot be read ({error.strerror}). Check it.") from None
    return status.st_ino, status.st_mtime_ns, status.st_size


@lru_cache(4096)
def _look(path: Path, mark: tuple[int, ...], config: SlideBagConfig) -> tuple[bytes, Grid]:
    """Returns a slide's sha256 and where its tissue is, once until the file changes."""
    with open_slide(path) as slide:
        grid = make_grid(path, slide, config)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest(), grid


def _read_tile(slide: Any, grid: Grid, place: tuple[int, int], side: int) -> Tensor:
    region = slide.read_region(place, grid.level, (grid.side, grid.side))
    # what the scanner left out is transparent: glass
    whole = Image.alpha_composite(Image.new("RGBA", region.size, "white"), region).convert("RGB")
    if whole.size != (side, side):
        whole = whole.resize((side, side), Image.Resampling.BILINEAR, reducing_gap=None)
    return torch.from_numpy(np.array(whole)).permute(2, 0, 1)


def make_slide_bag(config: SlideBagConfig, columns: Mapping[str, ColumnSpec]) -> TileBag:
    """Returns the encoder."""
    return TileBag(config, SlideInput(config, columns), _normalize, config.tile, "tile")


def _normalize(tiles: Tensor) -> Tensor:
    mean, std = (torch.tensor(values, device=tiles.device)[:, None, None] * 255 for values in (MEAN, STD))
    return (tiles.float() - mean) / std
