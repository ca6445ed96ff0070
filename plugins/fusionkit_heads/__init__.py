"""Fusion heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fusionkit import ComponentConfig, HeadSpec, hookimpl

if TYPE_CHECKING:
    from fusionkit import Head


Widths = tuple[Annotated[int, Field(ge=1, le=100_000)], ...]
"""Of the hidden layers of a classifier."""


class ConcatMlpConfig(ComponentConfig):
    """Options of concat_mlp."""

    hidden: Widths = Field((500, 100), max_length=20)
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


class DecisionConfig(ComponentConfig):
    """Options of decision."""

    hidden: Widths = Field((500, 100), max_length=20)
    """Widths of the hidden layers of each modality's own classifier; those of concat_mlp by default."""
    activation: Literal["relu", "tanh"] = "relu"
    """What follows every hidden layer."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout after every hidden layer."""
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on each modality's features."""
    weights: Literal["equal", "learned"] = "equal"
    """equal: the mean of the present modalities' probabilities; learned: a weight per modality."""


def _build_decision(config: DecisionConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_heads.decision import Decision

    return Decision(config, input_dims, output_dim)


DECISION = HeadSpec(
    name="decision",
    summary="A classifier per modality; the probabilities of those that are there are averaged.",
    source="decision-level fusion; learned weights: Jacobs et al. 1991, doi:10.1162/neco.1991.3.1.79",
    config=DecisionConfig,
    build=_build_decision,
    examples=(DecisionConfig(hidden=(4,)), DecisionConfig(hidden=(), weights="learned")),
)


class BimodalAutoencoderConfig(ComponentConfig):
    """Options of bimodal_autoencoder; the paper's are of other data, these are ours."""

    hidden: int = Field(128, ge=1, le=100_000)
    """Width of each modality's own layer, on both sides of the code."""
    code: int = Field(64, ge=1, le=100_000)
    """Width of the code that the modalities share."""
    activation: Literal["sigmoid", "tanh", "relu"] = "sigmoid"
    """What follows every layer but the last."""
    classifier: Widths = Field((), max_length=20)
    """Widths of the hidden layers between code and output; the paper has none."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the code and after every hidden layer of the classifier."""
    finetune: bool = False
    """Whether a train stage trains what gives the code, too, and not the classifier alone."""


def _build_bimodal(config: BimodalAutoencoderConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_heads.bimodal import BimodalAutoencoder

    return BimodalAutoencoder(config, input_dims, output_dim)


BIMODAL_AUTOENCODER = HeadSpec(
    name="bimodal_autoencoder",
    summary="A shared code, learned by restoring all modalities from all and from each alone.",
    source="Ngiam et al. 2011, Multimodal deep learning, ICML",
    config=BimodalAutoencoderConfig,
    build=_build_bimodal,
    learns="self_supervised",
    examples=(
        BimodalAutoencoderConfig(hidden=6, code=4),
        BimodalAutoencoderConfig(hidden=6, code=4, classifier=(3,), finetune=True),
    ),
)


@hookimpl
def fusionkit_components() -> Sequence[HeadSpec]:
    """Returns the cards of this plugin."""
    return [CONCAT_MLP, DECISION, BIMODAL_AUTOENCODER]
