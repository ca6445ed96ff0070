"""Splits: which rows train, validate and test, by subject and stratified by the subject's outcome."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fusionkit.data.manifest import Manifest
from fusionkit.errors import DataError
from fusionkit.recipe.schema import SETS, ColumnSplit, FoldSplit, HoldoutSplit

Split = HoldoutSplit | FoldSplit | ColumnSplit
Units = Mapping[str, str]
"""What is dealt: the id of each subject (or sample) -> its class."""

_SHOWN = 20


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
) -> list[Fold]:
    """Returns every fold of every repeat.

    The order of rows has no influence, and more `repeats` leave the earlier ones as they are.

    Args:
        split: The recipe's split.
        manifest: The rows.
        subject_outcomes: Class of each subject; one that is not named here is in no set.
        seed: The recipe's seed.
        needed: The classes that every set must have; by default all.

    Raises:
        DataError: A set would lack a class, or a subject would be in two sets.
    """
    needed = manifest.classes if needed is None else needed
    if isinstance(split, ColumnSplit):
        return [_split_by_column(split, manifest, subject_outcomes, needed)]
    by_sample = split.unit == "sample"
    owners = manifest.samples if by_sample else manifest.subjects
    usable = _usable_rows(manifest, subject_outcomes)
    classes = (
        manifest.outcomes if by_sample else [subject_outcomes.get(subject) for subject in manifest.subjects]
    )
    units = {owners[row]: str(classes[row]) for row in usable}
    _check_classes(units, needed, split.unit)
    folds = []
    for repeat in range(split.repeats):
        if isinstance(split, FoldSplit):
            dealt = _deal(units, manifest.classes, split.folds, f"{seed} split {repeat}")
            _check_folds(dealt, units, needed, split.unit)
        else:
            words = f"{seed} split {repeat}"
            dealt = [_take(units, manifest.classes, needed, split.test, words, "test", split.unit)]
        for fold, test in enumerate(dealt):
            learning = {unit: name for unit, name in units.items() if unit not in test}
            validation: set[str] = set()
            if split.validation:
                words = f"{seed} validation {repeat} {fold}"
                validation = _take(
                    learning, manifest.classes, needed, split.validation, words, "validation", split.unit
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


def _of_class(units: Units, name: str) -> list[str]:
    return [unit for unit, class_name in units.items() if class_name == name]


def _deal(units: Units, classes: Sequence[str], n_folds: int, words: str) -> list[set[str]]:
    """Deals each class round, from where the class before ended, so that sizes differ by one at most."""
    dealt: list[set[str]] = [set() for _ in range(n_folds)]
    position = 0
    for name in classes:
        for unit in _shuffle(_of_class(units, name), words):
            dealt[position % n_folds].add(unit)
            position += 1
    return dealt


def _take(
    units: Units,
    classes: Sequence[str],
    needed: Sequence[str],
    share: float,
    words: str,
    what: str,
    unit: str,
) -> set[str]:
    """Returns a share of each class, rounded, at least one of it and never all."""
    taken: set[str] = set()
    problems = []
    for name in classes:
        members = _shuffle(_of_class(units, name), words)
        if len(members) < 2 and name in needed:
            given = f"{len(members)} {name} {_plural(unit, len(members))} to choose from"
            problems.append(f"split: train and {what} need one {name} {unit} each ({given}). Use more data.")
        taken.update(members[: min(max(1, int(share * len(members) + 0.5)), max(0, len(members) - 1))])
    if problems:
        raise DataError(problems)
    return taken


def _plural(unit: str, count: int) -> str:
    return unit if count == 1 else unit + "s"


def _check_classes(units: Units, classes: Sequence[str], unit: str) -> None:
    counts = Counter(units.values())
    problems = [
        f"split: there is no {name} {unit} ({len(units)} {_plural(unit, len(units))} with a known outcome). "
        + (f"Every class must be there: {', '.join(classes)}." if len(classes) > 1 else "Use other data.")
        for name in classes
        if not counts[name]
    ]
    if problems:
        raise DataError(problems)


def _check_folds(dealt: Sequence[set[str]], units: Units, classes: Sequence[str], unit: str) -> None:
    counts = Counter(units.values())
    n_folds, least = len(dealt), min(counts[name] for name in classes)
    advice = f"Use at most {least} folds." if least > 1 else "Use more data."
    problems = []
    for name in classes:
        lacking = [
            number for number, test in enumerate(dealt, 1) if not any(units[one] == name for one in test)
        ]
        if lacking:
            problems.append(
                f"split: fold {lacking[0]} of {n_folds} would test no {name} {unit} "
                f"({counts[name]} {name} {_plural(unit, counts[name])} in all). {advice}"
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
            f"split: the {name} rows hold no {outcome} subject (column '{split.column}': "
            f"{', '.join(getattr(split, name))}). Every set needs every class."
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
