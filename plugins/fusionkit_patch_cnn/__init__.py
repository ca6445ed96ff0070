"""Small convolutional networks that were designed for patches of breast tissue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from fusionkit import ColumnSpec, ComponentConfig, EncoderSpec, ImageOptions, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder


class PatchCnnConfig(ComponentConfig):
    """Options of patch_cnn."""

    layers: Literal["araujo", "spanhol"] = "araujo"
    """araujo: five convolutions of 3 x 3, then 256 and 128 nodes; spanhol: three of 5 x 5, then 64 nodes."""
    input: ImageOptions = ImageOptions(size=64)
    """How an image file becomes a tensor. The originals saw 512 pixels (araujo), 32 and 64 (spanhol)."""


def _build(config: PatchCnnConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_patch_cnn.network import PatchCnn

    return PatchCnn(config, columns)


PATCH_CNN = EncoderSpec(
    name="patch_cnn",
    summary="Small convolutional networks on patches: Araujo et al. 2017, Spanhol et al. 2016.",
    source="doi:10.1371/journal.pone.0177544, doi:10.1109/IJCNN.2016.7727519",
    config=PatchCnnConfig,
    build=_build,
    reads=("file",),
    examples=(PatchCnnConfig(), PatchCnnConfig(layers="spanhol", input=ImageOptions(size=32))),
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card of this plugin."""
    return [PATCH_CNN]
