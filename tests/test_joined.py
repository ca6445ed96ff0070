"""Heads that are fitted: in closed form, or without outcomes; planned, computed, checked, stored."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
import toy_images
from torch import nn
from toy_images import FOLD, make_experiment, make_manifest, name_of, with_cell

from fusionkit import HeadSpec, hookimpl
from fusionkit.data.batches import make_units
from fusionkit.errors import PluginError, RecipeError, TrainingError
from fusionkit.learned import patterns_of
from fusionkit.model import seed_of
from fusionkit.training.joined import head_inputs, head_units
from fusionkit.training.stages import plan_steps, run_steps
from fusionkit.training.supervised import predict_logits

SEEN: list = []


class Nearest(nn.Module):
    """Learns each class's mean in closed form; what it keeps is torch's extra state, of any length."""

    def __init__(self, input_dims, output_dim):
        super().__init__()
        self.names, self.output_dim, self.means = tuple(input_dims), output_dim, None

    def _join(self, features):
        return torch.cat([features[name] for name in self.names], 1)

    def fit(self, inputs, targets=None, *, seed, **more):
        SEEN.append((inputs, targets, seed, more))
        joined = self._join(inputs[0])
        self.means = torch.stack([joined[targets == code].mean(0) for code in range(self.output_dim)])
        return self

    def get_extra_state(self):
        means = torch.zeros(0) if self.means is None else self.means
        return torch.from_numpy(means.numpy().reshape(-1).view(np.uint8).copy())

    def set_extra_state(self, state):
        if len(state):
            self.means = torch.from_numpy(state.numpy().view(np.float32).reshape(self.output_dim, -1).copy())

    def forward(self, features, present):
        return -torch.cdist(self._join(features), self.means)


class Restore(nn.Module):
    """Learns a code by restoring what it gets; then, from outcomes, a linear layer on it."""

    def __init__(self, input_dims, output_dim):
        super().__init__()
        self.names = tuple(input_dims)
        width = sum(input_dims.values())
        self.up, self.down = nn.Linear(width, 3), nn.Linear(3, width)
        self.out = nn.Linear(3, output_dim)

    def _join(self, features):
        return torch.cat([features[name] for name in self.names], 1)

    def loss(self, inputs, generator):
        joined = self._join(inputs[0])
        noise = torch.rand(joined.shape, generator=generator) > 0.1
        return (self.down(self.up(joined * noise)) - joined).square().mean()

    def forward(self, features, present):
        return self.out(self.up(self._join(features)).detach())


class Plugin:
    __file__ = __file__

    @staticmethod
    @hookimpl
    def fusionkit_components():
        return [
            HeadSpec(
                name="nearest",
                summary="",
                source="",
                learns="closed_form",
                build=lambda config, dims, n: Nearest(dims, n),
            ),
            HeadSpec(
                name="nearest_of_samples",
                summary="",
                source="",
                learns="closed_form",
                takes_samples=lambda config: True,
                build=lambda config, dims, n: Nearest(dims, n),
            ),
            HeadSpec(
                name="restore",
                summary="",
                source="",
                learns="self_supervised",
                build=lambda config, dims, n: Restore(dims, n),
            ),
        ]


FIT_HEAD = "stages.fuse={name: fuse, fit: [head], rows: sample, epochs: 2, batch_size: 8}"
RESTORE_TEXT = toy_images.RECIPE.replace(
    "  - name: fuse", "  - name: restore\n    fit: [head]\n    epochs: 3\n    batch_size: 8\n  - name: fuse"
)


@pytest.fixture(autouse=True)
def registry(monkeypatch):
    SEEN.clear()
    known = toy_images.make_registry()
    known.add("heads", Plugin)
    monkeypatch.setattr(toy_images, "make_registry", lambda: known)


def names(plan):
    return [name_of(step) for step in plan.steps]


def test_a_closed_form_head_is_fitted_after_the_scales_on_all_training_rows(tmp_path):
    experiment = make_experiment(tmp_path, "head={use: nearest}")
    plan = plan_steps(experiment, FOLD, 0)
    assert names(plan)[-3:] == ["fit image.scale", "fit record.scale", "fit head"]
    assert plan.steps[-1].rows == tuple(range(24))
    run_steps(experiment, plan)
    ((features, present), targets, seed, more) = SEEN[0]
    assert not more, "its card does not ask for samples"
    assert {name: tuple(values.shape) for name, values in features.items()} == {
        "image": (24, 4),
        "record": (24, 5),
    }
    for values in features.values():  # the scale's work
        torch.testing.assert_close(values.mean(0), torch.zeros(values.shape[1]), atol=1e-5, rtol=0)
    assert all(bool(there.all()) for there in present.values())
    outcomes = [experiment.manifest.outcomes[row] for row in range(24)]
    assert targets.tolist() == experiment.task.encode(outcomes).tolist()
    assert seed == plan.steps[-1].seed


def test_a_head_that_asks_is_told_which_rows_are_one_sample(tmp_path):
    views = "modalities.image.encoder.input.views={whole: true, patches: {6: 2}}"
    experiment = make_experiment(tmp_path, "head={use: nearest_of_samples}", views)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    ((features, _), _, _, more) = SEEN[0]
    assert more["samples"].tolist() == [row for row in range(24) for _ in range(3)]
    assert len(features["image"]) == 72


def test_a_fit_stage_and_a_train_stage_fit_the_same_head_under_the_same_address(tmp_path):
    trained = plan_steps(make_experiment(tmp_path, "head={use: nearest}"), FOLD, 0)
    fitted = plan_steps(make_experiment(tmp_path, "head={use: nearest}", FIT_HEAD), FOLD, 0)
    assert names(trained) == names(fitted)
    assert trained.steps[-1].address == fitted.steps[-1].address
    by_subject = make_experiment(
        tmp_path, "head={use: nearest}", FIT_HEAD.replace("rows: sample", "rows: subject")
    )
    assert plan_steps(by_subject, FOLD, 0).steps[-1].rows == (0, 3, 6, 9, 12, 15, 18, 21)


def test_what_was_fitted_answers_from_the_store_as_before(tmp_path):
    experiment = make_experiment(tmp_path, "head={use: nearest}")
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    (((features, _), targets, _, _),) = SEEN
    joined = torch.cat(list(features.values()), 1)
    means = torch.stack([joined[targets == code].mean(0) for code in (0, 1)])
    found = predict_logits(experiment, plan.origins, FOLD.train)[:, 0]
    np.testing.assert_array_equal(found, -torch.cdist(joined, means).numpy())
    # another process, which computes nothing
    again = make_experiment(tmp_path, "head={use: nearest}")
    assert run_steps(again, plan_steps(again, FOLD, 0)) == 0
    np.testing.assert_array_equal(
        predict_logits(again, plan.origins, FOLD.test), predict_logits(experiment, plan.origins, FOLD.test)
    )


def test_every_view_and_stored_draw_is_seen(tmp_path):
    views = "modalities.image.encoder.input={size: 8, views: {patches: {6: 2}}, augment: {}, draws: 3}"
    experiment = make_experiment(tmp_path, "head={use: nearest}", views)
    step = plan_steps(experiment, FOLD, 0).steps[-1]
    units = head_units(experiment, step)
    expected = make_units(range(24), 3, 3)
    for name in ("rows", "views", "draws"):
        np.testing.assert_array_equal(getattr(units, name), getattr(expected, name))


def test_absent_modalities_are_zeros_and_said_to_be_absent(tmp_path):
    manifest = make_manifest(tmp_path / "pictures")
    manifest = with_cell(manifest, "picture", 4, None)
    experiment = make_experiment(tmp_path, "head={use: nearest}", manifest=manifest)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    features, present = SEEN[0][0]
    assert present["image"].tolist() == [row != 4 for row in range(24)]
    assert not features["image"][4].any()
    assert features["record"][4].any()
    assert patterns_of(experiment, plan) == [["image", "record"], ["record"]]


def test_a_part_that_gives_nan_is_named_before_the_head_is_fitted(tmp_path):
    experiment = make_experiment(tmp_path, "head={use: nearest}")
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, type(plan)(plan.steps[:-1], {}))
    step = plan.steps[-1]
    scale = experiment.module("record.scale", step.used["record.scale"])
    scale.std[0] = torch.nan
    with pytest.raises(TrainingError) as error:
        head_inputs(experiment, step.used, head_units(experiment, step))
    assert str(error.value).startswith("record.scale: gives values that are not finite for sample ")
    assert SEEN == []


def test_a_fit_of_the_head_that_fails_is_the_plugins_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(Nearest, "fit", lambda self, inputs, targets, seed: 1 / 0)
    experiment = make_experiment(tmp_path, "head={use: nearest}")
    with pytest.raises(PluginError) as error:
        run_steps(experiment, plan_steps(experiment, FOLD, 0))
    assert re.fullmatch(
        r"head: `fit` fails \(ZeroDivisionError: division by zero; test_joined\.py, line \d+, in <lambda>\)"
        r"\. Mend the plugin, or look at its options\.",
        str(error.value),
    )


def test_a_fit_that_keeps_nothing_is_the_plugins_mistake(tmp_path, monkeypatch):
    monkeypatch.setattr(Nearest, "fit", lambda self, inputs, targets, seed: self)
    experiment = make_experiment(tmp_path, "head={use: nearest}")
    with pytest.raises(PluginError) as error:
        run_steps(experiment, plan_steps(experiment, FOLD, 0))
    assert str(error.value).startswith("head: `fit` changed nothing in state_dict()")


def test_a_self_supervised_head_learns_first_without_and_then_from_outcomes(tmp_path):
    experiment = make_experiment(tmp_path, "head={use: restore}", text=RESTORE_TEXT)
    plan = plan_steps(experiment, FOLD, 0)
    assert names(plan)[-4:] == ["fit image.scale", "fit record.scale", "fit head", "train head"]
    fitted, trained = plan.steps[-2:]
    assert fitted.rows == (0, 3, 6, 9, 12, 15, 18, 21)
    assert trained.used["head"].address == fitted.address
    run_steps(experiment, plan)
    before = experiment.fresh("head", fitted.used["head"]).state_dict()
    between = experiment.fresh("head", trained.used["head"]).state_dict()
    after = experiment.fresh("head", plan.origins["head"]).state_dict()

    def changed(one, other):
        return {name.split(".")[0] for name in one if not torch.equal(one[name], other[name])}

    assert changed(before, between) == {"up", "down"}
    assert changed(between, after) == {"out"}


def test_the_loss_of_a_self_supervised_head_falls_as_by_hand(tmp_path):
    """An independent loop over the same rows, in the same order, ends at the same weights."""
    experiment = make_experiment(tmp_path, "head={use: restore}", text=RESTORE_TEXT)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    step = plan.steps[-2]
    features, present = head_inputs(experiment, step.used, make_units(step.rows, 1))
    head = experiment.fresh("head", step.used["head"]).requires_grad_(True)
    optimizer = torch.optim.Adam(head.parameters(), 1e-3, fused=True)
    for epoch in range(3):
        generator = torch.Generator().manual_seed(seed_of(step.seed, "epoch", epoch))
        order = np.random.Generator(np.random.PCG64([step.seed, epoch])).permutation(8)
        optimizer.zero_grad()
        some = {name: values[order] for name, values in features.items()}
        head.loss((some, present), generator).backward()
        optimizer.step()
    found = experiment.fresh("head", plan.steps[-1].used["head"]).state_dict()
    for name, tensor in head.state_dict().items():
        torch.testing.assert_close(found[name], tensor)


# recipes


@pytest.mark.parametrize(
    ("overrides", "text", "said"),
    [
        (
            ["head={use: nearest}", "stages.fuse.train=[head, image.encoder]"],
            toy_images.RECIPE,
            "stages.fuse.train[1]: image.encoder would learn by gradient through nearest, which learns in "
            "closed form and passes none on. Name it in a pretrain stage.",
        ),
        (
            ["head={use: nearest}", "stages.fuse.train=[head, record.raiser]"],
            toy_images.RECIPE,
            "stages.fuse.train[1]: record.raiser would learn by gradient through nearest, which learns in "
            "closed form and passes none on. Name it in a fit stage.",
        ),
        (
            ["head={use: nearest}", "stages.fuse.class_weights=balanced"],
            toy_images.RECIPE,
            "stages.fuse.class_weights: nearest learns in closed form, and not from a stage's loss. Set null "
            "here, and look at the options of nearest.",
        ),
        (
            ["head={use: restore}", FIT_HEAD],
            toy_images.RECIPE,
            "head: restore learns what to answer from outcomes, which a fit stage does not see. Add a stage "
            "with `train: [head]`.",
        ),
        (
            ["head={use: nearest}", "stages.fuse=null"],
            toy_images.RECIPE,
            "head: nearest learns, and no stage names it. Add a stage with `train: [head]`.",
        ),
    ],
)
def test_what_a_head_cannot_do_is_one_sentence(overrides, text, said):
    with pytest.raises(RecipeError) as error:
        toy_images.load(*overrides, text=text)
    (problem,) = error.value.problems
    assert problem.endswith(f": {said}")


def test_a_fit_stage_with_the_head_uses_what_is_before_it():
    text = toy_images.RECIPE.replace(
        "  - name: learn_image", "  - name: early\n    fit: [head]\n  - name: learn_image"
    )
    with pytest.raises(RecipeError) as error:
        toy_images.load("head={use: nearest}", text=text)
    (problem,) = error.value.problems
    assert problem.endswith(
        "uses image.encoder, which learns only later, in 'learn_image'. Move 'learn_image' up."
    )
