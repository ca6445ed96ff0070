"""From samples to subjects: the subject's outcome, and its prediction over its samples."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fusionkit.errors import DataError, RecipeError
from fusionkit.evaluation.metrics import BoolArray, FloatArray, IntArray
from fusionkit.task import Outcome

UNKNOWN = -1
"""The class index of an outcome that is not known."""

SampleRule = Literal["mean_probability", "mean_logit", "max_probability", "vote"]

# Float32 tells no probability nearer to 1 than this; without a floor one saturated image decides alone.
_LOGIT_FLOOR = 1e-7
# The order in which a subject's samples are summed must not make or break a tie between subjects.
_DECIMALS = 12
_DIGITS = 14
"""Of the largest number of a scale that is not that of probabilities; ours."""


@dataclass(frozen=True, eq=False)
class SampleRows:
    """Predictions of samples, already averaged over views and seeds.

    Args:
        samples: Their ids.
        subjects: The subject of each.
        outcomes: (n,) class index of each, UNKNOWN where it is not known; or numbers (n, d), NaN where not.
        predictions: (n, k); probabilities where the outcome is a class, else what the task predicts.
    """

    samples: Sequence[str]
    subjects: Sequence[str]
    outcomes: IntArray | FloatArray
    predictions: FloatArray

    def __post_init__(self) -> None:
        if not len(self.samples) == len(self.subjects) == len(self.outcomes) == len(self.predictions):
            raise ValueError(
                f"predictions: the lengths differ ({len(self.samples)} samples, {len(self.subjects)} "
                f"subjects, {len(self.outcomes)} outcomes, {len(self.predictions)} predictions)"
            )
        finite = np.isfinite(self.predictions).all(axis=1)
        if not finite.all():
            raise ValueError(
                f"predictions: sample {self.samples[int(finite.argmin())]} has no finite prediction"
            )


@dataclass(frozen=True, eq=False)
class SubjectRows:
    """Predictions of subjects: ids, outcomes (n,) or (n, d), predictions (n, k), as of samples."""

    subjects: Sequence[str]
    outcomes: IntArray | FloatArray
    predictions: FloatArray


@dataclass(frozen=True, eq=False)
class FoldPredictions:
    """What one model says in one fold about its test samples, and its validation samples if it has any.

    A `threshold` that was set before stays; else the recipe says how it is set.
    """

    repeat: int
    fold: int
    test: SampleRows
    validation: SampleRows | None = None
    threshold: float | None = None


@dataclass(frozen=True, eq=False)
class FoldSubjects:
    """One fold of one model by subject, and the threshold from which a subject is called positive."""

    repeat: int
    fold: int
    rows: SubjectRows
    threshold: float = 0.5

    def select(self, keep: BoolArray) -> FoldSubjects:
        """Returns the fold with the rows where `keep` (n,) is true."""
        chosen = np.flatnonzero(keep)
        rows = SubjectRows(
            [self.rows.subjects[i] for i in chosen.tolist()],
            self.rows.outcomes[chosen],
            self.rows.predictions[chosen],
        )
        return FoldSubjects(self.repeat, self.fold, rows, self.threshold)


def is_known(outcomes: IntArray | FloatArray) -> BoolArray:
    """Returns (n,) whether anything is known of each outcome."""
    known = outcomes != UNKNOWN if outcomes.ndim == 1 else ~np.isnan(outcomes).all(axis=1)
    return np.asarray(known, dtype=bool)


def check_sample_rule(rule: SampleRule, n_classes: int) -> None:
    """Raises RecipeError where samples cannot become subjects by this rule."""
    if rule == "max_probability" and n_classes != 2:
        raise RecipeError(
            f"evaluation.samples: max_probability is for two classes (there are {n_classes}). "
            "Use mean_probability or mean_logit."
        )


def aggregate_subjects(
    rows: SampleRows, outcomes: Mapping[str, Outcome], rule: SampleRule = "mean_probability"
) -> SubjectRows:
    """Brings samples to subjects, in the order in which the subjects first appear.

    Args:
        rows: Predictions of samples.
        outcomes: Outcome of each subject; those of whom it is not known are kept.
        rule: mean_probability; mean_logit, the normalised geometric mean; max_probability, the highest of the
            positive class, for two classes; vote, the share of samples that call each class.
    """
    n_classes = rows.predictions.shape[1]
    check_sample_rule(rule, n_classes)
    position: dict[str, int] = {}
    index = np.fromiter(
        (position.setdefault(s, len(position)) for s in rows.subjects), np.int64, len(rows.subjects)
    )
    if rule == "max_probability":
        highest = np.zeros(len(position))
        np.maximum.at(highest, index, rows.predictions[:, 1])
        predictions = np.stack([1 - highest, highest], axis=1)
    elif rule == "mean_logit":
        floored = np.log(np.maximum(rows.predictions, _LOGIT_FLOOR))
        geometric = np.exp(_mean_by(index, floored, len(position)))
        predictions = geometric / geometric.sum(axis=1, keepdims=True)
    elif rule == "vote":
        # what rounding tells apart is a tie, and a tie is shared
        rounded = np.round(rows.predictions, _DECIMALS)
        is_called = (rounded == rounded.max(axis=1, keepdims=True)).astype(np.float64)
        predictions = _mean_by(index, is_called / is_called.sum(axis=1, keepdims=True), len(position))
    else:
        predictions = _mean_by(index, rows.predictions, len(position))
    known = outcomes_of_subjects(tuple(position), outcomes, rows.outcomes.shape[1:])
    return SubjectRows(tuple(position), known, _without_noise(predictions))


def _without_noise(values: FloatArray) -> FloatArray:
    """Rounds what a sum's order decides: at a fixed decimal, or of large and of tiny numbers, at a digit."""
    largest = float(np.abs(values).max(initial=0.0))
    exponent = math.floor(math.log10(largest)) if largest else 0
    if -2 <= exponent < 2:  # as probabilities and logits are
        return np.round(values, _DECIMALS)
    return np.round(values, min(_DIGITS - 1 - exponent, 300))


def outcomes_of_subjects(
    subjects: Sequence[str], outcomes: Mapping[str, Outcome], shape: tuple[int, ...]
) -> IntArray | FloatArray:
    """Returns the outcomes of subjects as an array: of class indices, shape (), or of d numbers, (d,)."""
    if not shape:
        return np.array([outcomes.get(subject, UNKNOWN) for subject in subjects], dtype=np.int64)
    unknown = [None] * shape[0]
    found = [outcomes.get(subject, unknown) for subject in subjects]
    return np.array(found, dtype=np.float64).reshape(len(found), *shape)  # None becomes NaN


def _mean_by(index: IntArray, values: FloatArray, n_groups: int) -> FloatArray:
    counts = np.bincount(index, minlength=n_groups)
    sums = [np.bincount(index, weights=column, minlength=n_groups) for column in values.T]
    means: FloatArray = np.stack(sums, axis=1) / counts[:, None]
    return means


def subject_outcomes(
    subjects: Sequence[str],
    outcomes: Sequence[int] | IntArray,
    classes: Sequence[str],
    *,
    given: Sequence[int] | IntArray | None = None,
    rule: Literal["unanimous", "any_positive"] = "unanimous",
) -> dict[str, int]:
    """Returns each subject's class index: its own where the data give one, else what its samples agree on.

    Args:
        subjects: The subject of each sample.
        outcomes: Class index of each sample, UNKNOWN where it is not known; such samples have no say.
        classes: Class names; the last one is the positive class.
        given: Class index of each sample's subject, where the data have such a column.
        rule: any_positive: where samples differ, one positive sample makes the subject positive.

    Raises:
        DataError: The data contradict themselves; names the subjects.
    """
    own, own_counts = _values_by_subject(subjects, given) if given is not None else ({}, {})
    found, counts = _values_by_subject(subjects, outcomes)
    positive = len(classes) - 1
    disputed: list[str] = []
    for subject, known in counts.items():
        if own.get(subject, UNKNOWN) != UNKNOWN:
            continue
        if rule == "any_positive" and positive in known:
            found[subject] = positive
        else:
            disputed.append(f"{subject}: {_count(known, classes)}")
    _raise_disputes(
        [f"{subject}: {_count(known, classes)}" for subject, known in own_counts.items()], disputed
    )
    found.update((subject, value) for subject, value in own.items() if value != UNKNOWN)
    return found


def subject_numbers(subjects: Sequence[str], outcomes: FloatArray) -> dict[str, tuple[float | None, ...]]:
    """Returns each subject's numbers (d,), None where unknown: what its samples agree on, one by one.

    Raises:
        DataError: Samples of one subject contradict each other; names the subjects.
    """
    found: dict[str, list[float | None]] = {}
    disputed: dict[str, None] = {}
    for subject, values in zip(subjects, outcomes.tolist(), strict=True):
        known = found.setdefault(subject, [None] * len(values))
        for place, value in enumerate(values):
            if not math.isnan(value):
                if known[place] not in (None, value):
                    disputed[subject] = None
                known[place] = value
    if disputed:
        rows = np.array([subject in disputed for subject in subjects])
        raise DataError(
            f"outcome: samples of one subject have different ones "
            f"({_shown(_name_numbers(np.array(subjects)[rows], outcomes[rows]))}). "
            "Give each subject one outcome."
        )
    return {subject: tuple(values) for subject, values in found.items()}


def _name_numbers(subjects: Iterable[str], outcomes: FloatArray) -> list[str]:
    """Returns a text per subject with the outcomes that its samples have."""
    several: dict[str, dict[str, None]] = {}
    for subject, values in zip(subjects, outcomes.tolist(), strict=True):
        text = ", ".join("unknown" if math.isnan(value) else f"{value:g}" for value in values)
        several.setdefault(str(subject), {})[text] = None
    return [f"{subject}: {' or '.join(texts)}" for subject, texts in several.items()]


def _values_by_subject(
    subjects: Sequence[str], values: Sequence[int] | IntArray
) -> tuple[dict[str, int], dict[str, dict[int, int]]]:
    """Returns each subject's first known class index, and counts those of subjects that have several."""
    first: dict[str, int] = {}
    several: dict[str, dict[int, int]] = {}
    for subject, value in zip(subjects, np.asarray(values).tolist(), strict=True):
        known = first.setdefault(subject, value)
        if known == UNKNOWN:
            first[subject] = value
        elif value not in (UNKNOWN, known):
            several[subject] = {}
    for subject, value in zip(subjects, np.asarray(values).tolist(), strict=True) if several else ():
        if subject in several and value != UNKNOWN:
            several[subject][value] = several[subject].get(value, 0) + 1
    return first, several


def _count(values: Mapping[int, int], classes: Sequence[str]) -> str:
    return ", ".join(f"{values[value]} {classes[value]}" for value in sorted(values))


def _raise_disputes(contradicted: Sequence[str], disputed: Sequence[str]) -> None:
    problems = []
    if contradicted:
        problems.append(
            f"subject_outcome: rows of one subject give different ones ({_shown(contradicted)}). "
            "Give each subject one outcome."
        )
    if disputed:
        problems.append(
            f"outcome: samples of one subject have different ones ({_shown(disputed)}). Give a column for "
            "subject_outcome, or set evaluation.subject_outcome: any_positive."
        )
    if problems:
        raise DataError(problems)


def _shown(entries: Sequence[str], limit: int = 20) -> str:
    more = f"; and {len(entries) - limit} more" if len(entries) > limit else ""
    return "; ".join(entries[:limit]) + more
