"""VGG16 image encoders: several convolution blocks averaged and joined, or one fully connected layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field, field_validator

from fusionkit import ColumnSpec, ComponentConfig, DataFile, EncoderSpec, ImageOptions, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder

SOURCE = "doi:10.1186/s12911-020-01340-6"


class VggConfig(ComponentConfig):
    """Options that both VGG16 encoders share."""

    not_files: ClassVar[tuple[str, ...]] = ("none", "imagenet")
    weights: DataFile = "none"
    """none: from scratch (the paper's choice); imagenet: torchvision's, fetched if not in its cache; or a
    safetensors file of the 13 convolution layers, with torchvision's names."""
    input: ImageOptions = ImageOptions()
    """How an image file becomes a tensor."""


class MultilevelConfig(VggConfig):
    """Options of vgg16_multilevel."""

    blocks: tuple[Literal[1, 2, 3, 4, 5], ...] = Field((3, 4, 5), min_length=1)
    """Convolution blocks to tap, before their pooling (Yan et al. 2021: 3, 4, 5)."""

    @field_validator("blocks")
    @classmethod
    def _check_blocks(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        if list(blocks) != sorted(set(blocks)):
            raise ValueError("name each block once, in rising order")
        return blocks


class FcConfig(VggConfig):
    """Options of vgg16_fc."""

    nodes: int = Field(1280, ge=1, le=100_000)
    """Width of the fully connected layer (Yan et al. 2021: 29 or 1280)."""
    activation: Literal["relu", "none"] = "relu"
    """What follows the layer; the paper does not say."""


def _is_pretrained(config: VggConfig) -> bool:
    return config.weights != "none"


def _build_multilevel(config: MultilevelConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_vgg.vgg16 import Vgg16Multilevel

    return Vgg16Multilevel(config, columns)


def _build_fc(config: FcConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_vgg.vgg16 import Vgg16Fc

    return Vgg16Fc(config, columns)


SMALL = ImageOptions(size=32)

MULTILEVEL = EncoderSpec(
    name="vgg16_multilevel",
    summary="VGG16 features from several convolution blocks, average-pooled and joined.",
    source=SOURCE,
    config=MultilevelConfig,
    build=_build_multilevel,
    reads=("file",),
    is_pretrained=_is_pretrained,
    gives_tokens=lambda config: True,
    readout=("blocks",),
    examples=(MultilevelConfig(input=SMALL), MultilevelConfig(blocks=(1, 5), input=SMALL)),
)
FC = EncoderSpec(
    name="vgg16_fc",
    summary="VGG16 with one fully connected layer of N nodes at the end (the paper's FC-29D, FC-1280D).",
    source=SOURCE,
    config=FcConfig,
    build=_build_fc,
    reads=("file",),
    examples=(FcConfig(nodes=29, input=SMALL),),
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the cards of this plugin."""
    return [MULTILEVEL, FC]
