"""Deals subjects (or samples): into folds, or a share of them, each stratum alike."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np

from fusionkit.errors import DataError, counted

Units = Mapping[str, str]
"""What is dealt: the id of each subject (or sample) -> its stratum, such as its class."""
Spread = Mapping[str, float | tuple[bool, ...]]
"""By what those of one stratum are dealt alike: id -> a number, by its quantiles; or labels."""

_QUANTILES = 10
"""Parts into which a stratum is cut by its numbers, where it has enough members; ours."""


def deal(units: Units, alike: Spread, strata: Sequence[str], n_folds: int, words: str) -> list[set[str]]:
    """Deals each stratum round, from where the one before ended, so that sizes differ by one at most."""
    dealt: list[set[str]] = [set() for _ in range(n_folds)]
    position = 0
    for name in strata:
        members = _of_stratum(units, name)
        if _has_labels(members, alike):
            sizes = [len(range(fold, len(members), n_folds)) for fold in range(n_folds)]
            for fold, some in zip(dealt, _deal_labels(members, alike, sizes, words), strict=True):
                fold |= some
            continue
        for part in _parts(members, alike, len(members) // n_folds, words):
            for unit in part:
                dealt[position % n_folds].add(unit)
                position += 1
    return dealt


def take(
    units: Units,
    alike: Spread,
    strata: Sequence[str],
    needed: Sequence[str],
    share: float,
    words: str,
    what: str,
    unit: str,
) -> set[str]:
    """Returns a share of each stratum, rounded, at least one where it has two, and never all."""
    taken: set[str] = set()
    problems = []
    for name in strata:
        members = _of_stratum(units, name)
        n_members = len(members)
        if n_members < 2 and name in needed:
            given = counted(n_members, f"'{name}' {unit}") + " to choose from"
            problems.append(
                f"split: train and {what} need one '{name}' {unit} each ({given}). Use more data."
            )
        if not members:
            continue
        n_taken = min(max(1, int(share * n_members + 0.5)), n_members - 1)
        if _has_labels(members, alike):
            taken |= _deal_labels(members, alike, [n_taken, n_members - n_taken], words)[0]
            continue
        # a random start, so that rounding favours no part in every repeat
        place = int(hashlib.sha256(f"{words} start {name}".encode()).hexdigest(), 16) % n_members
        for part in _parts(members, alike, n_taken, words):
            before = place * n_taken // n_members
            place += len(part)
            taken.update(part[: place * n_taken // n_members - before])
    if problems:
        raise DataError(problems)
    return taken


def _shuffle(units: Iterable[str], words: str) -> list[str]:
    """Returns the units in the order of a keyed hash: the same everywhere, whatever the order of rows."""
    units = list(units)
    digests = (hashlib.sha256(f"{words} {unit}".encode()).digest() for unit in units)
    order = np.argsort(np.fromiter(digests, dtype="S32", count=len(units)), kind="stable")
    return [units[place] for place in order.tolist()]


def _of_stratum(units: Units, name: str) -> list[str]:
    return [unit for unit, stratum in units.items() if stratum == name]


def _parts(members: Sequence[str], alike: Spread, n_parts: int, words: str) -> list[list[str]]:
    """Returns those of a stratum by quantiles of their number, each shuffled; all as one without numbers."""
    if not alike:
        return [_shuffle(members, words)]
    ordered = sorted(_shuffle(members, f"{words} ties"), key=alike.__getitem__)
    n_parts = max(1, min(_QUANTILES, n_parts))
    edges = [len(ordered) * part // n_parts for part in range(n_parts + 1)]
    return [_shuffle(ordered[start:stop], words) for start, stop in pairwise(edges)]


def _has_labels(members: Sequence[str], alike: Spread) -> bool:
    return bool(alike and members) and isinstance(alike[members[0]], tuple)


def _deal_labels(members: Sequence[str], alike: Spread, sizes: Sequence[int], words: str) -> list[set[str]]:
    """Deals sets of given sizes, each label in proportion, the label with the fewest left first.

    Source: Sechidis, Tsoumakas and Vlahavas 2011, On the stratification of multi-label data, algorithm 1.
    """
    members = _shuffle(members, words)
    has = np.array([alike[unit] for unit in members], dtype=np.int64)
    room, counts = np.array(sizes), has.sum(0)
    # how many of each label a set still lacks, times the number of members: exact
    lacks = np.outer(room, counts)
    dealt: list[set[str]] = [set() for _ in sizes]
    left = np.ones(len(members), dtype=bool)
    while left.any():
        rarest = int(np.where(counts, counts, len(members) + 1).argmin())
        some = left & (has[:, rarest] > 0) if counts.any() else left
        for place in np.flatnonzero(some).tolist():
            lacking = lacks[:, rarest], lacks @ has[place], room
            # of the sets with room: which lacks the label most, then all labels of this one, then members
            best = max(np.flatnonzero(room).tolist(), key=lambda one: [each[one] for each in lacking])
            dealt[best].add(members[place])
            lacks[best] -= len(members) * has[place]
            room[best] -= 1
        left &= ~some
        counts = counts - has[some].sum(0)
    return dealt
