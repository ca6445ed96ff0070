"""A hashed bag of words; torch and numpy load here, not when components are listed."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionkit import Cells, ColumnSpec, Cut, InputSpec, PluginError
from fusionkit_text import HashedWordsConfig
from fusionkit_text.text_input import OneText

VERSION = 1
"""Part of every address: raised when the same text would give other counts."""
_WORD = re.compile(r"[0-9]+(?:[.,][0-9]+)+|\w+")
"""A number with its decimals, or a run of letters, digits and underscores."""


def words_of(text: str) -> list[str]:
    """Returns a text's words: Unicode's NFKC, then case folded, so that STRASSE and straße are one word."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return _WORD.findall(folded)


def count_hashed(words: Sequence[str], width: int, ngrams: int) -> NDArray[np.float32]:
    """Returns (width,): every word, and every pair where asked for, adds 1 or -1 at the place of its hash.

    The hash is blake2b, the same on every machine and in every process: Python's own is not.
    """
    counts = np.zeros(width, dtype=np.float32)
    pairs = [f"{one} {other}" for one, other in pairwise(words)] if ngrams == 2 else []
    for gram in [*words, *pairs]:
        number = int.from_bytes(hashlib.blake2b(gram.encode(), digest_size=8).digest(), "big")
        counts[(number >> 1) % width] += 1 if number & 1 else -1
    return counts


class WordsInput(OneText):
    """Reads a text as hashed counts; an item is an array (width,), a batch a tensor (n, width)."""

    def __init__(self, config: HashedWordsConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__(columns)
        self.width, self.ngrams = config.width, config.ngrams

    def identity(self) -> Mapping[str, Any]:
        """Returns all that changes the counts."""
        return {
            "input": "hashed_words",
            "version": VERSION,
            "width": self.width,
            "ngrams": self.ngrams,
            "unicode": unicodedata.unidata_version,
        }

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Counts once and returns the array for each cut."""
        counts = count_hashed(words_of(self.text(cells)), self.width, self.ngrams)
        return [counts for _ in cuts]

    def collate(self, items: Sequence[Any]) -> Tensor:
        """Stacks arrays into (n, width), float32."""
        return torch.from_numpy(np.stack(items))


class HashedWords(nn.Module):
    """Weighs hashed counts by rarity and gives each text length 1.

    Shape:
        (n, width) -> (n, width); a text whose words cancel out is zero.
    """

    weight: Tensor
    is_fitted: Tensor

    def __init__(self, config: HashedWordsConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.input_spec: InputSpec = WordsInput(config, columns)
        self.output_dim = config.width
        self.has_idf = config.idf
        self.register_buffer("weight", torch.ones(config.width))
        self.register_buffer("is_fitted", torch.tensor(not config.idf))

    def fit(self, inputs: Tensor, targets: Any = None, *, seed: int) -> Self:
        """Learns how rare each feature is in the training texts; forgets an earlier fit."""
        if self.has_idf:
            n_with_it = (inputs != 0).sum(0).double()
            self.weight.copy_(torch.log((1 + len(inputs)) / (1 + n_with_it)) + 1)
            self.is_fitted.fill_(True)
        return self

    def forward(self, counts: Tensor) -> Tensor:
        """Returns (n, output_dim); raises PluginError before it was fitted."""
        if not self.is_fitted:
            raise PluginError("hashed_words: not fitted yet. Name this encoder in a fit or train stage.")
        return nn.functional.normalize(counts * self.weight, dim=1)
