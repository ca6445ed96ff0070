"""Splits of outcomes that are no class: by quantiles of a number, and by labels; of classes, as ever."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from task_runs import load, places_in, tell
from task_toys import truth

from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold, make_folds
from fusionkit.prepare import prepare
from fusionkit.recipe.schema import FoldSplit, HoldoutSplit

STRATA = ("censored", "event")


def deal(spec, strata, spread, seed=0, n_samples=2, order=None) -> list[Fold]:
    """Splits subjects p0, p1, ... of `n_samples` rows each, given strata and what they are spread by."""
    names = [f"p{i}" for i in range(len(strata)) for _ in range(n_samples)]
    rows = list(range(len(names))) if order is None else order
    subjects = [names[row] for row in rows]
    known = {f"p{i}": stratum for i, stratum in enumerate(strata)}
    manifest = Manifest(
        [f"s{row}" for row in rows],
        subjects,
        [known[s] for s in subjects],
        pl.DataFrame(),
        {},
        STRATA,
        Path(),
    )
    found = {f"p{i}": value for i, value in enumerate(spread)}
    return make_folds(spec, manifest, known, seed, ["event"], found)


def people(rows, order=None, n_samples=2) -> set[int]:
    return {(row if order is None else order[row]) // n_samples for row in rows}


def quantile_of(strata, numbers, n_parts) -> list[tuple[str, int]]:
    """Returns each subject's stratum and which of `n_parts` its number is in, where no two are equal."""
    parts: list = [None] * len(strata)
    for stratum in set(strata):
        members = sorted((i for i in range(len(strata)) if strata[i] == stratum), key=numbers.__getitem__)
        n = max(1, min(10, n_parts(len(members))))
        for part in range(n):
            for i in members[len(members) * part // n : len(members) * (part + 1) // n]:
                parts[i] = (stratum, part)
    return parts


@st.composite
def cohorts(draw):
    strata = draw(st.lists(st.sampled_from(STRATA), min_size=8, max_size=90)) + ["event"] * 10
    numbers = [float(value) for value in draw(st.permutations(range(len(strata))))]
    return strata, numbers, draw(st.integers(2, 5)), draw(st.integers(0, 3))


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.sampled_from([0.0, 0.2]))
def test_folds_share_each_quantile_of_each_stratum(case, validation):
    strata, numbers, n_folds, seed = case
    spec = FoldSplit(scheme="folds", folds=n_folds, repeats=2, validation=validation)
    result = deal(spec, strata, numbers, seed)
    parts = quantile_of(strata, numbers, lambda n: n // n_folds)
    for fold in result:
        sets = [people(rows) for rows in (fold.train, fold.validation, fold.test)]
        assert sorted(one for some in sets for one in some) == list(range(len(strata)))
    for repeat in range(2):
        tests = [people(fold.test) for fold in result if fold.repeat == repeat]
        assert sorted(one for some in tests for one in some) == list(range(len(strata)))
        for value_of in (parts, strata, [0] * len(strata)):
            for value in set(value_of):
                counts = [sum(value_of[one] == value for one in test) for test in tests]
                assert max(counts) - min(counts) <= 1


@settings(max_examples=60, deadline=None)
@given(cohorts(), st.floats(0.05, 0.95))
def test_a_holdout_takes_its_share_of_each_quantile(case, share):
    strata, numbers, _, seed = case
    (fold,) = deal(HoldoutSplit(scheme="holdout", test=share), strata, numbers, seed)
    taken = people(fold.test)
    assert people(fold.train) | taken == set(range(len(strata)))
    assert not people(fold.train) & taken
    sizes = Counter(strata)
    n_taken = {g: min(max(1, int(share * n + 0.5)), n - 1) for g, n in sizes.items()}
    assert Counter(strata[one] for one in taken) == {g: n for g, n in n_taken.items() if n}
    parts = quantile_of(strata, numbers, lambda n: min(max(1, int(share * n + 0.5)), n - 1))
    for part, size in Counter(parts).items():
        expected = size * n_taken[part[0]] / sizes[part[0]]
        assert abs(sum(parts[one] == part for one in taken) - expected) < 1


@settings(max_examples=30, deadline=None)
@given(cohorts(), st.booleans(), st.randoms(use_true_random=False))
def test_the_order_of_rows_has_no_influence_and_the_seed_has(case, has_labels, shuffler: random.Random):
    strata, numbers, n_folds, seed = case
    spread = [(value % 3 == 0, value % 7 == 0) for value in numbers] if has_labels else numbers
    order = list(range(2 * len(strata)))
    shuffler.shuffle(order)
    for spec in (FoldSplit(scheme="folds", folds=n_folds, validation=0.2), HoldoutSplit(scheme="holdout")):
        plain, mixed = deal(spec, strata, spread, seed), deal(spec, strata, spread, seed, order=order)
        for one, other in zip(plain, mixed, strict=True):
            for name in ("train", "validation", "test"):
                assert people(getattr(one, name)) == people(getattr(other, name), order)
    assert deal(spec, strata, spread, seed) != deal(spec, strata, spread, seed + 1)


@pytest.mark.parametrize("n", [12, 25])
def test_shuffles_are_fair_to_every_quantile(n):
    spec = HoldoutSplit(scheme="holdout", test=0.2, repeats=1000)
    result = deal(spec, ["event"] * n, list(map(float, range(n))), n_samples=1)
    tested = Counter(row for fold in result for row in fold.test)
    share = int(0.2 * n + 0.5) / n
    # a standard deviation of a binomial is at most 13
    assert all(abs(tested[row] - 1000 * share) < 60 for row in range(n))
    assert len({fold.test for fold in result}) > 30


def test_equal_numbers_are_dealt_by_chance():
    spec = FoldSplit(scheme="folds", folds=2, repeats=1000)
    result = deal(spec, ["event"] * 12, [1.0] * 12, n_samples=1)
    together = sum({0, 1} <= set(fold.test) for fold in result)
    # 2 x 1000 x P(both in a fold of 6 of 12) / 2; its standard deviation is 16
    assert together == pytest.approx(1000 * 5 / 11, abs=64)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000), n=st.integers(10, 80), n_labels=st.integers(1, 6), n_folds=st.integers(2, 5)
)
def test_labels_are_dealt_in_proportion_and_sizes_are_even(seed, n, n_labels, n_folds):
    rng = np.random.default_rng(seed)
    has = rng.uniform(size=(n, n_labels)) < rng.uniform(0.02, 0.6, n_labels)
    spread = [tuple(map(bool, row)) for row in has]
    result = deal(FoldSplit(scheme="folds", folds=n_folds), ["event"] * n, spread, seed)
    tests = [people(fold.test) for fold in result]
    assert sorted(one for test in tests for one in test) == list(range(n))
    assert max(map(len, tests)) - min(map(len, tests)) <= 1
    counts = np.array([[has[sorted(test), label].sum() for label in range(n_labels)] for test in tests])
    # labels that come together cannot all be even; the rarest, which is dealt first, is
    rarest = int(np.where(has.any(0), has.sum(0), n + 1).argmin())
    assert np.ptp(counts[:, rarest]) <= 1
    (fold,) = deal(HoldoutSplit(scheme="holdout", test=0.3), ["event"] * n, spread, seed)
    assert len(people(fold.test)) == int(0.3 * n + 0.5)
    assert not people(fold.test) & people(fold.train)


def test_rare_labels_are_spread_much_better_than_by_chance():
    rng = np.random.default_rng(0)
    has = rng.uniform(size=(400, 8)) < np.geomspace(0.02, 0.4, 8)
    spec = FoldSplit(scheme="folds", folds=5, repeats=20)
    spread = [tuple(map(bool, row)) for row in has]

    def variance(**options) -> float:
        folds = [sorted(people(fold.test)) for fold in deal(spec, ["event"] * 400, **options)]
        return float(np.mean([(has[test].sum(0) - has.sum(0) / 5) ** 2 for test in folds]))

    assert variance(spread=spread) < 0.1 * variance(spread=())


def test_the_splits_of_classes_are_as_ever():
    rng = random.Random(0)
    strata = [rng.choice(STRATA) for _ in range(60)]
    specs = [
        FoldSplit(scheme="folds", folds=4, repeats=2, validation=0.2),
        HoldoutSplit(scheme="holdout", test=0.3, validation=0.1, repeats=3),
    ]
    said = repr([deal(spec, strata, (), seed=3) for spec in specs])
    assert hashlib.sha256(said.encode()).hexdigest()[:16] == "51cc0579b20ef167"


@pytest.mark.parametrize(
    ("task", "columns"),
    [
        ("{kind: regression, column: score}", ("score",)),
        ("{kind: survival, time: months, event: died}", ("months", "died")),
        ("{kind: multi_label, columns: [likes, rare]}", ("likes", "rare")),
    ],
)
def test_a_run_is_split_by_the_outcome_of_its_task(task, columns, tmp_path):
    prepared = prepare(load(task, "split.repeats=10")[0], places_in(tmp_path), tell)
    known = truth(0, 160)
    for column in columns:
        values = np.asarray(known[column], dtype=float)
        means = [values[sorted(people(fold.test))].mean() for fold in prepared.folds]
        # the mean of a half drawn by chance has a standard deviation of 1 / sqrt(160) of the values'
        assert np.std(means) < 0.35 * values.std() / np.sqrt(160)
