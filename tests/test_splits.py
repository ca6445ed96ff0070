"""Splits: subjects stay whole, classes stay balanced, and nothing depends on the order of rows."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold, make_folds
from fusionkit.errors import DataError
from fusionkit.recipe.schema import ColumnSplit, FoldSplit, HoldoutSplit

CLASSES = ("benign", "malignant")
OUTCOME = {"b": "benign", "m": "malignant"}


def manifest(subjects, outcomes=None, column=None) -> Manifest:
    """Subjects are called b1, m7, ...: their first letter is their class."""
    outcomes = outcomes or [OUTCOME[subject[0]] for subject in subjects]
    frame = pl.DataFrame({"set": column or [None] * len(subjects)}, schema={"set": pl.String})
    ids = [f"s{i}" for i in range(len(subjects))]
    return Manifest(ids, subjects, outcomes, frame, {}, CLASSES, Path())


def split(spec, subjects, seed=0, **options) -> list[Fold]:
    return make_folds(spec, manifest(subjects, **options), {one: OUTCOME[one[0]] for one in subjects}, seed)


def cohort(n_benign: int, n_malignant: int, n_samples: int = 1) -> list[str]:
    names = [f"b{i}" for i in range(n_benign)] + [f"m{i}" for i in range(n_malignant)]
    return [name for name in names for _ in range(n_samples)]


def folds(n: int, **options) -> FoldSplit:
    return FoldSplit(scheme="folds", folds=n, **options)


def holdout(**options) -> HoldoutSplit:
    return HoldoutSplit(scheme="holdout", **options)


def column(**options) -> ColumnSplit:
    return ColumnSplit(scheme="column", column="set", **options)


def refusal(spec, subjects, **options) -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        split(spec, subjects, **options)
    return error.value.problems


def n_of(rows, subjects) -> Counter:
    return Counter(OUTCOME[name[0]] for name in {subjects[row] for row in rows})


# properties


@st.composite
def cohorts(draw):
    n_folds = draw(st.integers(2, 5))
    n_benign, n_malignant = draw(st.integers(2 * n_folds, 30)), draw(st.integers(2 * n_folds, 30))
    names = cohort(n_benign, n_malignant)
    extra = draw(st.lists(st.sampled_from(names), max_size=40))
    return n_folds, draw(st.permutations(names + extra)), draw(st.integers(0, 3))


@settings(max_examples=40, deadline=None)
@given(cohorts(), st.sampled_from([0.0, 0.2, 0.5]))
def test_folds_partition_whole_subjects_and_balance_classes(case, validation):
    n_folds, subjects, seed = case
    result = split(folds(n_folds, repeats=2, validation=validation), subjects, seed)
    assert [(fold.repeat, fold.fold) for fold in result] == [(r, f) for r in range(2) for f in range(n_folds)]
    for fold in result:
        sets = [fold.train, fold.validation, fold.test]
        assert sorted(row for rows in sets for row in rows) == list(range(len(subjects)))
        assert all(list(rows) == sorted(rows) for rows in sets)
        named = [{subjects[row] for row in rows} for rows in sets]
        assert sum(map(len, named)) == len(set.union(*named))
        assert bool(fold.validation) == bool(validation)
        assert all(set(n_of(rows, subjects)) == set(CLASSES) for rows in sets if rows)
    for repeat in range(2):
        tests = [fold.test for fold in result if fold.repeat == repeat]
        assert sorted(row for rows in tests for row in rows) == list(range(len(subjects)))
        counts = [n_of(rows, subjects) for rows in tests]
        for name in CLASSES:
            per_fold = [count[name] for count in counts]
            assert max(per_fold) - min(per_fold) <= 1
        totals = [count.total() for count in counts]
        assert max(totals) - min(totals) <= 1


@settings(max_examples=20, deadline=None)
@given(cohorts(), st.sampled_from(["folds", "holdout"]), st.randoms(use_true_random=False))
def test_the_order_of_rows_has_no_influence(case, scheme, shuffler: random.Random):
    n_folds, subjects, seed = case
    spec = folds(n_folds, validation=0.2) if scheme == "folds" else holdout(validation=0.2, repeats=2)
    shuffled = list(subjects)
    shuffler.shuffle(shuffled)
    for one, other in zip(split(spec, subjects, seed), split(spec, shuffled, seed), strict=True):
        for name in ("train", "validation", "test"):
            assert {subjects[row] for row in getattr(one, name)} == {
                shuffled[row] for row in getattr(other, name)
            }


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 60), st.integers(2, 60), st.floats(0.05, 0.95))
def test_a_holdout_takes_its_share_of_each_class(n_benign, n_malignant, share):
    subjects = cohort(n_benign, n_malignant, 2)
    (fold,) = split(holdout(test=share), subjects)
    assert sorted(fold.train + fold.test) == list(range(len(subjects)))
    assert fold.validation == ()
    for name, count in (("benign", n_benign), ("malignant", n_malignant)):
        n_test = n_of(fold.test, subjects)[name]
        assert 1 <= n_test <= count - 1
        assert abs(n_test - share * count) <= 0.5 or n_test in (1, count - 1)


def test_validation_is_a_share_of_the_training_subjects():
    subjects = cohort(50, 100)
    (fold,) = split(holdout(test=0.2, validation=0.25), subjects)
    assert n_of(fold.test, subjects) == {"benign": 10, "malignant": 20}
    assert n_of(fold.validation, subjects) == {"benign": 10, "malignant": 20}


@pytest.mark.parametrize(
    "make", [lambda n: folds(3, repeats=n, validation=0.2), lambda n: holdout(repeats=n)]
)
def test_more_repeats_leave_the_earlier_ones_alone(make):
    subjects = cohort(12, 12)
    few, many = split(make(2), subjects), split(make(5), subjects)
    assert many[: len(few)] == few
    assert len({fold.test for fold in many}) == len(many)


def test_the_seed_decides():
    subjects = cohort(12, 12)
    assert split(folds(3), subjects, 1) == split(folds(3), subjects, 1)
    assert split(folds(3), subjects, 1) != split(folds(3), subjects, 2)


def test_shuffles_are_fair():
    subjects = cohort(10, 10)
    tested = Counter(row for fold in split(holdout(test=0.3, repeats=1000), subjects) for row in fold.test)
    # binomial(1000, .3): standard deviation 14.5
    assert all(abs(tested[row] - 300) < 65 for row in range(20))


# rows that are in no set


def test_rows_without_outcome_are_in_no_set():
    subjects = cohort(4, 4, 2)
    outcomes = [None if row in (0, 9) else OUTCOME[name[0]] for row, name in enumerate(subjects)]
    for fold in split(folds(2), subjects, outcomes=outcomes):
        assert fold.left_out == (0, 9)
        assert not {0, 9} & set(fold.train + fold.test)


def test_subjects_without_outcome_are_in_no_set():
    subjects = cohort(4, 4, 2)
    known = {name: OUTCOME[name[0]] for name in subjects if name != "b1"}
    for fold in make_folds(folds(2), manifest(subjects), known, 0):
        assert fold.left_out == (2, 3)


# splitting by sample


def test_samples_are_split_only_when_asked_for():
    subjects = cohort(4, 4, 8)
    result = split(folds(2, unit="sample", accept_leakage=True), subjects)
    assert sorted(result[0].test + result[1].test) == list(range(len(subjects)))
    assert {subjects[row] for row in result[0].test} & {subjects[row] for row in result[1].test}


def test_samples_are_stratified_by_their_own_outcome():
    subjects = ["b0"] * 10
    outcomes = ["benign"] * 6 + ["malignant"] * 4
    for fold in split(folds(2, unit="sample", accept_leakage=True), subjects, outcomes=outcomes):
        assert Counter(outcomes[row] for row in fold.test) == {"benign": 3, "malignant": 2}


# a column


def test_a_column_says_which_row_goes_where():
    subjects = ["b0", "m0", "b1", "m1", "b2", "m2", "b3"]
    sets = ["train", "train", "dev", "dev", "test", "test", None]
    (fold,) = split(column(validation=("dev",)), subjects, column=sets)
    assert fold == Fold(0, 0, (0, 1), (2, 3), (4, 5), (6,))
    (fold,) = split(column(), subjects, column=sets)
    assert fold == Fold(0, 0, (0, 1), (), (4, 5), (2, 3, 6))


def test_a_subject_on_two_sides_is_named_with_its_samples():
    subjects = ["b0", "m0", "b0", "m1", "b1", "b0"]
    sets = ["train", "train", "test", "test", "test", "train"]
    assert refusal(column(), subjects, column=sets) == (
        "split: subject b0 is on several sides of 'set' (train: s0 s5, test: s2). Put it on one side.",
    )


def test_a_column_must_fill_every_set():
    subjects = ["b0", "m0", "b1"]
    sets = ["train", "train", "test"]
    assert refusal(column(validation=("dev",)), subjects, column=sets) == (
        "split: the validation rows hold no 'benign' subject (column 'set': dev). "
        "Every set needs: benign, malignant.",
        "split: the validation rows hold no 'malignant' subject (column 'set': dev). "
        "Every set needs: benign, malignant.",
        "split: the test rows hold no 'malignant' subject (column 'set': test). "
        "Every set needs: benign, malignant.",
    )


def test_a_column_must_fill_every_set_with_what_is_needed_alone():
    subjects = ["b0", "m0", "b1", "m1"]
    rows = manifest(subjects, column=["train", "train", "train", "test"])
    outcomes = {one: OUTCOME[one[0]] for one in subjects}
    (fold,) = make_folds(column(), rows, outcomes, 0, needed=["malignant"])
    assert (fold.train, fold.test) == ((0, 1, 2), (3,))
    with pytest.raises(DataError) as error:
        make_folds(column(), rows, outcomes, 0, needed=["benign"])
    assert error.value.problems == (
        "split: the test rows hold no 'benign' subject (column 'set': test). Every set needs: benign.",
    )


def test_the_column_must_exist():
    spec = ColumnSplit(scheme="column", column="sett")
    assert refusal(spec, ["b0"]) == (
        "split: the data have no column 'sett'. Did you mean 'set'? Known: set.",
    )


# refusals


def test_every_fold_must_test_every_class():
    assert refusal(folds(5), cohort(12, 4)) == (
        "split: fold 2 of 5 would test no 'malignant' subject (4 'malignant' subjects in all). "
        "Use at most 4 folds.",
    )
    assert split(folds(4), cohort(12, 4))


def test_both_classes_may_be_too_few():
    assert refusal(folds(5), cohort(3, 1)) == (
        "split: fold 4 of 5 would test no 'benign' subject (3 'benign' subjects in all). Use more data.",
        "split: fold 1 of 5 would test no 'malignant' subject (1 'malignant' subject in all). Use more data.",
    )


@pytest.mark.parametrize("spec", [folds(2), holdout()])
def test_one_class_only(spec):
    assert refusal(spec, cohort(3, 0)) == (
        "split: there is no 'malignant' subject (3 subjects with a known outcome). "
        "Every class must be there: benign, malignant.",
    )


def test_a_holdout_needs_two_subjects_of_each_class():
    assert refusal(holdout(), cohort(5, 1)) == (
        "split: train and test need one 'malignant' subject each "
        "(1 'malignant' subject to choose from). Use more data.",
    )


def test_a_validation_share_needs_two_training_subjects_of_each_class():
    assert refusal(holdout(validation=0.2), cohort(5, 2)) == (
        "split: train and validation need one 'malignant' subject each "
        "(1 'malignant' subject to choose from). Use more data.",
    )
