"""Fusion heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fusionkit import ComponentConfig, HeadSpec, hookimpl

if TYPE_CHECKING:
    from fusionkit import Head


class ConcatMlpConfig(ComponentConfig):
    """Options of concat_mlp."""

    hidden: tuple[Annotated[int, Field(ge=1, le=100_000)], ...] = Field((500, 100), max_length=20)
    """Widths of the hidden layers (Yan et al. 2021: 500, 100)."""
    activation: Literal["relu", "tanh"] = "relu"
    """What follows every hidden layer; the paper does not say."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout after every hidden layer; the paper does not say. 0.5 is ours."""
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the joined features; ours."""


def _build_concat_mlp(config: ConcatMlpConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_heads.concat import ConcatMlp

    return ConcatMlp(config, input_dims, output_dim)


CONCAT_MLP = HeadSpec(
    name="concat_mlp",
    summary="Joins all features end to end, then fully connected layers.",
    source="doi:10.1186/s12911-020-01340-6",
    config=ConcatMlpConfig,
    build=_build_concat_mlp,
    examples=(ConcatMlpConfig(hidden=(8, 4)), ConcatMlpConfig(hidden=())),
)


@hookimpl
def fusionkit_components() -> Sequence[HeadSpec]:
    """Returns the cards of this plugin."""
    return [CONCAT_MLP]
