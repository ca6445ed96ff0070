"""Pixels as they are: what data-level fusion joins with the record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from fusionkit import ColumnSpec, ComponentConfig, EncoderSpec, ImageOptions, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder

MAX_SIZE = 512


class PixelsConfig(ComponentConfig):
    """Options of pixels."""

    colour: Literal["grey", "rgb"] = "grey"
    """grey: one number per pixel, the luma (ITU-R BT.601) of its standardised colours; rgb: three."""
    input: ImageOptions = Field(ImageOptions(size=16), validate_default=True)
    """How an image file becomes a tensor; its size is also the features': keep it small."""

    @field_validator("input")
    @classmethod
    def _check_size(cls, options: ImageOptions) -> ImageOptions:
        if options.size > MAX_SIZE:
            raise ValueError(f"every pixel is a feature, so `size` is at most {MAX_SIZE}")
        return options


def _build(config: PixelsConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_pixels.pixels import Pixels

    return Pixels(config, columns)


PIXELS = EncoderSpec(
    name="pixels",
    summary="A small image's pixels in a row: raw data for data-level fusion.",
    source="ours",
    config=PixelsConfig,
    build=_build,
    reads=("file",),
    learns="nothing",
    examples=(
        PixelsConfig(input=ImageOptions(size=8)),
        PixelsConfig(colour="rgb", input=ImageOptions(size=8)),
    ),
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card of the encoder."""
    return [PIXELS]
