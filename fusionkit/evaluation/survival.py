"""How predicted hazards are judged: Harrell's concordance, plain and under bootstrap weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusionkit.evaluation.measures import ENOUGH, NumberMeasures, Outcomes, few_subjects_text
from fusionkit.evaluation.metrics import FloatArray, IntArray

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
    times: FloatArray, is_event: np.typing.NDArray[np.bool_], hazards: FloatArray, weights: FloatArray
) -> FloatArray:
    """Returns the weighted share of comparable pairs in which who has the event first has the higher hazard.

    A pair counts w_i * w_j. It is comparable if one has the event and the other is then still without, even
    if censored at the same time; two events at one time are not. Equal hazards count half. Exact; time and
    work grow with the square of n, memory does not.

    Shape:
        times, is_event, hazards (n,), weights (b, n) -> (b,), NaN where no pair is comparable

    Source: Harrell, Lee and Mark 1996, Multivariable prognostic models.
    """
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
    shares = np.full(len(weights), np.nan)
    np.divide(won, compared, out=shares, where=compared > 0)
    return shares
