"""What the audit says of outcomes that are numbers, before anything is trained."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from task_runs import load, places_in, tell
from task_toys import truth

from fusionkit.data.audit_outcomes import _spearman
from fusionkit.errors import DataError
from fusionkit.prepare import examine, prepare

KNOWN = truth(0, 160)
REGRESSION = "{kind: regression, column: score}"
SURVIVAL = "{kind: survival, time: months, event: died}"
LABELS = "{kind: multi_label, columns: [likes, rare]}"


def everyone(values):
    """Returns what each subject's cell says."""
    return {f"s0.{i}": text for i, text in enumerate(map(str, np.broadcast_to(values, 160)))}


def warnings_of(tmp_path, task, cells):
    audit = examine(load(task, cells=cells)[0], places_in(tmp_path), tell).audit
    return [found.message for found in audit.warnings], audit.problems()


@pytest.mark.parametrize("value", ["0.1", "3"])
def test_a_number_that_is_the_same_in_all_rows_is_an_error_before_training(tmp_path, value):
    with pytest.raises(DataError) as caught:
        prepare(load(REGRESSION, cells={"score": everyone(value)})[0], places_in(tmp_path), tell)
    assert list(caught.value.problems) == [
        f"task: the outcome is the same in all 320 rows (score is {value}). Name another column."
    ]


@pytest.mark.parametrize(
    ("task", "cells", "warning"),
    [
        (
            SURVIVAL,
            {"months": everyone("12")},
            "task: every time is the same (months is 12). Check the column.",
        ),
        (
            LABELS,
            {"rare": everyone("1")},
            "task: rare: every row of which it is known has it. Leave the label out.",
        ),
        (
            LABELS,
            {"rare": everyone("0")},
            "task: rare: every row of which it is known lacks it. Leave the label out.",
        ),
        (LABELS, {"rare": everyone("")}, "task: rare: it is known of no row. Leave the label out."),
        (
            REGRESSION,
            {"c": everyone(-KNOWN["score"])},
            "two: c gives the outcome away: alone it ranks 160 subjects as the outcome does "
            "(Spearman -1.000). Leave it out if it is not known before the outcome is.",
        ),
        (
            SURVIVAL,
            {"c": everyone(KNOWN["months"] * 2)},
            f"two: c gives the outcome away: alone it ranks {KNOWN['died'].sum()} subjects as the time of "
            "those with the event does (Spearman 1.000). Leave it out if it is not known before the "
            "outcome is.",
        ),
        (
            LABELS,
            {"c": everyone(KNOWN["rare"])},
            "two: c gives the outcome away: alone it reaches an AUC of 1.000 for rare, cross-validated by "
            "subject. Leave it out if it is not known before the outcome is.",
        ),
    ],
)
def test_what_tells_nothing_or_too_much_is_a_warning(tmp_path, task, cells, warning):
    assert warnings_of(tmp_path, task, cells) == ([warning], [])
    assert warnings_of(tmp_path, task, None) == ([], [])


def test_a_horizon_beyond_the_training_rows_is_an_error_and_of_one_fold_none_is_named(tmp_path):
    task = SURVIVAL.replace("}", ", horizons: [24, 500]}")
    loaded, _ = load(task, "split={scheme: holdout, test: 0.3}")
    (problem,) = examine(loaded, places_in(tmp_path), tell).audit.problems()
    assert problem.startswith("task.horizons: nobody in training is followed so long (500, and the longest ")


def test_the_correlation_is_scipys():
    a, b = np.random.default_rng(0).integers(0, 5, (2, 30)).astype(float)
    assert _spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert _spearman(a, np.zeros(30)) == 0
