"""What is done where classes are rare: focal loss, balanced sampling, class weights; never two at once."""

from __future__ import annotations

import pytest
import torch
from task_runs import load, places_in, run_task, tell

from fusionkit.errors import RecipeError
from fusionkit.prepare import prepare
from fusionkit.task import Classification
from fusionkit.tasks import make_task
from fusionkit.training.stages import plan_steps

CLASSES = ("low", "middle", "high")


def drawn():
    """Returns logits (n, 3), targets and weights (n,)."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(10, 3, generator=generator, dtype=torch.float64)
    return logits, torch.arange(10) % 3, torch.rand(10, generator=generator, dtype=torch.float64)


def test_a_focal_loss_with_gamma_0_is_cross_entropy():
    assert float(Classification(CLASSES, 0.0).loss(*drawn())) == pytest.approx(
        float(Classification(CLASSES).loss(*drawn())), rel=1e-12
    )


def test_a_focal_loss_is_that_of_its_definition():
    logits, targets, weights = drawn()
    right = logits.softmax(1)[torch.arange(10), targets]
    expected = (-((1 - right) ** 1.5) * right.log() * weights).mean()
    torch.testing.assert_close(Classification(CLASSES, 1.5).loss(logits, targets, weights), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_a_focal_loss_has_a_finite_gradient_where_the_model_is_sure(gamma):
    logits = torch.tensor([[200.0, -200.0], [-200.0, 200.0]], requires_grad=True)
    Classification(("a", "b"), gamma).loss(logits, torch.tensor([0, 0]), torch.ones(2)).backward()
    assert torch.isfinite(logits.grad).all()


def test_focal_is_part_of_the_identity_and_plain_stays_as_it_was():
    recipe = load("{loss: focal, focal_gamma: 1}")[0].recipe
    assert make_task(recipe.task, CLASSES).identity() == {
        "task": "classification",
        "classes": list(CLASSES),
        "focal_gamma": 1.0,
    }
    plain = {"task": "classification", "classes": list(CLASSES)}
    for written in ("{}", "{kind: classification}", "{use: classification}"):
        assert make_task(load(written)[0].recipe.task, CLASSES).identity() == plain


def addresses(home, task="{}", *overrides):
    loaded, _ = load(task, *overrides)
    prepared = prepare(loaded, places_in(home), tell)
    return [step.address for step in plan_steps(prepared.main, prepared.folds[0], 0).steps]


def test_sampling_and_the_loss_change_addresses_of_what_learns_from_outcomes(tmp_path):
    plain = addresses(tmp_path)
    assert addresses(tmp_path, "{}", "stages.fuse.sampling=null") == plain
    others = [
        addresses(tmp_path, "{}", "stages.fuse.sampling=balanced"),
        addresses(tmp_path, "{loss: focal}"),
    ]
    assert len({plain[-1], *(other[-1] for other in others)}) == 3


def test_balanced_sampling_and_focal_loss_run_and_find_rare_classes(tmp_path):
    def of(task, *overrides):
        report = run_task(tmp_path, task, "source.n_subjects=80", *overrides).report
        return report["models"]["fused"]["subject"]["sensitivity"]["value"]

    assert of("{}", "stages.fuse.sampling=balanced") > 0.45
    assert of("{loss: focal}") > 0.4


def test_classes_are_balanced_once():
    with pytest.raises(RecipeError) as caught:
        load("{}", "stages.fuse.sampling=balanced", "stages.fuse.class_weights=balanced")
    assert any(
        text.endswith("sampling: with class_weights, classes would be balanced twice. Keep one of them.")
        for text in caught.value.problems
    ), caught.value.problems


def test_a_gamma_needs_the_focal_loss():
    with pytest.raises(RecipeError) as caught:
        load("{focal_gamma: 1}")
    assert list(caught.value.problems) == [
        "<recipe>:3: task.focal_gamma: the loss is cross_entropy (1). Set loss: focal, or leave it out."
    ]


def test_a_head_that_is_fitted_draws_no_rows():
    with pytest.raises(RecipeError) as caught:
        load("{}", "head={use: sklearn}", "stages.fuse.train=[head]", "stages.fuse.sampling=balanced")
    assert any("sampling: sklearn learns in closed form" in text for text in caught.value.problems)
