"""Intervals by resampling subjects: of one model's values, and of the difference between two models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from fusionkit.evaluation.aggregate import FoldSubjects, is_known
from fusionkit.evaluation.measures import SAME_PREDICTION, Measures, Outcomes
from fusionkit.evaluation.metrics import FloatArray, IntArray
from fusionkit.recipe.task_nodes import OF_ALL_FOLDS

# Entries of one weight matrix; a handful of such matrices are alive at once, so this bounds the memory.
_MATRIX_ENTRIES = 500_000


@dataclass(frozen=True)
class Estimate:
    """A value with its interval; where there is no value, the reason.

    Args:
        value: The value.
        low: Lower end of its interval.
        high: Upper end.
        reason: Why there is no value, or no interval.
        p_value: Of a difference: twice the smaller share of resamples on either side of zero, the subjects
            as they are counted among them (Davison and Hinkley 1997, Bootstrap Methods, section 4.4).
    """

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Scores:
    """A model's metrics, or differences between two models: means of fold values, and pooled values."""

    folds: Mapping[str, Estimate]
    pooled: Mapping[str, Estimate]
    n_subjects: int


@dataclass(frozen=True)
class Intervals:
    """What `bootstrap` returns: scores by model, and what a model is compared with minus it, by model."""

    models: Mapping[str, Scores]
    differences: Mapping[str, Scores]


@dataclass(frozen=True, eq=False)
class _Part:
    """The rows that one value is computed from; `index` is the place of each in the cohort."""

    repeat: int
    index: IntArray
    labels: Outcomes
    predictions: FloatArray
    thresholds: FloatArray


@dataclass(frozen=True, eq=False)
class _Target:
    """One side to score, or two to subtract: the folds, and each repeat's folds pooled."""

    folds: Sequence[Sequence[_Part]]
    pooled: Sequence[Sequence[_Part]]
    metrics: Sequence[str]

    def values(self, scored: _Scored) -> FloatArray:
        """Returns (2, metrics, resamples): means over the folds, and over the pooled repeats."""
        folds = self._means(self.folds, scored)
        # a repeat of one fold is that fold: as many of both means that nothing was pooled
        is_same = all(
            len(parts) == len(pooled) for parts, pooled in zip(self.folds, self.pooled, strict=True)
        )
        pooled = folds if is_same else self._means(self.pooled, scored)
        of_all = [place for place, metric in enumerate(self.metrics) if metric in OF_ALL_FOLDS]
        folds[of_all] = pooled[of_all]
        return np.stack([folds, pooled])

    def _means(self, sides: Sequence[Sequence[_Part]], scored: _Scored) -> FloatArray:
        means = [_mean_of_parts(parts, self.metrics, scored) for parts in sides]
        return means[0] if len(means) == 1 else means[0] - means[1]


class _Scored:
    """The metrics of parts under some resamples: each is computed once, however many targets share it.

    Args:
        measures: What scores them.
        weights: How often each subject of the cohort is in each resample, (resamples, n).
    """

    def __init__(self, measures: Measures, weights: FloatArray) -> None:
        self.measures, self.weights = measures, weights
        self._values: dict[tuple[int, str], FloatArray] = {}

    def __len__(self) -> int:
        return len(self.weights)

    def values(self, part: _Part, metrics: Sequence[str]) -> FloatArray:
        """Returns (metrics, resamples); NaN where a resample gives none."""
        lacking = [metric for metric in metrics if (id(part), metric) not in self._values]
        if lacking:
            found = self.measures.weighted(
                part.labels, part.predictions, part.thresholds, self.weights[:, part.index], lacking
            )
            self._values |= {(id(part), metric): value for metric, value in found.items()}
        return np.stack([self._values[id(part), metric] for metric in metrics])


def bootstrap(
    models: Mapping[str, Sequence[FoldSubjects]],
    measures: Measures,
    *,
    metrics: Sequence[str] | None = None,
    against: Mapping[str, str] = MappingProxyType({}),
    compared: Sequence[str] | None = None,
    resamples: int = 2000,
    interval: float = 0.95,
    seed: int = 0,
) -> Intervals:
    """Scores every model by subject, with percentile intervals from resampled subjects.

    Each resample draws one weight per subject, the number of times that the person is in it, drawn within
    each class over all models' subjects together, so that class sizes stay where models tested the same. The
    same weights serve every fold, repeat and model in which the person is tested. So a person tested in five
    repeats is in or out of all five at once: five repeats are not five times as many people, and resampling
    them independently would give an interval that is too narrow, as would resampling a person's images. It
    also makes differences between models paired.

    The value over folds is the mean over those folds that can give one (of R2, it is the pooled one); the
    pooled value takes the folds of a repeat together, then the mean over repeats. Both are computed anew in
    every resample. The intervals say how much depends on who was tested; the learned models are held as they
    are.

    Args:
        models: Each model's folds; subjects of unknown outcome are left out.
        measures: How predictions are judged.
        metrics: Which metrics; by default all.
        against: Model -> the one that it is subtracted from, on subjects that both tested in a fold; pairs
            with a model that is not there are left out.
        compared: The metrics of these differences; by default those that the task compares.
        resamples: How many.
        interval: Coverage, such as 0.95.
        seed: All randomness derives from it; the order of the rows does not matter.
    """
    metrics, compared = metrics or measures.metrics, compared or measures.compared
    known = {
        name: [fold.select(is_known(fold.rows.outcomes)) for fold in folds] for name, folds in models.items()
    }
    cohort = _cohort(known, measures)
    # Sorted by id, so that a weight belongs to a person and not to a place in a file.
    position = {subject: place for place, subject in enumerate(cohort)}
    both = {name: other for name, other in against.items() if name in known and other in known}
    pairs = {name: _common(known[other], known[name]) for name, other in both.items()}
    make = _Targets(position).make
    targets = [make([folds], metrics) for folds in known.values()]
    targets += [make(sides, compared) for sides in pairs.values()]
    outcomes = np.fromiter(cohort.values(), np.int64, len(cohort))
    widest = max([len(cohort), *(len(part.index) for t in targets for side in t.pooled for part in side)])
    tables = _estimate_all(targets, measures, outcomes, resamples, seed, widest, interval)
    counts = [_count_subjects(folds) for folds in known.values()] + [
        _count_subjects(a) for a, _ in pairs.values()
    ]
    scores = [Scores(*table, n_subjects=count) for table, count in zip(tables, counts, strict=True)]
    return Intervals(
        dict(zip(known, scores[: len(known)], strict=True)),
        dict(zip(pairs, scores[len(known) :], strict=True)),
    )


def resample_weights(outcomes: IntArray, resamples: int, seed: int, chunk: int) -> Iterator[FloatArray]:
    """Yields how often each subject is in each resample, drawn within classes, `chunk` resamples at a time.

    Shape:
        outcomes (n,) -> (at most chunk, n)
    """
    # One generator per class: the numbers drawn do not depend on the size of the chunks.
    strata = [
        (np.flatnonzero(outcomes == c), np.random.default_rng([seed, int(c)])) for c in np.unique(outcomes)
    ]
    for start in range(0, resamples, chunk):
        weights = np.empty((min(chunk, resamples - start), len(outcomes)))
        for members, generator in strata:
            shares = np.full(len(members), 1 / len(members))
            weights[:, members] = generator.multinomial(len(members), shares, size=len(weights))
        yield weights


def _estimate_all(
    targets: Sequence[_Target],
    measures: Measures,
    outcomes: IntArray,
    resamples: int,
    seed: int,
    widest: int,
    interval: float,
) -> list[tuple[dict[str, Estimate], dict[str, Estimate]]]:
    whole = _Scored(measures, np.ones((1, len(outcomes))))
    drawn: list[list[FloatArray]] = [[] for _ in targets]
    for weights in resample_weights(outcomes, resamples, seed, max(1, _MATRIX_ENTRIES // max(1, widest))):
        scored = _Scored(measures, weights)
        for target, chunks in zip(targets, drawn, strict=True):
            chunks.append(target.values(scored))
    tables = []
    for target, chunks in zip(targets, drawn, strict=True):
        values, spread = target.values(whole)[:, :, 0], np.concatenate(chunks, axis=2)
        folds, pooled = (
            {
                metric: _interval(
                    values[row, i],
                    spread[row, i],
                    interval,
                    _reason(metric, parts, measures),
                    is_difference=len(target.folds) == 2,
                )
                for i, metric in enumerate(target.metrics)
            }
            for row, parts in enumerate((target.folds[0], target.pooled[0]))
        )
        tables.append((folds, pooled))
    return tables


def _interval(
    value: float, spread: FloatArray, interval: float, reason: str, *, is_difference: bool
) -> Estimate:
    known = spread[~np.isnan(spread)]
    if np.isnan(value):
        return Estimate(None, None, None, reason)
    if not len(known):
        return Estimate(float(value), None, None, "no interval: no resample gives a value")
    low, high = np.quantile(known, [(1 - interval) / 2, (1 + interval) / 2])
    p_value = None
    if is_difference:
        beyond = min((known <= 0).sum(), (known >= 0).sum())
        p_value = min(1.0, 2 * (1 + float(beyond)) / (1 + len(known)))
    return Estimate(float(value), float(low), float(high), p_value=p_value)


def _reason(metric: str, parts: Sequence[_Part], measures: Measures) -> str:
    reasons = [measures.why_not(metric, part.labels) for part in parts]
    first = next((reason for reason in reasons if reason), None)
    if first is None:  # nothing is wrong with the outcomes; or there are no parts
        first = SAME_PREDICTION if parts else "not estimable: no subject with a known outcome"
    return (
        first.replace("not estimable", f"not estimable in any of {len(parts)}") if len(parts) > 1 else first
    )


def _mean_of_parts(parts: Sequence[_Part], metrics: Sequence[str], scored: _Scored) -> FloatArray:
    """Returns (metrics, resamples): the mean over the parts that can give a value; NaN where none can."""
    sums = np.zeros((len(metrics), len(scored)))
    counts = np.zeros_like(sums)
    for part in parts:
        values = scored.values(part, metrics)
        is_known = ~np.isnan(values)
        sums += np.where(is_known, values, 0.0)
        counts += is_known
    return np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)


class _Targets:
    """Makes targets; a fold that several compare is one part of all of them.

    Args:
        position: Subject -> place in the cohort.
    """

    def __init__(self, position: Mapping[str, int]) -> None:
        self.position = position
        self._parts: dict[int, tuple[FoldSubjects, _Part]] = {}
        self._pools: dict[tuple[int, ...], _Part] = {}

    def make(self, sides: Sequence[Sequence[FoldSubjects]], metrics: Sequence[str]) -> _Target:
        folds = [[self._part(fold) for fold in side] for side in sides]
        return _Target(folds, [self._pool(parts) for parts in folds], metrics)

    def _part(self, fold: FoldSubjects) -> _Part:
        if id(fold) not in self._parts:  # the fold is kept, so that no other has its id
            rows = fold.rows
            index = np.array([self.position[subject] for subject in rows.subjects], dtype=np.int64)
            thresholds = np.full(len(index), fold.threshold)
            part = _Part(fold.repeat, index, rows.outcomes, rows.predictions, thresholds)
            self._parts[id(fold)] = fold, part
        return self._parts[id(fold)][1]

    def _pool(self, parts: Sequence[_Part]) -> list[_Part]:
        by_repeat: dict[int, list[_Part]] = {}
        for part in parts:
            by_repeat.setdefault(part.repeat, []).append(part)
        return [group[0] if len(group) == 1 else self._pooled(group) for group in by_repeat.values()]

    def _pooled(self, group: Sequence[_Part]) -> _Part:
        key = tuple(map(id, group))
        if key not in self._pools:
            columns = [
                np.concatenate([getattr(part, name) for part in group])
                for name in ("index", "labels", "predictions", "thresholds")
            ]
            self._pools[key] = _Part(group[0].repeat, *columns)
        return self._pools[key]


def _cohort(models: Mapping[str, Sequence[FoldSubjects]], measures: Measures) -> dict[str, int]:
    """Returns every tested subject's stratum, by id."""
    outcomes = {
        subject: stratum
        for folds in models.values()
        for fold in folds
        for subject, stratum in zip(
            fold.rows.subjects, measures.strata(fold.rows.outcomes).tolist(), strict=True
        )
    }
    return dict(sorted(outcomes.items()))


def _common(a: Sequence[FoldSubjects], b: Sequence[FoldSubjects]) -> list[list[FoldSubjects]]:
    """Returns both models' folds, cut to the subjects that both tested in the same fold."""
    of_b = {(fold.repeat, fold.fold): fold for fold in b}
    sides: list[list[FoldSubjects]] = [[], []]
    for fold in a:
        other = of_b.get((fold.repeat, fold.fold))
        if other is None:
            continue
        shared = set(fold.rows.subjects) & set(other.rows.subjects)
        for side, one in zip(sides, (fold, other), strict=True):
            is_shared = np.array([subject in shared for subject in one.rows.subjects], dtype=bool)
            # the same fold where both tested the same: what is known of it need not be computed again
            side.append(one if is_shared.all() else one.select(is_shared))
    return sides


def _count_subjects(folds: Sequence[FoldSubjects]) -> int:
    return len({subject for fold in folds for subject in fold.rows.subjects})
