"""Many rows with one mistake are told in one sentence, with their number and the first of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fusionkit.errors import shorten

FEW = 3
"""So many are told one by one."""
_NAMED = 3
# a row as `Manifest.where` names it: of the data, or of a table of rows to predict
_ROW = re.compile(r"(?:sample (?P<id>.+?) \(subject .*?\)|.+?: (?P<row>row\d+)(?: \(.*?\))?): ")
# what was given, and what of it was meant: all else says what kind of mistake it is
_GIVEN = re.compile(r"\(.*\)|Did you mean '.*'\? |\S*/\S+")


def tell_once(sentences: Sequence[str]) -> list[tuple[str, int]]:
    """Returns the sentences with how many rows each is about; those that tell the same mistake as one.

    Args:
        sentences: Of single rows, as `Manifest.where` names them; others stay as they are.
    """
    groups: dict[str, list[str]] = {}
    for sentence in sentences:
        groups.setdefault(_kind(sentence), []).append(sentence)
    told: list[tuple[str, int]] = []
    for sentence in sentences:
        alike = groups[_kind(sentence)]
        if 0 < len(alike) <= FEW:
            told.append((sentence, 1))
        elif alike:
            told.append((f"{sentence} {_others(alike[1:])}", len(alike)))
            groups[_kind(sentence)] = []  # told
    return told


def _others(sentences: Sequence[str]) -> str:
    rows = [found["id"] or found["row"] for found in map(_ROW.match, sentences) if found]
    more = ", ..." if len(rows) > _NAMED else ""
    noun = "row" if len(sentences) == 1 else "rows"
    return f"Alike: {len(sentences)} more {noun} ({', '.join(map(shorten, rows[:_NAMED]))}{more})."


def _kind(sentence: str) -> str:
    """Returns what a sentence of a row has in common with those that are alike."""
    row = _ROW.match(sentence)
    return _GIVEN.sub("", sentence[row.end() :]) if row else sentence
