"""How predicted numbers are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from fusionkit.evaluation.measures import ENOUGH, NumberMeasures, Outcomes, few_subjects_text
from fusionkit.evaluation.metrics import FloatArray, mean_under


class RegressionMeasures(NumberMeasures):
    """Of numbers: outcomes (n, 1), predictions (n, 1)."""

    kind = "regression"
    metrics: tuple[str, ...] = ("r2", "mae", "rmse", "spearman")
    compared: tuple[str, ...] = ("r2", "mae")
    columns: tuple[str, ...] = ("outcome", "predicted")

    def counts(self, outcomes: Outcomes) -> dict[str, int]:
        """Returns how many there are."""
        return {"measured": len(outcomes)}

    def weighted(
        self,
        outcomes: Outcomes,
        predictions: FloatArray,
        thresholds: float | FloatArray,
        weights: FloatArray,
        metrics: Sequence[str],
    ) -> dict[str, FloatArray]:
        """Returns each metric under each row of weights."""
        known, said = outcomes[:, 0].astype(np.float64), predictions[:, 0]
        return {name: _METRICS[name](known, said, weights) for name in metrics}

    def why_not(self, metric: str, outcomes: Outcomes, noun: str = "subject") -> str | None:
        """Says that there is nobody, or no difference to explain."""
        if not len(outcomes):
            return f"not estimable: no {noun} with a known outcome"
        if metric in ("r2", "spearman") and (outcomes == outcomes[0]).all():
            return f"not estimable: every {noun} has the same outcome"
        return None

    def few(self, counts: Mapping[str, int]) -> list[str]:
        """Warns of few subjects."""
        n_subjects = counts["measured"]
        return [few_subjects_text(str(n_subjects), str(ENOUGH))] if n_subjects < ENOUGH else []


def _r2(known: FloatArray, said: FloatArray, weights: FloatArray) -> FloatArray:
    """Returns the share of the variance that is explained, against the mean of the same subjects."""
    # centred first, so that a large mean costs no digits
    known, said = known - _middle(known), said - _middle(known)
    left = mean_under((known - said) ** 2, weights)
    whole = mean_under(known**2, weights) - mean_under(known, weights) ** 2
    return _ratio_to(left, whole, known)


def _middle(values: FloatArray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _ratio_to(left: FloatArray, whole: FloatArray, known: FloatArray) -> FloatArray:
    shares = np.full(len(left), np.nan)
    # what rounding leaves of a variance of zero is none
    least = 1e-12 * float((known**2).mean()) if len(known) else 0.0
    np.divide(left, whole, out=shares, where=whole > least)
    return 1 - shares


def _rmse(known: FloatArray, said: FloatArray, weights: FloatArray) -> FloatArray:
    return np.sqrt(mean_under((known - said) ** 2, weights))


def _spearman(known: FloatArray, said: FloatArray, weights: FloatArray) -> FloatArray:
    """Returns the correlation of ranks; a subject that is drawn twice is there twice."""
    total = weights.sum(axis=1, keepdims=True)
    # half of the whole, which is the mean of all ranks
    a, b = (_ranks(values, weights) - (total + 1) / 2 for values in (known, said))
    products = [(weights * x * y).sum(axis=1) for x, y in ((a, b), (a, a), (b, b))]
    scale = np.sqrt(products[1] * products[2])
    found = np.full(len(weights), np.nan)
    np.divide(products[0], scale, out=found, where=scale > 1e-9)
    return found


def _ranks(values: FloatArray, weights: FloatArray) -> FloatArray:
    """Returns (b, n): the mean of the ranks of all copies of all that has the same value."""
    if not len(values):
        return np.zeros_like(weights)
    _, tied = np.unique(values, return_inverse=True)
    order = np.argsort(tied, kind="stable")
    starts = np.flatnonzero(np.append(True, np.diff(tied[order]) != 0))
    of_value = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = np.cumsum(of_value, axis=1) - of_value / 2 + 0.5
    return np.asarray(ranks[:, tied])


_METRICS: Mapping[str, Callable[[FloatArray, FloatArray, FloatArray], FloatArray]] = {
    "r2": _r2,
    "mae": lambda known, said, weights: mean_under(np.abs(known - said), weights),
    "rmse": _rmse,
    "spearman": _spearman,
}
