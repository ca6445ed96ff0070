"""Features of images that nobody has to learn: colour, grey-level co-occurrence, local binary patterns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field, field_validator, model_validator

from fusionkit import ColumnSpec, ComponentConfig, EncoderSpec, ImageOptions, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder

Pixels = Annotated[int, Field(ge=1, le=64)]


class HandcraftedConfig(ComponentConfig):
    """Options of handcrafted."""

    histogram: int = Field(16, ge=0, le=256)
    """Bins of each colour's histogram; 0 for none."""
    moments: bool = True
    """Mean, deviation and skewness of each colour (Stricker and Orengo 1995)."""
    glcm: tuple[Pixels, ...] = Field((1, 3), max_length=64)
    """Distances in pixels of grey-level co-occurrence (Haralick et al. 1973); [] for none."""
    glcm_levels: int = Field(32, ge=2, le=256)
    """Grey levels that co-occurrence tells apart."""
    lbp: tuple[Pixels, ...] = Field((1, 2, 3), max_length=64)
    """Radii in pixels of uniform local binary patterns of 8 points (Ojala et al. 2002); [] for none."""
    input: ImageOptions = ImageOptions()
    """How an image file becomes a tensor; its mean and std do not matter here."""

    @field_validator("glcm", "lbp")
    @classmethod
    def _check_once(cls, pixels: tuple[int, ...]) -> tuple[int, ...]:
        if list(pixels) != sorted(set(pixels)):
            raise ValueError("name each number of pixels once, in rising order")
        return pixels

    @model_validator(mode="after")
    def _check_some(self) -> HandcraftedConfig:
        if not (self.histogram or self.moments or self.glcm or self.lbp):
            raise ValueError("no feature is left: ask for histogram, moments, glcm or lbp")
        reach = max((*self.glcm, *(2 * radius for radius in self.lbp)), default=0)
        if reach >= self.input.size:
            raise ValueError("a distance of `glcm`, or twice a radius of `lbp`, is as large as the picture")
        return self


def _build(config: HandcraftedConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_handcrafted.features import Handcrafted

    return Handcrafted(config, columns)


SMALL = ImageOptions(size=32)

HANDCRAFTED = EncoderSpec(
    name="handcrafted",
    summary="Colour histograms and moments, grey-level co-occurrence, local binary patterns; nothing learns.",
    source="arXiv:1803.11241 (Cao et al. 2018), doi:10.1109/TBME.2015.2496264 (Spanhol et al. 2016)",
    config=HandcraftedConfig,
    build=_build,
    reads=("file",),
    learns="nothing",
    examples=(
        HandcraftedConfig(input=SMALL),
        HandcraftedConfig(histogram=0, moments=False, glcm=(), lbp=(2,), input=SMALL),
    ),
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card of this plugin."""
    return [HANDCRAFTED]
