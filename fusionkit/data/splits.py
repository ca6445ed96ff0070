"""Splits: from a recipe to folds, which rows train, validate and test, by subject."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from fusionkit.data.dealing import Spread, Units, deal, take
from fusionkit.data.manifest import Manifest
from fusionkit.errors import DataError, counted
from fusionkit.recipe.schema import SETS, ColumnSplit, FoldSplit, HoldoutSplit

Split = HoldoutSplit | FoldSplit | ColumnSplit
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
            dealt = deal(units, alike, manifest.classes, split.folds, f"{seed} split {repeat}")
            _check_folds(dealt, units, needed, split.unit)
        else:
            words = f"{seed} split {repeat}"
            dealt = [take(units, alike, manifest.classes, needed, split.test, words, "test", split.unit)]
        for fold, test in enumerate(dealt):
            learning = {unit: name for unit, name in units.items() if unit not in test}
            validation: set[str] = set()
            if split.validation:
                words = f"{seed} validation {repeat} {fold}"
                share = split.validation
                validation = take(
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


def _check_strata(units: Units, needed: Sequence[str], unit: str) -> None:
    counts = Counter(units.values())
    problems = [
        f"split: there is no '{name}' {unit} ({counted(len(units), unit)} with a known outcome). "
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
            there = counted(counts[name], f"'{name}' {unit}")
            problems.append(
                f"split: fold {lacking[0]} of {n_folds} would test no '{name}' {unit} ({there} in all). "
                f"{advice}"
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
