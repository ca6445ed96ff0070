"""Image encoders from timm: any of its networks, any of their stages averaged and joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, field_validator

from fusionkit import ColumnSpec, ComponentConfig, DataFile, EncoderSpec, ImageOptions, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder


class TimmConfig(ComponentConfig):
    """Options of timm_multilevel."""

    not_files: ClassVar[tuple[str, ...]] = ("none", "pretrained")
    model: str
    """timm's name of the network, such as resnet18, densenet121 or convnext_tiny."""
    stages: tuple[Annotated[int, Field(ge=-1000, lt=1000)], ...] = Field((-1,), min_length=1, max_length=1000)
    """Stages to tap, in rising order, counted from 0, or from the end: -1 is the last. A network with a
    pyramid has one per resolution; a plain transformer (ViT, DeiT) has none: its stages are its blocks."""
    grid: int = Field(1, ge=1, le=16)
    """Cuts the picture into grid x grid tiles, encodes each, and joins them (Awan et al. 2018: 2)."""
    weights: DataFile = "none"
    """none: from scratch; pretrained: timm's own, fetched if not in its cache; or a safetensors file with
    timm's names."""
    input: ImageOptions = ImageOptions()
    """How an image file becomes a tensor."""

    @field_validator("stages")
    @classmethod
    def _check_stages(cls, stages: tuple[int, ...]) -> tuple[int, ...]:
        # which stage -1 is, is known when the network is
        for sign in ([s for s in stages if s < 0], [s for s in stages if s >= 0]):
            if sign != sorted(set(sign)):
                raise ValueError("name each stage once, in rising order")
        return stages


def _is_pretrained(config: TimmConfig) -> bool:
    return config.weights != "none"


def _build(config: TimmConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_timm.multilevel import TimmMultilevel

    return TimmMultilevel(config, columns)


SMALL = ImageOptions(size=32)

MULTILEVEL = EncoderSpec(
    name="timm_multilevel",
    summary="Features of any timm network from several stages, average-pooled and joined.",
    source="https://github.com/huggingface/pytorch-image-models; levels as in doi:10.1186/s12911-020-01340-6",
    config=TimmConfig,
    build=_build,
    reads=("file",),
    is_pretrained=_is_pretrained,
    gives_tokens=lambda config: True,
    examples=(
        TimmConfig(model="test_resnet", input=SMALL),
        TimmConfig(model="test_convnext", stages=(1, -1), input=SMALL),
        TimmConfig(model="test_efficientnet", grid=2, input=ImageOptions(size=64)),
    ),
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card of this plugin."""
    return [MULTILEVEL]
