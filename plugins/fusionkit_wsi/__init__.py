"""Whole slides: a scanner's pyramid as a bag of tiles of tissue, read where it is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fusionkit import ColumnSpec, ComponentConfig, DataFile, EncoderSpec, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder


class SlideBagConfig(ComponentConfig):
    """Options of slide_bag."""

    not_files: ClassVar[tuple[str, ...]] = ("none",)
    magnification: float | None = Field(None, gt=0, le=100)
    """Of the objective, such as 20: tiles are read at it, which the slide has to say its own of; null: by
    `level`."""
    level: int = Field(0, ge=0, le=20)
    """The pyramid's level that tiles are read from, 0 the finest; not used where `magnification` is given."""
    tile: int = Field(256, ge=16, le=4096)
    """Side of a tile in pixels, at that magnification or level; tiles lie side by side. Ours."""
    tissue: float = Field(0.5, ge=0, le=1)
    """Least share of a tile that is tissue: saturated beyond Otsu's threshold of the whole slide. Ours."""
    max_tiles: int | None = Field(64, ge=1, le=100_000)
    """Most tiles of a slide. Training draws others for each draw of its seed; evaluation takes always the
    same. null: all. Ours."""
    network: str = "small"
    """What sees a tile. small: three convolutions of ours; else timm's name of a network, as resnet18."""
    weights: DataFile = "none"
    """none: from scratch; or a safetensors file with timm's names."""
    pooling: Literal["attention", "mean", "max"] = "attention"
    """attention: the tiles' mean, weighed by gated attention, which learns; mean; max: of each feature."""
    hidden: int = Field(128, ge=1, le=4096)
    """Width of the attention (Ilse et al. 2018: 128)."""


def _build(config: SlideBagConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_wsi.network import SlideBag

    return SlideBag(config, columns)


SLIDE_BAG = EncoderSpec(
    name="slide_bag",
    summary="A whole slide as a bag of its tiles with tissue, seen by a network and pooled (extra: wsi).",
    source="Ilse, Tomczak and Welling 2018, arXiv:1802.04712 (gated attention); https://openslide.org",
    config=SlideBagConfig,
    build=_build,
    reads=("file",),
    is_pretrained=lambda config: config.weights != "none" and config.pooling != "attention",
    examples=(
        SlideBagConfig(tile=32, hidden=4),
        SlideBagConfig(tile=32, network="test_resnet", pooling="max"),
    ),
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card of the encoder."""
    return [SLIDE_BAG]
