"""roc: mean curves with intervals over subjects."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics
from hypothesis import given, settings
from hypothesis import strategies as st
from test_intervals import fold_of, simulate

from fusionkit.evaluation.roc import GRID, roc_curve


def oracle(labels, scores):
    """scikit-learn's curve, read off at the grid: of equal false positive rates, the highest point."""
    alarms, hits, _ = sklearn.metrics.roc_curve(labels, scores, drop_intermediate=False)
    last = np.append(np.diff(alarms) > 0, True)
    return np.interp(GRID, alarms[last], hits[last])


@given(st.integers(0, 1000), st.sampled_from([0, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_the_curve_of_one_fold_is_scikit_learns(seed, decimals):
    [fold] = simulate(n=30, n_folds=1, seed=seed, decimals=decimals)
    curve = roc_curve([fold], resamples=20)
    assert curve.mean == pytest.approx(oracle(fold.rows.outcomes, fold.rows.predictions[:, 1]))


def test_repeats_are_averaged_at_equal_false_positive_rates():
    folds = simulate(n=40, n_folds=4, repeats=2)
    each = []
    for repeat in (0, 1):
        rows = [fold.rows for fold in folds if fold.repeat == repeat]
        labels = np.concatenate([one.outcomes for one in rows])
        each.append(oracle(labels, np.concatenate([one.predictions[:, 1] for one in rows])))
    assert roc_curve(folds, resamples=20).mean == pytest.approx(np.mean(each, axis=0))


def test_the_band_holds_the_curve_and_depends_on_the_seed_alone():
    folds = simulate(n=60, n_folds=1)
    one, again, other = (roc_curve(folds, resamples=200, seed=seed) for seed in (0, 0, 1))
    assert (one.low == again.low).all()
    assert (one.low != other.low).any()
    assert (one.low <= one.high).all()
    inside = (one.low <= one.mean) & (one.mean <= one.high)
    assert inside.mean() > 0.95


def test_more_subjects_give_a_narrower_band():
    few, many = (roc_curve(simulate(n=n, n_folds=1), resamples=200) for n in (40, 400))
    assert (many.high - many.low).mean() < 0.6 * (few.high - few.low).mean()


def test_there_is_no_curve_of_one_class():
    assert roc_curve([fold_of(0, 0, ["a", "b"], [1, 1], [0.2, 0.7])]) is None
