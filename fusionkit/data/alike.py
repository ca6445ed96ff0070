"""Many rows with one mistake are told in one sentence, with their number and the first of them."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fusionkit.errors import shorten

FEW = 3
"""So many are told one by one."""
_NAMED = 3
_ROW = re.compile(r"sample (?P<id>.+?) \(subject .*?\): ")
# what was given, and what of it was meant: all else says what kind of mistake it is
_GIVEN = re.compile(r"\(.*\)|Did you mean '.*'\? |\S*/\S+")


def tell_once(sentences: Sequence[str]) -> list[tuple[str, int]]:
    """Returns the sentences with how many rows each is about; those that tell the same mistake as one.

    Args:
        sentences: Of single rows, as `Manifest.where` names them; others stay as they are.
    """
    groups: dict[str, list[str]] = {}
    for sentence in sentences:
        row = _ROW.match(sentence)
        kind = _GIVEN.sub("", sentence[row.end() :]) if row else sentence
        groups.setdefault(kind, []).append(sentence)
    many = {alike[0]: alike for alike in groups.values() if len(alike) > FEW}
    left_out = {sentence for alike in many.values() for sentence in alike[1:]}
    return [
        (f"{sentence} {_others(many[sentence][1:])}", len(many[sentence]))
        if sentence in many
        else (sentence, 1)
        for sentence in dict.fromkeys(sentences)
        if sentence not in left_out
    ]


def _others(sentences: Sequence[str]) -> str:
    rows = [found["id"] for found in map(_ROW.match, sentences) if found]
    more = ", ..." if len(rows) > _NAMED else ""
    return f"Alike: {len(sentences)} more rows ({', '.join(map(shorten, rows[:_NAMED]))}{more})."
