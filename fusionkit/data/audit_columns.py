"""What the columns of a table say about themselves and, alone, about the outcome."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fusionkit.data.manifest import Manifest
from fusionkit.data.tables import Value, parse_texts
from fusionkit.specs import TABULAR_KINDS, ColumnSpec

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

GIVES_AWAY = 0.95
"""Cross-validated AUC of one column alone from which the audit warns; ours."""
SETTLES = 0.1
"""Share of all subjects whose outcome one value settles from which the audit warns; ours."""
CHANCE = 1e-6
"""How likely that may be by chance at most; ours."""
LONELY_BY_CHANCE = 0.02
"""How likely it may be by chance at most that all who have something are of one class; ours."""
_N_FOLDS = 5
_N_BINS = 20


@dataclass(frozen=True)
class Subjects:
    """The rows by subject.

    Args:
        of_row: (n,) index of each row's subject.
        names: Their ids.
        labels: Class index of each subject, -1 where unknown.
        classes: Class names.
    """

    of_row: IntArray
    names: Sequence[str]
    labels: IntArray
    classes: Sequence[str]

    def counts(self, rows: NDArray[np.bool_]) -> IntArray:
        """Counts the subjects of each class that have any of the rows."""
        chosen = np.unique(self.of_row[rows])
        known = self.labels[chosen]
        return np.bincount(known[known >= 0], minlength=len(self.classes))


def index_subjects(manifest: Manifest, outcomes: Mapping[str, int]) -> Subjects:
    """Numbers the subjects in the order in which they first appear."""
    position: dict[str, int] = {}
    of_row = np.array(
        [position.setdefault(name, len(position)) for name in manifest.subjects], dtype=np.int64
    )
    labels = np.array([outcomes.get(name, -1) for name in position], dtype=np.int64)
    return Subjects(of_row, list(position), labels, manifest.classes)


def undisputed(manifest: Manifest) -> dict[str, int]:
    """Returns the class index of each subject whose samples agree; -1 for the others."""
    known: dict[str, set[int]] = {}
    for subject, outcome in zip(manifest.subjects, manifest.outcomes, strict=True):
        of_subject = known.setdefault(subject, set())
        if outcome is not None:
            of_subject.add(manifest.classes.index(outcome))
    return {subject: labels.pop() if len(labels) == 1 else -1 for subject, labels in known.items()}


@dataclass(frozen=True)
class Column:
    """One column's cells as codes.

    Args:
        name: The column.
        spec: What it may hold.
        codes: (n,) 0 where missing or forbidden, else 1 plus the position of the cell's value in `values`; of
            what is no number, 1.
        values: The distinct values.
        texts: How each of them is written where it first appears.
        n_illegal: How many cells its declaration forbids; they have no value, and yet are not missing.
    """

    name: str
    spec: ColumnSpec
    codes: IntArray
    values: Sequence[Value | str]
    texts: Sequence[str]
    n_illegal: int = 0

    @property
    def present(self) -> NDArray[np.bool_]:
        """(n,) whether there is a value."""
        return self.codes > 0

    @property
    def is_number(self) -> bool:
        """Whether it becomes numbers, so that a record may hold it."""
        return self.spec.kind in TABULAR_KINDS


def similar_subjects(subjects: Sequence[str]) -> list[list[str]]:
    """Returns the ids that differ only by case, blanks or Unicode's ways to write the same, together."""
    # by hashes first: of a million ids, few are alike, and only those are written down
    plain = np.fromiter((hash(_plain(name)) for name in subjects), np.int64, len(subjects))
    exact = np.fromiter((hash(name) for name in subjects), np.int64, len(subjects))
    order = np.lexsort((exact, plain))
    same = plain[order][1:] == plain[order][:-1]
    places = np.flatnonzero(same & (exact[order][1:] != exact[order][:-1]))
    suspects = np.isin(plain, plain[order][places])
    groups: dict[str, dict[str, None]] = {}
    for row in np.flatnonzero(suspects).tolist():
        groups.setdefault(_plain(subjects[row]), {})[subjects[row]] = None
    return [list(names) for names in groups.values() if len(names) > 1]


def _plain(name: str) -> str:
    if not name.isascii():
        name = unicodedata.normalize("NFKC", name)
        name = "".join(mark for mark in name if unicodedata.category(mark) != "Cf")
    return "".join(name.lower().split())


def read_column(name: str, spec: ColumnSpec, cells: pl.Series) -> Column:
    """Turns cells into codes; a cell that its declaration forbids gives none, `bad_cells` names it."""
    if spec.kind not in TABULAR_KINDS:
        return _read_texts(name, spec, cells)
    texts = [text for text in cells.unique(maintain_order=True).to_list() if text is not None]
    allowed = parse_texts(spec, texts)
    parsed = {text: value for text, value in allowed.items() if value is not None}
    illegal = [text for text in texts if text not in allowed]
    code_of: dict[Value, int] = {}
    written: list[str] = []
    codes: dict[str | None, int] = {None: 0}
    for text in texts:
        if text not in parsed:
            codes[text] = 0
            continue
        value = parsed[text]
        if value not in code_of:
            code_of[value] = len(code_of) + 1
            written.append(text)
        codes[text] = code_of[value]
    of_rows = np.array([codes[text] for text in cells.to_list()], np.int64)
    return Column(name, spec, of_rows, list(code_of), written, int(cells.is_in(illegal).sum()))


def _read_texts(name: str, spec: ColumnSpec, cells: pl.Series) -> Column:
    """Does the same for what is no number: only whether it is there, and how many there are, is asked."""
    is_there = (cells.is_not_null() & ~cells.is_in(list(spec.missing))).fill_null(False)
    n_distinct = cells.filter(is_there).n_unique()
    return Column(name, spec, is_there.to_numpy().astype(np.int64), range(n_distinct), ())


def differing_subjects(column: Column, subjects: Subjects) -> NDArray[np.bool_]:
    """Returns (n_subjects,) whose samples have different values; missing cells have no say."""
    rows = np.flatnonzero(column.present)
    owners, codes = subjects.of_row[rows], column.codes[rows]
    first = np.zeros(len(subjects.names), dtype=np.int64)
    first[owners[::-1]] = codes[::-1]
    differing = np.zeros(len(subjects.names), dtype=bool)
    differing[owners[codes != first[owners]]] = True
    return differing


def alone(column: Column, subjects: Subjects) -> float | None:
    """Returns the AUC that the column reaches alone, cross-validated by subject; None without two classes.

    Each class is scored against the rest, by how often it goes with the row's value among the other folds'
    subjects; numbers are cut into 20 bins of equal counts first, and missing is a value of its own. With more
    than two classes the class that is told apart best counts.
    """
    codes = _binned(column) if column.spec.kind == "numeric" else column.codes
    labels, folds = subjects.labels, _deal(subjects.labels)
    targets = np.unique(labels[labels >= 0])
    found = [
        _mean_auc(labels == target, _scores(codes, subjects, folds, int(target)), folds)
        for target in (targets[-1:] if len(targets) == 2 else targets)
    ]
    return max([auc for auc in found if auc is not None], default=None)


def _mean_auc(is_target: NDArray[np.bool_], scores: FloatArray, folds: IntArray) -> float | None:
    """Returns the mean over folds: pooled scores of several folds would tell a value's folds apart."""
    tested = [folds == fold for fold in range(_N_FOLDS)]
    each = [
        rank_auc(is_target[here], scores[here]) for here in tested if 0 < is_target[here].sum() < here.sum()
    ]
    return float(np.mean(each)) if each else None


def _binned(column: Column) -> IntArray:
    numbers = np.array([0.0, *column.values], dtype=np.float64)[column.codes]
    if len(column.values) <= _N_BINS:
        return column.codes
    edges = np.quantile(numbers[column.present], np.linspace(0, 1, _N_BINS + 1)[1:-1])
    return np.where(column.present, 1 + np.searchsorted(edges, numbers, side="right"), 0)


def _deal(labels: IntArray) -> IntArray:
    """Deals the subjects of each class into folds; -1 for those of unknown outcome."""
    folds = np.full(len(labels), -1)
    rng = np.random.default_rng(0)  # the data's order may go with the outcome
    for label in np.unique(labels[labels >= 0]):
        members = rng.permutation(np.flatnonzero(labels == label))
        folds[members] = np.arange(len(members)) % _N_FOLDS
    return folds


def _scores(codes: IntArray, subjects: Subjects, folds: IntArray, target: int) -> FloatArray:
    """Returns each subject's mean over its rows of the log-odds that the other folds give their values."""
    owners, n_codes = subjects.of_row, int(codes.max(initial=0)) + 1
    per_subject = np.bincount(owners, minlength=len(subjects.names))
    weights = 1.0 / per_subject[owners]
    is_target, fold_of_row = subjects.labels[owners] == target, folds[owners]
    scores = np.zeros(len(codes))
    for fold in range(_N_FOLDS):
        train = (fold_of_row != fold) & (fold_of_row >= 0)
        hits, others = (
            np.bincount(codes[rows], weights[rows], minlength=n_codes)
            for rows in (train & is_target, train & ~is_target)
        )
        share = hits.sum() / max(hits.sum() + others.sum(), 1e-12)
        # one more subject of the average kind, so that a value never seen says nothing
        odds = np.log(np.maximum(hits + share, 1e-12)) - np.log(np.maximum(others + 1 - share, 1e-12))
        test = fold_of_row == fold
        scores[test] = odds[codes[test]]
    means: FloatArray = np.bincount(owners, scores * weights, minlength=len(subjects.names)).astype(
        np.float64
    )
    return means


def rank_auc(is_positive: NDArray[np.bool_], scores: FloatArray) -> float:
    """Returns the share of pairs in which the positive has the higher score; a tie counts half."""
    # rounded: the order in which a subject's rows are summed must not break a tie
    _, inverse, counts = np.unique(np.round(scores, 9), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n_positive = int(is_positive.sum())
    wins = ranks[is_positive].sum() - n_positive * (n_positive + 1) / 2
    return float(wins / (n_positive * (len(scores) - n_positive)))


def lonely_class(present: NDArray[np.bool_], subjects: Subjects) -> str | None:
    """Names the only class whose subjects have something, where others lack it, too often for chance."""
    counts, everyone = subjects.counts(present), subjects.counts(np.ones_like(present))
    if (counts > 0).sum() != 1 or (everyone > 0).sum() < 2:
        return None
    label = int(counts.argmax())
    n_have, n_known = counts[label], everyone.sum()
    # a single subject with a value is always of one class
    if (everyone[label] / n_known) ** n_have > LONELY_BY_CHANCE:
        return None
    return f"{subjects.classes[label]} subjects ({n_have} of {n_known})"


def settling_values(column: Column, subjects: Subjects) -> Iterator[tuple[str | None, str, int]]:
    """Yields each value that goes with one class only, too often for chance: text, class, how many subjects.

    None stands for missing cells. Of numbers only that counts: the youngest tenth may well be healthy.
    """
    known = int((subjects.labels >= 0).sum())
    shares = np.bincount(subjects.labels[subjects.labels >= 0], minlength=len(subjects.classes)) / max(
        known, 1
    )
    table = np.zeros((len(column.values) + 1, len(subjects.classes)), dtype=np.int64)
    owners, codes = np.divmod(np.unique(subjects.of_row * len(table) + column.codes), len(table))
    labels = subjects.labels[owners]
    np.add.at(table, (codes[labels >= 0], labels[labels >= 0]), 1)
    for code in range(1 if column.spec.kind == "numeric" else len(table)):
        count, label = int(table[code].sum()), int(table[code].argmax())
        is_pure = count == table[code, label] and shares[label] < 1
        if is_pure and count >= max(1, SETTLES * known) and count * np.log(shares[label]) < np.log(CHANCE):
            yield (column.texts[code - 1] if code else None), subjects.classes[label], count
