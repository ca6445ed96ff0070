from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fusionkit.task import Classification
from fusionkit.tasks import make_task

TASK = Classification(("benign", "malignant"))


def test_outcomes_become_indices_in_the_order_of_the_classes():
    assert TASK.encode(["malignant", "benign", None]).tolist() == [1, 0, -1]
    assert TASK.encode([]).dtype == np.int64
    assert TASK.output_dim == 2
    assert Classification("abc").encode(["c", "a"]).tolist() == [2, 0]


def test_an_outcome_outside_the_classes_is_an_error():
    with pytest.raises(KeyError):
        TASK.encode(["normal"])


def test_the_identity_follows_the_classes_and_their_order():
    assert TASK.identity() == {"task": "classification", "classes": ["benign", "malignant"]}
    assert Classification(("malignant", "benign")).identity() != TASK.identity()


def test_the_loss_is_the_mean_of_weight_times_minus_log_probability():
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-1.0, 3.0]], dtype=torch.float64)
    targets, weights = torch.tensor([0, 0, 1]), torch.tensor([1.0, 2.0, 5.0], dtype=torch.float64)

    def surprise(row: int, target: int) -> float:
        a, b = logits[row].tolist()
        return -math.log(math.exp((a, b)[target]) / (math.exp(a) + math.exp(b)))

    expected = (surprise(0, 0) + 2 * surprise(1, 0) + 5 * surprise(2, 1)) / 3
    assert float(TASK.loss(logits, targets, weights)) == pytest.approx(expected, rel=1e-12)
    assert float(TASK.loss(logits, targets, 10 * weights)) == pytest.approx(10 * expected, rel=1e-12)


def test_probabilities_are_the_softmax():
    probabilities = TASK.link(torch.tensor([[0.0, math.log(3)], [800.0, -800.0]]))
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0.75], [1.0, 0.0]]))


def test_a_node_of_no_task_is_an_error():
    with pytest.raises(AssertionError, match="unreachable, but got: 'ordinal'"):
        make_task("ordinal", ("low", "middle", "high"))
