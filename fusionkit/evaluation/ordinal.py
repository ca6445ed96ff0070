"""How predicted ranks are judged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fusionkit.evaluation.measures import ClassMeasures, Outcomes
from fusionkit.evaluation.metrics import FloatArray, IntArray, mean_under
from fusionkit.evaluation.survival import concordance


class OrdinalMeasures(ClassMeasures):
    """Of ranks: outcomes (n,), probabilities (n, k); called is the median rank."""

    kind = "ordinal"
    metrics: tuple[str, ...] = ("quadratic_kappa", "rank_error", "concordance", "accuracy", "brier")
    compared: tuple[str, ...] = ("quadratic_kappa", "rank_error")

    def called(self, predictions: FloatArray, threshold: float | FloatArray) -> IntArray:
        """Returns the median rank (n,), which has the least expected error in ranks."""
        at_least = np.cumsum(predictions[:, :0:-1], axis=1)
        return np.asarray((at_least > 0.5).sum(axis=1), dtype=np.int64)

    def weighted(
        self,
        outcomes: Outcomes,
        predictions: FloatArray,
        thresholds: float | FloatArray,
        weights: FloatArray,
        metrics: Sequence[str],
    ) -> dict[str, FloatArray]:
        """Returns each metric under each row of weights."""
        ranks, called = outcomes.astype(np.float64), self.called(predictions, 0.5).astype(np.float64)
        found: dict[str, FloatArray] = {}
        for name in metrics:
            if name == "quadratic_kappa":
                found[name] = _quadratic_kappa(ranks, called, weights)
            elif name == "rank_error":
                found[name] = mean_under(np.abs(ranks - called), weights)
            elif name == "concordance":
                expected = np.round(predictions @ np.arange(predictions.shape[1]), 12)
                found[name] = concordance(ranks, np.ones(len(ranks), dtype=bool), -expected, weights)
            elif name == "accuracy":
                found[name] = mean_under((ranks == called).astype(np.float64), weights)
            else:
                found |= super().weighted(outcomes, predictions, thresholds, weights, [name])
        return found

    def why_not(self, metric: str, outcomes: Outcomes, noun: str = "subject") -> str | None:
        """Says that there is nobody, or nobody of another rank."""
        present = np.unique(outcomes)
        if not len(present):
            return f"not estimable: no {noun} with a known outcome"
        if metric in ("quadratic_kappa", "concordance") and len(present) == 1:
            return f"not estimable: only {self.classes[int(present[0])]} {noun}s"
        return None


def _quadratic_kappa(ranks: FloatArray, called: FloatArray, weights: FloatArray) -> FloatArray:
    """Returns Cohen's kappa with squared distances; NaN where all are of one rank.

    Source: Cohen 1968, Weighted kappa. The expected distance of two who are drawn independently, one by its
    rank and one by what is called, needs only means and squares.
    """
    mean, mean_called = mean_under(ranks, weights), mean_under(called, weights)
    expected = mean_under(ranks**2, weights) + mean_under(called**2, weights) - 2 * mean * mean_called
    varies = mean_under(ranks**2, weights) - mean**2 > 1e-9
    shares = np.full(len(weights), np.nan)
    np.divide(mean_under((ranks - called) ** 2, weights), expected, out=shares, where=varies)
    return 1 - shares
