"""Where memory is full, work without learning is done in parts that give what the whole would."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import toy_images
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from toy_images import FOLD, FOLD_WITH_VALIDATION, make_experiment

from fusionkit.errors import ResourceError
from fusionkit.training.memory import Portions, count_rows, fewest_rows, take_rows
from fusionkit.training.pretrain import predict_pretrained
from fusionkit.training.stages import plan_steps, run_steps
from fusionkit.training.supervised import predict_logits

FULL = "CUDA out of memory. Tried to allocate 1 GiB."


def quiet(name: str, data: Any) -> None:
    pass


@given(st.integers(1, 100), st.integers(1, 20), st.integers(1, 2))
def test_parts_are_consecutive_complete_and_differ_by_one_at_most(n_rows, n_parts, least):
    parts = Portions("x", quiet, n_parts, least).cut(n_rows)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(n_rows))
    sizes = {part.stop - part.start for part in parts}
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= min(least, n_rows)
    assert len(parts) <= n_parts


@patch("gc.collect")  # it takes more time than all the rest
@given(n_rows=st.integers(1, 60), fits=st.integers(1, 60), least=st.integers(1, 2))
def test_halving_ends_at_what_fits_or_says_that_nothing_does(collect, n_rows, fits, least):
    portions, tried = Portions("x", quiet, least=least), []

    def compute(part: slice) -> int:
        tried.append(part)
        if part.stop - part.start > fits:
            raise RuntimeError(FULL)
        return part.stop - part.start

    if min(least, n_rows) > fits:
        with pytest.raises(ResourceError):
            portions.run(n_rows, compute)
        return
    if least == 2 and fits == 2 and n_rows % 2:
        return  # an odd number of rows has no parts of 2 alone: sometimes it fits, and sometimes not
    assert sum(portions.run(n_rows, compute)) == n_rows
    n_tried = len(tried)
    portions.run(n_rows, compute)
    assert len(tried) - n_tried == len(portions.cut(n_rows)), "the second time nothing fails"


def test_what_failed_is_let_go_before_the_next_attempt():
    """Else the memory of the failed attempt would be held while the next one asks for more."""
    import weakref

    held: list[Any] = []

    class Big:
        pass

    def compute(part: slice) -> None:
        if held:
            assert held[0]() is None
            return
        big = Big()
        held.append(weakref.ref(big))
        raise MemoryError

    Portions("x", quiet).run(4, compute)


@pytest.mark.parametrize(
    ("raw", "n_rows"),
    [
        (torch.zeros(5, 2), 5),
        (torch.tensor(1.0), None),
        ({"a": torch.zeros(5, 2), "b": [torch.zeros(5), torch.zeros(5)]}, 5),
        ({"a": torch.zeros(5, 2), "b": torch.zeros(4)}, None),
        ({"a": torch.zeros(5), "b": "text"}, None),
        ("text", None),
        ([], None),
    ],
)
def test_rows_are_counted_where_all_tensors_share_their_length(raw, n_rows):
    assert count_rows(raw) == n_rows


def test_rows_are_taken_of_every_tensor():
    raw = {"a": torch.arange(5), "b": (torch.arange(5) * 2, [torch.arange(5) * 3])}
    taken = take_rows(raw, slice(1, 3))
    assert taken["a"].tolist() == [1, 2]
    assert taken["b"][0].tolist() == [2, 4]
    assert taken["b"][1][0].tolist() == [3, 6]


def test_batch_normalisation_needs_two_rows():
    assert fewest_rows({"head": nn.Linear(2, 2)}) == 1
    assert fewest_rows({"a": nn.Linear(2, 2), "b": nn.Sequential(nn.BatchNorm2d(3))}) == 2


class Full:
    """Lets forward of a kind of part run out of memory above some rows, outside of training if asked."""

    def __init__(self, monkeypatch: Any, kind: Any, rows: int, *, only_eval: bool = True) -> None:
        self.n_full = 0
        real = kind.forward

        def forward(part: Any, inputs: Any, *rest: Any) -> Any:
            first = inputs if isinstance(inputs, torch.Tensor) else next(iter(inputs.values()))
            if len(first) > rows and not (only_eval and part.training):
                self.n_full += 1
                raise RuntimeError(FULL)
            return real(part, inputs, *rest)

        monkeypatch.setattr(kind, "forward", forward)


def outcomes(folder: Any, told: list[Any]) -> tuple[Any, ...]:
    """Runs features, validation and prediction of the toy recipe."""
    overrides = [
        "split.validation=0.2",
        "stages.fuse.early_stopping=2",
        "stages.learn_image.early_stopping=2",
    ]
    experiment = make_experiment(folder, *overrides, tell=lambda name, data: told.append((name, data)))
    plan = plan_steps(experiment, FOLD_WITH_VALIDATION, 0)
    run_steps(experiment, plan)
    stage = experiment.factory.loaded.recipe.stages[2]
    logits = predict_logits(experiment, plan.origins, FOLD.test)
    pretrained = predict_pretrained(experiment, stage, plan.origins["image.encoder"], FOLD.test)
    artefact = experiment.store.load(plan.steps[-1].address)
    assert artefact is not None
    return logits, pretrained, [record["validation_loss"] for record in artefact.metadata["history"]]


def test_features_validation_and_prediction_in_parts_equal_the_whole(tmp_path, monkeypatch):
    whole = outcomes(tmp_path / "whole", [])
    monkeypatch.setattr("gc.collect", lambda: 0)  # it takes more time than all the rest
    told: list[Any] = []
    encoder = Full(monkeypatch, toy_images.ToyConv, 3)
    head = Full(monkeypatch, toy_images.NormHead, 2)
    for found, expected in zip(outcomes(tmp_path / "parts", told), whole, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    where = {data["where"] for name, data in told if name == "memory_full"}
    assert where == {"features of image", "validation", "prediction", "pretrained image"}
    assert encoder.n_full < 12, "what memory asks for is remembered"
    assert head.n_full < 12


def test_a_pretrain_stage_in_parts_learns_what_the_whole_batch_teaches(tmp_path, monkeypatch):
    """Without batch normalisation and dropout the parts' gradients are the batch's."""
    monkeypatch.setattr(toy_images.nn, "BatchNorm2d", lambda width: nn.Identity())
    monkeypatch.setattr(toy_images.nn, "Dropout", lambda share: nn.Identity())

    def learn(folder: Any, told: list[Any]) -> dict[str, torch.Tensor]:
        experiment = make_experiment(folder, tell=lambda name, data: told.append((name, data)))
        plan = plan_steps(experiment, FOLD, 0)
        step = plan.steps[2]
        run_steps(experiment, replace(plan, steps=(step,)))
        artefact = experiment.store.load(step.address)
        assert artefact is not None
        return dict(artefact.tensors)

    whole, told = learn(tmp_path / "whole", []), []
    Full(monkeypatch, toy_images.ToyConv, 3, only_eval=False)
    parts = learn(tmp_path / "parts", told)
    assert [data["parts"] for name, data in told if name == "memory_full"] == [2, 4]
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-3, atol=1e-5)
