"""fusionkit: plugin-based multimodal fusion. The public names; heavy ones are loaded on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fusionkit.errors import (
    DataError,
    FusionkitError,
    FusionkitWarning,
    IntegrityError,
    PluginError,
    RecipeError,
    ResourceError,
    suggest,
)
from fusionkit.hookspecs import hookimpl
from fusionkit.interfaces import (
    Cells,
    Cut,
    Encoder,
    Fittable,
    Head,
    InputSpec,
    Raiser,
    SelfSupervised,
    Source,
    SourceContext,
)
from fusionkit.specs import (
    AugmentOptions,
    ColumnSpec,
    ComponentConfig,
    DataFile,
    EncoderSpec,
    HeadSpec,
    ImageOptions,
    RaiserSpec,
    SourceSpec,
    ViewOptions,
)

if TYPE_CHECKING:
    from fusionkit.data.images import ImageInput
    from fusionkit.data.manifest import Manifest
    from fusionkit.data.tables import TabularInput, read_table
    from fusionkit.data.weights import load_weights

__version__ = "0.1.0"
"""This fusionkit's version."""

# These import torch or polars: loaded when first asked for, so that listing and validating stay quick.
_LAZY = {
    "ImageInput": "fusionkit.data.images",
    "Manifest": "fusionkit.data.manifest",
    "TabularInput": "fusionkit.data.tables",
    "load_weights": "fusionkit.data.weights",
    "read_table": "fusionkit.data.tables",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'fusionkit' has no attribute '{name}'")


__all__ = [
    "AugmentOptions",
    "Cells",
    "ColumnSpec",
    "ComponentConfig",
    "Cut",
    "DataError",
    "DataFile",
    "Encoder",
    "EncoderSpec",
    "Fittable",
    "FusionkitError",
    "FusionkitWarning",
    "Head",
    "HeadSpec",
    "ImageInput",
    "ImageOptions",
    "InputSpec",
    "IntegrityError",
    "Manifest",
    "PluginError",
    "Raiser",
    "RaiserSpec",
    "RecipeError",
    "ResourceError",
    "SelfSupervised",
    "Source",
    "SourceContext",
    "SourceSpec",
    "TabularInput",
    "ViewOptions",
    "__version__",
    "hookimpl",
    "load_weights",
    "read_table",
    "suggest",
]
