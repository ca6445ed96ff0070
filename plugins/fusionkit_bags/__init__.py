"""Bags: several vectors, images or tiles of a slide, pooled into one vector (multiple-instance learning)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator

from fusionkit import Cells, ColumnSpec, ComponentConfig, DataFile, EncoderSpec, ImageOptions, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder

ILSE = "Ilse, Tomczak and Welling 2018, arXiv:1802.04712 (gated attention)"


class PoolingOptions(ComponentConfig):
    """How a bag becomes one vector."""

    pooling: Literal["attention", "mean", "max"] = "attention"
    """attention: the tiles' mean, weighed by gated attention, which learns; mean; max: of each feature."""
    hidden: int = Field(128, ge=1, le=4096)
    """Width of the attention (Ilse et al. 2018: 128)."""
    max_tiles: int | None = Field(None, ge=1, le=100_000)
    """Most tiles of a bag. Training draws others for each draw of its seed; evaluation takes always the same.
    null: all; a head that reads tokens needs a number."""


class VectorBagConfig(PoolingOptions):
    """Options of vector_bag."""

    width: int = Field(ge=1, le=100_000)
    """How many numbers a tile's vector has."""
    embed: int | None = Field(None, ge=1, le=4096)
    """Width of a learned layer, with ReLU, before the pooling; null for none (Ilse et al. 2018: 500)."""
    tensor: str = ""
    """The tensor to take of a .safetensors file; empty: its only one."""


class TileOptions(PoolingOptions):
    """What sees the tiles of a bag of pictures."""

    not_files: ClassVar[tuple[str, ...]] = ("none",)
    max_tiles: int | None = Field(64, ge=1, le=100_000)
    """Most tiles of a bag. Training draws others for each draw of its seed; evaluation takes always the same.
    null: all. 64 is ours."""
    network: str = "small"
    """What sees a tile. small: three convolutions of ours; else timm's name of a network, as resnet18."""
    weights: DataFile = "none"
    """none: from scratch; or a safetensors file with timm's names."""


class ImageBagConfig(TileOptions):
    """Options of image_bag."""

    folder: DataFile = ""
    """Where a column of kind text lists tiles, and only there: the folder that its paths are relative to."""
    separator: str = Field(";", min_length=1)
    """What joins the paths of such a cell; one path alone may be a folder of tiles."""
    input: ImageOptions = Field(ImageOptions(size=64), validate_default=True)
    """How a tile becomes a tensor; it has one view and one draw."""

    @field_validator("input")
    @classmethod
    def _check_views(cls, options: ImageOptions) -> ImageOptions:
        if any(views.patches or not views.whole for views in (options.views, options.eval_views)):
            raise ValueError("a tile is seen whole: leave `views` and `eval_views` out")
        if options.draws != 1:
            raise ValueError("a bag is kept in one draw: leave `draws` out")
        return options


class SlideBagConfig(TileOptions):
    """Options of slide_bag."""

    magnification: float | None = Field(None, gt=0, le=100)
    """Of the objective, such as 20: tiles are read at it, which the slide has to say its own of; null: by
    `level`."""
    level: int = Field(0, ge=0, le=20)
    """The pyramid's level that tiles are read from, 0 the finest; not beside a `magnification`."""
    tile: int = Field(256, ge=16, le=4096)
    """Side of a tile in pixels, at that magnification or level; tiles lie side by side. Ours."""
    tissue: float = Field(0.5, ge=0, le=1)
    """Least share of a tile that is tissue: saturated beyond Otsu's threshold of the whole slide. Ours."""

    @model_validator(mode="after")
    def _check_level(self) -> Self:
        if self.magnification is not None and self.level:
            raise ValueError(
                f"tiles are read at a `magnification` or from a `level` (given: {self.magnification:g} and "
                f"{self.level}). Leave one out"
            )
        return self


def _build_vectors(config: VectorBagConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_bags.vectors import VectorBag

    return VectorBag(config, columns)


def _build_images(config: ImageBagConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_bags.images import make_image_bag

    return make_image_bag(config, columns)


def _build_slides(config: SlideBagConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_bags.slides import make_slide_bag

    return make_slide_bag(config, columns)


def _vector_files(config: VectorBagConfig, folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    from fusionkit_bags.example_files import write_vectors

    return write_vectors(config, folder)


def _image_files(config: ImageBagConfig, folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    from fusionkit_bags.example_files import write_images

    return write_images(folder)


VECTOR_BAG = EncoderSpec(
    name="vector_bag",
    summary="Several vectors of one sample, such as embeddings of tiles, pooled by attention, mean or max.",
    source=ILSE,
    config=VectorBagConfig,
    build=_build_vectors,
    reads=("file",),
    # then there is nothing that a stage could learn
    is_pretrained=lambda config: config.pooling != "attention" and config.embed is None,
    gives_tokens=lambda config: config.max_tiles is not None,
    examples=(
        VectorBagConfig(width=6, hidden=4, max_tiles=5),
        VectorBagConfig(width=6, pooling="max", embed=4),
    ),
    example_files=_vector_files,
)

IMAGE_BAG = EncoderSpec(
    name="image_bag",
    summary="Several images of one sample, each seen by a small or a timm network, then pooled.",
    source=ILSE,
    config=ImageBagConfig,
    build=_build_images,
    reads=("file", "text"),
    is_pretrained=lambda config: config.weights != "none" and config.pooling != "attention",
    gives_tokens=lambda config: config.max_tiles is not None,
    examples=(
        ImageBagConfig(hidden=4, input=ImageOptions(size=16)),
        ImageBagConfig(network="test_resnet", pooling="mean", input=ImageOptions(size=32)),
    ),
    example_files=_image_files,
)


SLIDE_BAG = EncoderSpec(
    name="slide_bag",
    summary="A whole slide as a bag of its tiles with tissue, seen by a network and pooled (extra: wsi).",
    source=f"{ILSE}; https://openslide.org",
    config=SlideBagConfig,
    build=_build_slides,
    reads=("file",),
    is_pretrained=lambda config: config.weights != "none" and config.pooling != "attention",
    gives_tokens=lambda config: config.max_tiles is not None,
    examples=(
        SlideBagConfig(tile=32, hidden=4),
        SlideBagConfig(tile=32, network="test_resnet", pooling="max"),
    ),
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the cards of the encoders."""
    return [VECTOR_BAG, IMAGE_BAG, SLIDE_BAG]
