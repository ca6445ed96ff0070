"""Splits: which rows train, validate and test, by subject and stratified by the subject's outcome."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from types import MappingProxyType

import numpy as np

from fusionkit.data.manifest import Manifest
from fusionkit.errors import DataError
from fusionkit.recipe.schema import SETS, ColumnSplit, FoldSplit, HoldoutSplit

Split = HoldoutSplit | FoldSplit | ColumnSplit
Units = Mapping[str, str]
"""What is dealt: the id of each subject (or sample) -> its stratum, such as its class."""
Spread = Mapping[str, float | tuple[bool, ...]]
"""By what those of one stratum are dealt alike: id -> a number, by its quantiles; or labels."""

_SHOWN = 20
_QUANTILES = 10
"""Parts into which a stratum is cut by its numbers, where it has enough members; ours."""


@dataclass(frozen=True)
class Fold:
    """The rows of one training and its test, in the data's order.

    Args:
        repeat: Which shuffle, from 0.
        fold: Which fold of it, from 0.
        train: Rows to learn from.
        validation: Rows for early stopping and thresholds; empty where the split asks for none.
        test: Rows to test on.
        left_out: Rows in no set: their outcome is unknown, or the split does not name their value.
    """

    repeat: int
    fold: int
    train: tuple[int, ...]
    validation: tuple[int, ...]
    test: tuple[int, ...]
    left_out: tuple[int, ...] = ()


def make_folds(
    split: Split,
    manifest: Manifest,
    subject_outcomes: Mapping[str, str],
    seed: int,
    needed: Sequence[str] | None = None,
    spread: Spread = MappingProxyType({}),
) -> list[Fold]:
    """Returns every fold of every repeat.

    The order of rows has no influence, and more `repeats` leave the earlier ones as they are.

    Args:
        split: The recipe's split.
        manifest: The rows.
        subject_outcomes: Stratum of each subject; one that is not named here is in no set.
        seed: The recipe's seed.
        needed: The strata that every set must have; by default all.
        spread: What else to stratify by, of each subject; nothing by default.

    Raises:
        DataError: A set would lack a stratum that is needed, or a subject would be in two sets.
    """
    needed = manifest.classes if needed is None else needed
    if isinstance(split, ColumnSplit):
        return [_split_by_column(split, manifest, subject_outcomes, needed)]
    by_sample = split.unit == "sample"
    owners = manifest.samples if by_sample else manifest.subjects
    usable = _usable_rows(manifest, subject_outcomes)
    strata = (
        manifest.outcomes if by_sample else [subject_outcomes.get(subject) for subject in manifest.subjects]
    )
    units = {owners[row]: str(strata[row]) for row in usable}
    alike = {owners[row]: spread[manifest.subjects[row]] for row in usable} if spread else {}
    _check_strata(units, needed, split.unit)
    folds = []
    for repeat in range(split.repeats):
        if isinstance(split, FoldSplit):
            dealt = _deal(units, alike, manifest.classes, split.folds, f"{seed} split {repeat}")
            _check_folds(dealt, units, needed, split.unit)
        else:
            words = f"{seed} split {repeat}"
            dealt = [_take(units, alike, manifest.classes, needed, split.test, words, "test", split.unit)]
        for fold, test in enumerate(dealt):
            learning = {unit: name for unit, name in units.items() if unit not in test}
            validation: set[str] = set()
            if split.validation:
                words = f"{seed} validation {repeat} {fold}"
                share = split.validation
                validation = _take(
                    learning, alike, manifest.classes, needed, share, words, "validation", split.unit
                )
            sets = {unit: "train" for unit in learning} | dict.fromkeys(validation, "validation")
            folds.append(_fold(repeat, fold, owners, usable, sets | dict.fromkeys(test, "test")))
    return folds


def _usable_rows(manifest: Manifest, subject_outcomes: Mapping[str, str]) -> list[int]:
    return [
        row
        for row in range(len(manifest))
        if manifest.outcomes[row] is not None and manifest.subjects[row] in subject_outcomes
    ]


def _fold(
    repeat: int, fold: int, owners: Sequence[str], usable: Iterable[int], sets: Mapping[str, str]
) -> Fold:
    rows: dict[str, list[int]] = defaultdict(list)
    is_usable = bytearray(len(owners))  # of a million rows, a set would take much memory
    for row in usable:
        is_usable[row] = True
    for row, owner in enumerate(owners):
        rows[sets.get(owner, "") if is_usable[row] else ""].append(row)
    return Fold(repeat, fold, *(tuple(rows[name]) for name in (*SETS, "")))


def _shuffle(units: Iterable[str], words: str) -> list[str]:
    """Returns the units in the order of a keyed hash: the same everywhere, whatever the order of rows."""
    units = list(units)
    digests = (hashlib.sha256(f"{words} {unit}".encode()).digest() for unit in units)
    order = np.argsort(np.fromiter(digests, dtype="S32", count=len(units)), kind="stable")
    return [units[place] for place in order.tolist()]


def _of_stratum(units: Units, name: str) -> list[str]:
    return [unit for unit, stratum in units.items() if stratum == name]


def _deal(units: Units, alike: Spread, strata: Sequence[str], n_folds: int, words: str) -> list[set[str]]:
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


def _take(
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
            given = f"{n_members} '{name}' {_plural(unit, n_members)} to choose from"
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


def _plural(unit: str, count: int) -> str:
    return unit if count == 1 else unit + "s"


def _check_strata(units: Units, needed: Sequence[str], unit: str) -> None:
    counts = Counter(units.values())
    problems = [
        f"split: there is no '{name}' {unit} ({len(units)} {_plural(unit, len(units))} with a known "
        "outcome). "
        + (f"Every class must be there: {', '.join(needed)}." if len(needed) > 1 else "Use other data.")
        for name in needed
        if not counts[name]
    ]
    if problems:
        raise DataError(problems)


def _check_folds(dealt: Sequence[set[str]], units: Units, needed: Sequence[str], unit: str) -> None:
    counts = Counter(units.values())
    n_folds, least = len(dealt), min(counts[name] for name in needed)
    advice = f"Use at most {least} folds." if least > 1 else "Use more data."
    problems = []
    for name in needed:
        lacking = [
            number for number, test in enumerate(dealt, 1) if not any(units[one] == name for one in test)
        ]
        if lacking:
            problems.append(
                f"split: fold {lacking[0]} of {n_folds} would test no '{name}' {unit} "
                f"({counts[name]} '{name}' {_plural(unit, counts[name])} in all). {advice}"
            )
    if problems:
        raise DataError(problems)


def _split_by_column(
    split: ColumnSplit, manifest: Manifest, subject_outcomes: Mapping[str, str], needed: Sequence[str]
) -> Fold:
    manifest.require_columns([split.column], "split")
    set_of = {value: name for name in SETS for value in getattr(split, name)}
    usable = _usable_rows(manifest, subject_outcomes)
    texts = manifest.cells[split.column].to_list()
    rows: dict[str, list[int]] = {name: [] for name in SETS}
    for row in usable:
        if texts[row] in set_of:
            rows[set_of[texts[row]]].append(row)
    used = {row: name for name, members in rows.items() for row in members}
    problems = _crossing_subjects(split.column, used, manifest)
    for name, members in rows.items():
        if name == "validation" and not split.validation:
            continue
        held = {subject_outcomes[manifest.subjects[row]] for row in members}
        problems += [
            f"split: the {name} rows hold no '{outcome}' subject (column '{split.column}': "
            f"{', '.join(getattr(split, name))}). Every set needs: {', '.join(needed)}."
            for outcome in needed
            if outcome not in held
        ]
    if problems:
        raise DataError(problems)
    left_out = tuple(row for row in range(len(manifest)) if row not in used)
    train, validation, test = (tuple(members) for members in rows.values())
    return Fold(0, 0, train, validation, test, left_out)


def _crossing_subjects(column: str, used: Mapping[int, str], manifest: Manifest) -> list[str]:
    sides: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for row, name in used.items():
        sides[manifest.subjects[row]][name].append(manifest.samples[row])
    crossing = {subject: sets for subject, sets in sides.items() if len(sets) > 1}
    problems = []
    for subject in sorted(crossing)[:_SHOWN]:
        where = ", ".join(
            f"{name}: {' '.join(sorted(ids)[:_SHOWN])}" for name, ids in crossing[subject].items()
        )
        problems.append(
            f"split: subject {subject} is on several sides of '{column}' ({where}). Put it on one side."
        )
    if n_more := max(0, len(crossing) - _SHOWN):
        who = "subject is" if n_more == 1 else "subjects are"
        problems.append(f"split: and {n_more} more {who} on several sides of '{column}'.")
    return problems
