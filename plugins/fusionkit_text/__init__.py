"""Encoders of free text, such as clinical notes: hashed words, or a transformer from a local folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fusionkit import ColumnSpec, ComponentConfig, DataFile, EncoderSpec, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder


class HashedWordsConfig(ComponentConfig):
    """Options of hashed_words."""

    width: int = Field(1024, ge=16, le=65536)
    """How many features; words that fall on one feature are told apart by their signs, half of them. Ours."""
    ngrams: Literal[1, 2] = 2
    """1: single words; 2: pairs of neighbours, too."""
    idf: bool = True
    """Whether rare words weigh more, by ln((1 + n) / (1 + n_with_it)) + 1 over the training texts; then a
    stage has to name the encoder."""


class TransformersConfig(ComponentConfig):
    """Options of transformers_text."""

    model: DataFile
    """The model.safetensors of a model's folder; its config.json and tokenizer.json lie beside it."""
    pooling: Literal["mean", "cls"] = "mean"
    """mean: of all tokens that are no padding; cls: the first token, which BERT and its kin train for it."""
    length: int = Field(256, ge=2, le=8192)
    """Most tokens that are read, special ones included; what comes after is cut off. Ours."""


def _build_words(config: HashedWordsConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_text.words import HashedWords

    return HashedWords(config, columns)


def _build_transformer(config: TransformersConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_text.transformer import TransformersText

    return TransformersText(config, columns)


HASHED_WORDS = EncoderSpec(
    name="hashed_words",
    summary="Words and pairs of words of a text, hashed to a fixed width, weighed by rarity, of length 1.",
    source="Weinberger et al. 2009, doi:10.1145/1553374.1553516 (signed hashing); idf as in scikit-learn",
    config=HashedWordsConfig,
    build=_build_words,
    reads=("text",),
    learns="closed_form",
    # without weights of words there is nothing that a stage could learn
    is_pretrained=lambda config: not config.idf,
    examples=(HashedWordsConfig(width=32), HashedWordsConfig(width=16, ngrams=1, idf=False)),
)

TRANSFORMERS_TEXT = EncoderSpec(
    name="transformers_text",
    summary="A transformer of texts from a local folder, its tokens pooled (extra: text).",
    source="https://github.com/huggingface/transformers",
    config=TransformersConfig,
    build=_build_transformer,
    reads=("text",),
    is_pretrained=lambda config: True,
    gives_tokens=lambda config: True,
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the cards of the encoders."""
    return [HASHED_WORDS, TRANSFORMERS_TEXT]
