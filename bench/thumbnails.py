"""A plugin for the measurements of memory: features as wide as VGG16's, at no cost to speak of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit import ColumnSpec, ComponentConfig, EncoderSpec, ImageInput, ImageOptions, hookimpl


class ThumbnailConfig(ComponentConfig):
    """Options of thumbnail."""

    input: ImageOptions = ImageOptions(size=8)
    """How a file becomes a tensor."""


def build(config: ThumbnailConfig, columns: Mapping[str, ColumnSpec]) -> Any:
    import torch
    from torch import nn

    class Thumbnail(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_spec, self.output_dim = ImageInput(config.input, columns), 1280
            self.register_buffer("directions", torch.randn(3 * config.input.size**2, self.output_dim) / 8)

        def forward(self, images: Any) -> Any:
            return (self.input_spec.normalize(images).flatten(1) @ self.get_buffer("directions")).tanh()

    return Thumbnail()


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card."""
    return [
        EncoderSpec(
            name="thumbnail",
            summary="An 8 x 8 image along random directions.",
            source="ours",
            config=ThumbnailConfig,
            build=build,
            reads=("file",),
            learns="nothing",
        )
    ]
