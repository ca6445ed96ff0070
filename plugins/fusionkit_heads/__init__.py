"""Fusion heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

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
    rule: Literal["average", "weighted", "stacked"] = "average"
    """average: the mean of the present modalities' probabilities (Kittler et al. 1998,
    doi:10.1109/34.667881); weighted: with a learned weight per modality (Jacobs et al. 1991,
    doi:10.1162/neco.1991.3.1.79); stacked: a linear layer on all of them (Wolpert 1992,
    doi:10.1016/S0893-6080(05)80023-1, who learns it from held-out answers; here all learn together)."""


def _build_decision(config: DecisionConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_heads.decision import Decision

    return Decision(config, input_dims, output_dim)


DECISION = HeadSpec(
    name="decision",
    summary="A classifier per modality; their probabilities are averaged, weighted or stacked.",
    source="Kittler et al. 1998, doi:10.1109/34.667881; of the other rules: see rule",
    config=DecisionConfig,
    build=_build_decision,
    tasks=("classification",),  # it joins probabilities of classes
    examples=(
        DecisionConfig(hidden=(4,)),
        DecisionConfig(hidden=(), rule="weighted"),
        DecisionConfig(hidden=(4,), rule="stacked"),
    ),
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


class GatedConfig(ComponentConfig):
    """Options of gated; the numbers are ours."""

    width: int = Field(128, ge=1, le=100_000)
    """Width of each modality's hidden vector, and of their gated sum."""
    gates: Literal["tied", "untied"] = "tied"
    """tied: of one feature, the present modalities' gates add up to 1 (the paper's unit for two); untied:
    each is a sigmoid of its own (its unit for more)."""
    hidden: Widths = Field((), max_length=20)
    """Widths of the hidden layers between sum and output."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on the sum and after every hidden layer."""
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on each modality's features."""


def _build_gated(config: GatedConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_heads.gated import Gated

    return Gated(config, input_dims, output_dim)


GATED = HeadSpec(
    name="gated",
    summary="Gated multimodal unit: how much of each modality counts is decided per row and feature.",
    source="Arevalo et al. 2017, Gated multimodal units for information fusion, arXiv:1702.01992",
    config=GatedConfig,
    build=_build_gated,
    examples=(GatedConfig(width=6), GatedConfig(width=6, gates="untied", hidden=(4,))),
)


class LowRankConfig(ComponentConfig):
    """Options of low_rank; the numbers are ours."""

    rank: int = Field(4, ge=1, le=10_000)
    """How many products are added up."""
    width: int = Field(64, ge=1, le=100_000)
    """Width of the fused vector."""
    hidden: Widths = Field((), max_length=20)
    """Widths of the hidden layers between fused vector and output."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout on the fused vector and after every hidden layer."""
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on each modality's features."""


def _build_low_rank(config: LowRankConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_heads.low_rank import LowRank

    return LowRank(config, input_dims, output_dim)


LOW_RANK = HeadSpec(
    name="low_rank",
    summary="Low-rank multimodal fusion: products of features of all modalities, of low rank.",
    source="Liu et al. 2018, Efficient low-rank multimodal fusion, doi:10.18653/v1/P18-1209",
    config=LowRankConfig,
    build=_build_low_rank,
    examples=(LowRankConfig(rank=2, width=6), LowRankConfig(rank=1, width=6, hidden=(4,))),
)


class CrossAttentionConfig(ComponentConfig):
    """Options of cross_attention; the numbers are ours."""

    n_tokens: int = Field(1, ge=1, le=1000)
    """Tokens of each modality, each a linear map of its whole feature vector."""
    encoder_tokens: bool = False
    """Read the tokens of encoders that give some (places of an image, words, tiles); else one a modality."""
    width: int = Field(64, ge=1, le=100_000)
    """Width of a token; a multiple of n_attention_heads."""
    n_layers: int = Field(1, ge=1, le=100)
    """How often tokens attend to each other."""
    n_attention_heads: int = Field(4, ge=1, le=1000)
    """Attentions side by side, each of an equal part of the width."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on what attention and layers add to a token (Vaswani et al. 2017: 0.1)."""
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on each modality's features."""

    @model_validator(mode="after")
    def _check_width(self) -> CrossAttentionConfig:
        if self.width % self.n_attention_heads:
            raise ValueError(
                f"width is a multiple of n_attention_heads ({self.width} of {self.n_attention_heads})"
            )
        if self.encoder_tokens and self.n_tokens != 1:
            raise ValueError(f"`n_tokens` are made where `encoder_tokens` is false ({self.n_tokens}). Set 1")
        return self


def _build_cross_attention(
    config: CrossAttentionConfig, input_dims: Mapping[str, int], output_dim: int
) -> Head:
    from fusionkit_heads.attention import CrossAttention

    return CrossAttention(config, input_dims, output_dim)


CROSS_ATTENTION = HeadSpec(
    name="cross_attention",
    summary="A small transformer: tokens of all modalities attend to each other.",
    source="Vaswani et al. 2017, arXiv:1706.03762; one sequence of tokens: Li et al. 2019, arXiv:1908.03557",
    config=CrossAttentionConfig,
    build=_build_cross_attention,
    takes_tokens=lambda config: config.encoder_tokens,
    examples=(
        CrossAttentionConfig(width=8, n_attention_heads=2),
        CrossAttentionConfig(width=6, n_attention_heads=1, n_tokens=3, n_layers=2),
        CrossAttentionConfig(width=8, n_attention_heads=2, encoder_tokens=True),
    ),
)


class FilmConfig(ComponentConfig):
    """Options of film; the numbers are those of concat_mlp."""

    modulated: str | None = None
    """The modality that the others modulate; null for the recipe's first."""
    hidden: Widths = Field((500, 100), min_length=1, max_length=20)
    """Widths of the hidden layers, each of which is modulated."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout after every hidden layer."""
    input_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on each modality's features."""


def _build_film(config: FilmConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_heads.film import Film

    return Film(config, input_dims, output_dim)


FILM = HeadSpec(
    name="film",
    summary="One modality's layers, scaled and shifted by what the other modalities say.",
    source="Perez et al. 2018, FiLM: visual reasoning with a general conditioning layer, arXiv:1709.07871",
    config=FilmConfig,
    build=_build_film,
    examples=(FilmConfig(hidden=(6,)), FilmConfig(hidden=(6, 4))),
)


@hookimpl
def fusionkit_components() -> Sequence[HeadSpec]:
    """Returns the cards of this plugin."""
    return [CONCAT_MLP, DECISION, BIMODAL_AUTOENCODER, GATED, LOW_RANK, CROSS_ATTENTION, FILM]
