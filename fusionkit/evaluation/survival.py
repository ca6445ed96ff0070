"""How predicted hazards and probabilities of an event by a time are judged, plain and under weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from fusionkit.evaluation.measures import ENOUGH, NumberMeasures, Outcomes, few_subjects_text
from fusionkit.evaluation.metrics import BoolArray, FloatArray, IntArray, weighted_metrics
from fusionkit.recipe.task_nodes import horizon_text
from fusionkit.tasks.survival import Survival, names_of_predictions

_BLOCK = 256
"""Subjects that are compared one by one: for more, sums over all others are quicker."""
_PAIRS_AT_ONCE = 4_000_000
"""Entries of a block of the matrix of pairs, which bounds the memory."""


class SurvivalMeasures(NumberMeasures):
    """Of times to an event: outcomes (n, 2) of time and event.

    Predictions (n, 1 + k) are the log hazard, and the probability of the event by each horizon.

    Args:
        horizons: Times by which the event is predicted.
    """

    kind = "survival"

    def __init__(self, horizons: Sequence[float] = ()) -> None:
        self.horizons, texts = tuple(horizons), map(horizon_text, horizons)
        # metric -> what it is, and of which horizon
        self.at = {f"{m}_by_{text}": (m, i) for i, text in enumerate(texts) for m in ("brier", "auc")}
        self.metrics: tuple[str, ...] = ("concordance", *self.at)
        self.compared: tuple[str, ...] = (
            "concordance",
            *(name for name, (m, _) in self.at.items() if m == "brier"),
        )
        self.columns = ("time", "event", *names_of_predictions(horizons))

    def strata(self, outcomes: Outcomes) -> IntArray:
        """Returns (n,) whether the event was seen: resamples have as many events."""
        return np.array([Survival.stratum(outcome) for outcome in outcomes.tolist()], dtype=np.int64)

    def counts(self, outcomes: Outcomes) -> dict[str, int]:
        """Returns how many are censored and how many had the event."""
        strata = self.strata(outcomes)
        return {name: int((strata == code).sum()) for code, name in enumerate(Survival.strata)}

    def weighted(
        self,
        outcomes: Outcomes,
        predictions: FloatArray,
        thresholds: float | FloatArray,
        weights: FloatArray,
        metrics: Sequence[str],
    ) -> dict[str, FloatArray]:
        """Returns each metric under each row of weights."""
        times, is_event = outcomes[:, 0].astype(np.float64), outcomes[:, 1] > 0
        found: dict[str, FloatArray] = {}
        if "concordance" in metrics:
            found["concordance"] = concordance(times, is_event, predictions[:, 0], weights)
        for place, horizon in enumerate(self.horizons):
            wanted = {name: self.at[name][0] for name in metrics if self.at.get(name, ("", -1))[1] == place}
            if wanted:
                values = at_horizon(times, is_event, predictions[:, 1 + place], weights, horizon)
                found |= {name: values[metric] for name, metric in wanted.items()}
        return found

    def why_not(self, metric: str, outcomes: Outcomes, noun: str = "subject") -> str | None:
        """Says that nobody can be compared, or that nothing is known at the horizon."""
        if not len(outcomes):
            return f"not estimable: no {noun} with a known outcome"
        if metric in self.at:
            name, place = self.at[metric]
            horizon = self.horizons[place]
            had = (outcomes[:, 0] <= horizon) & (outcomes[:, 1] > 0)
            if not (~had & (outcomes[:, 0] >= horizon)).any():
                return f"not estimable: no {noun} is followed to {horizon:g} without the event"
            lacks_events = name == "auc" and not had.any()
            return f"not estimable: no {noun} has the event by {horizon:g}" if lacks_events else None
        events = outcomes[outcomes[:, 1] > 0, 0]
        if not len(events):
            return f"not estimable: no {noun} with an event"
        outlived = (outcomes[:, 0] > events.min()) | (
            (outcomes[:, 0] == events.min()) & (outcomes[:, 1] == 0)
        )
        return None if outlived.any() else f"not estimable: no {noun} outlives one with an event"

    def by_horizon(self, outcomes: Outcomes) -> list[dict[str, Any]]:
        """Returns of how many of these it is known by each horizon, and the Brier score of one probability.

        It is that of the share p of events by then, p (1 - p), under the weights of `known_shares`; null
        where nobody is followed so long.
        """
        times, is_event = outcomes[:, 0].astype(np.float64), outcomes[:, 1] > 0
        entries = []
        for horizon in self.horizons:
            had = is_event & (times <= horizon)
            still = ~had & (times >= horizon)
            shares = known_shares(times, is_event, np.ones((1, len(times))), horizon)[0]
            share = float(shares[had].sum() / shares.sum()) if still.any() else None
            entries.append(
                {
                    "horizon": horizon,
                    "subjects": len(times),
                    "known": int((had | still).sum()),
                    "brier_of_one_probability": None if share is None else share * (1 - share),
                }
            )
        return entries

    def few(self, counts: Mapping[str, int]) -> list[str]:
        """Warns of few events: those of whom it is censored say less."""
        if counts["event"] >= ENOUGH:
            return []
        shown = ", ".join(f"{count} {name}" for name, count in counts.items())
        return [few_subjects_text(shown, f"{ENOUGH} events")]


def at_horizon(
    times: FloatArray, is_event: BoolArray, said: FloatArray, weights: FloatArray, horizon: float
) -> dict[str, FloatArray]:
    """Returns the Brier score and the AUC of probabilities of the event by a time, under each row of weights.

    Who is censored before the horizon counts in neither, and who is like them for more (`known_shares`). The
    AUC is cumulative/dynamic: of those with the event by then against those still without.

    Shape:
        times, is_event, said (n,), weights (b, n) -> (b,) each, NaN where nobody is still without

    Source: Graf et al. 1999, Assessment and comparison of prognostic classification schemes for survival
    data; Uno et al. 2007, Evaluating prediction rules for t-year survivors with censored regression models.
    """
    had = is_event & (times <= horizon)
    shares = known_shares(times, is_event, weights, horizon)
    both = weighted_metrics(
        had.astype(np.int64), np.stack([1 - said, said], axis=1), 0.5, shares, ["brier", "roc_auc"]
    )
    is_known = (shares * ~had).sum(axis=1) > 0
    return {"brier": np.where(is_known, both["brier"], np.nan), "auc": both["roc_auc"]}


def known_shares(times: FloatArray, is_event: BoolArray, weights: FloatArray, horizon: float) -> FloatArray:
    """Returns weights over the probability of not yet being censored, and 0 for who is before the horizon.

    That probability is Kaplan and Meier's of the same rows under the same weights, so the weights keep their
    sum. Where an event, or the horizon, and a censoring are at one time, the event or horizon is first.

    Shape:
        times, is_event (n,), weights (b, n) -> (b, n)
    """
    order = np.lexsort((~is_event, times))
    times, is_event = times[order], is_event[order]
    some = weights[:, order]
    at_risk = np.zeros((len(weights), len(times) + 1))
    at_risk[:, :-1] = np.cumsum(some[:, ::-1], axis=1)[:, ::-1]
    stays = np.ones_like(at_risk)
    np.divide(at_risk[:, 1:], at_risk[:, :-1], out=stays[:, 1:], where=~is_event & (at_risk[:, :-1] > 0))
    # of each row, and of the end, before whoever is censored there
    stays = np.asarray(np.cumprod(stays, axis=1))
    had = is_event & (times <= horizon)
    place = np.where(had, np.arange(len(times)), np.searchsorted(times, horizon))
    shares = np.zeros_like(some)
    is_known = had | (times >= horizon)
    np.divide(some, stays[:, place], out=shares, where=is_known & (some > 0))
    found = np.empty_like(shares)
    found[:, order] = shares
    return found


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
