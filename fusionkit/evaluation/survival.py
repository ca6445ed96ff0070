"""How predicted hazards are judged: Harrell's concordance, plain and under bootstrap weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from fusionkit.evaluation.measures import ENOUGH, NumberMeasures, Outcomes, few_subjects_text
from fusionkit.evaluation.metrics import BoolArray, FloatArray, IntArray

_BLOCK = 256
"""Subjects that are compared one by one: for more, sums over all others are quicker."""
_PAIRS_AT_ONCE = 4_000_000
"""Entries of a block of the matrix of pairs, which bounds the memory."""


class SurvivalMeasures(NumberMeasures):
    """Of times to an event: outcomes (n, 2) of time and event, predictions (n, 1) of the log hazard."""

    kind = "survival"
    metrics: tuple[str, ...] = ("concordance",)
    compared: tuple[str, ...] = ("concordance",)
    columns: tuple[str, ...] = ("time", "event", "log_hazard")

    def strata(self, outcomes: Outcomes) -> IntArray:
        """Returns (n,) whether the event was seen: resamples have as many events."""
        return outcomes[:, 1].astype(np.int64)

    def counts(self, outcomes: Outcomes) -> dict[str, int]:
        """Returns how many are censored and how many had the event."""
        events = int(np.nansum(outcomes[:, 1]))
        return {"censored": int((outcomes[:, 1] == 0).sum()), "event": events}

    def weighted(
        self,
        outcomes: Outcomes,
        predictions: FloatArray,
        thresholds: float | FloatArray,
        weights: FloatArray,
        metrics: Sequence[str],
    ) -> dict[str, FloatArray]:
        """Returns the concordance under each row of weights."""
        if not metrics:
            return {}
        found = concordance(outcomes[:, 0].astype(np.float64), outcomes[:, 1] > 0, predictions[:, 0], weights)
        return {name: found for name in metrics}

    def why_not(self, metric: str, outcomes: Outcomes, noun: str = "subject") -> str | None:
        """Says that nobody can be compared."""
        if not len(outcomes):
            return f"not estimable: no {noun} with a known outcome"
        events = outcomes[outcomes[:, 1] > 0, 0]
        if not len(events):
            return f"not estimable: no {noun} with an event"
        outlived = (outcomes[:, 0] > events.min()) | (
            (outcomes[:, 0] == events.min()) & (outcomes[:, 1] == 0)
        )
        return None if outlived.any() else f"not estimable: no {noun} outlives one with an event"

    def few(self, counts: Mapping[str, int]) -> list[str]:
        """Warns of few events: those of whom it is censored say less."""
        if counts["event"] >= ENOUGH:
            return []
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        return [few_subjects_text(shown, f"{ENOUGH} events")]


def concordance(
    times: FloatArray, is_event: BoolArray, hazards: FloatArray, weights: FloatArray
) -> FloatArray:
    """Returns the weighted share of comparable pairs in which who has the event first has the higher hazard.

    A pair counts w_i * w_j. It is comparable if one has the event and the other is then still without, even
    if censored at the same time; two events at one time are not. Equal hazards count half. Exact.

    Shape:
        times, is_event, hazards (n,), weights (b, n) -> (b,), NaN where no pair is comparable

    Source: Harrell, Lee and Mark 1996, Multivariable prognostic models.
    """
    # from the latest on, in blocks: pairs of a block are compared one by one, and with all who lived longer
    # by sums of weights up to a hazard, which are made once per block
    order = np.argsort(-times, kind="stable")
    times, is_event, hazards, weights = times[order], is_event[order], hazards[order], weights[:, order]
    place = np.argsort(np.argsort(hazards, kind="stable"), kind="stable")
    lower, upper = (np.searchsorted(np.sort(hazards), hazards, side) for side in ("left", "right"))
    longer, below = np.zeros_like(weights), np.zeros((len(weights), len(times) + 1))
    won, compared = np.zeros(len(weights)), np.zeros(len(weights))
    for block in _blocks(times):
        some = weights[:, block]
        if block.start:
            np.cumsum(longer, axis=1, out=below[:, 1:])
            first = block.start + np.flatnonzero(is_event[block])
            won += (
                np.einsum("bi,bi->b", weights[:, first], below[:, lower[first]] + below[:, upper[first]]) / 2
            )
            compared += weights[:, first].sum(axis=1) * below[:, -1]
        of_pairs = _pairs(times[block], is_event[block], hazards[block], some)
        won, compared = won + of_pairs[0], compared + of_pairs[1]
        longer[:, place[block]] = some
    shares = np.full(len(weights), np.nan)
    np.divide(won, compared, out=shares, where=compared > 0)
    return shares


def _blocks(times: FloatArray) -> Iterator[slice]:
    """Yields consecutive slices of sorted times; what is equal is in one."""
    edges = np.append(np.flatnonzero(np.append(True, np.diff(times) != 0)), len(times))
    start = 0
    while start < len(times):
        stop = int(edges[min(int(np.searchsorted(edges, start + _BLOCK)), len(edges) - 1)])
        yield slice(start, stop)
        start = stop


def _pairs(
    times: FloatArray, is_event: BoolArray, hazards: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Returns the weights (b,) of pairs that are won, and that are comparable, one by one."""
    firsts = np.flatnonzero(is_event)
    won, compared = np.zeros(len(weights)), np.zeros(len(weights))
    size = max(1, _PAIRS_AT_ONCE // max(1, len(times)))
    for start in range(0, len(firsts), size):
        first = firsts[start : start + size]
        is_later = (times[None] > times[first, None]) | (
            (times[None] == times[first, None]) & ~is_event[None]
        )
        wins = (hazards[first, None] > hazards[None]) + 0.5 * (hazards[first, None] == hazards[None])
        of_first = weights[:, first]
        compared += np.einsum("bi,bi->b", of_first, weights @ is_later.T.astype(np.float64))
        won += np.einsum("bi,bi->b", of_first, weights @ (wins * is_later).T)
    return won, compared
