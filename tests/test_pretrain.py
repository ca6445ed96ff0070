from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_images import FOLD, FOLD_WITH_VALIDATION, ToyConv, make_experiment, make_manifest

from fusionkit import ImageInput, RecipeError
from fusionkit.training import pretrain, supervised
from fusionkit.training.experiment import Experiment
from fusionkit.training.pretrain import Classifier, predict_pretrained, row_kinds
from fusionkit.training.stages import Plan, Step, plan_steps, run_steps
from fusionkit.training.supervised import row_weights
from fusionkit.training.train import Loop

VIEWS = "modalities.image.encoder.input.views={whole: true, patches: {6: 2}}"
"""Three training views of two kinds."""
BOTH = (VIEWS, "stages.learn_image.auxiliary=view")


def image_step(experiment: Experiment, fold: Any = FOLD, member: int = 0) -> Step:
    steps = plan_steps(experiment, fold, member).steps
    return next(step for step in steps if step.learned == ("image.encoder",))


def learn(experiment: Experiment, fold: Any = FOLD) -> dict[str, torch.Tensor]:
    """Computes the pretrain stage of the image, and returns its artefact's tensors."""
    step = image_step(experiment, fold)
    run_steps(experiment, Plan((step,), {}))
    artefact = experiment.store.load(step.address)
    assert artefact is not None
    return dict(artefact.tensors)


def logits_of(experiment: Experiment, rows: Any, fold: Any = FOLD) -> np.ndarray:
    step = image_step(experiment, fold)
    origin = plan_steps(experiment, fold, 0).origins["image.encoder"]
    return predict_pretrained(experiment, step.stage, origin, rows)


def test_a_temporary_classifier_starts_anew_in_every_initialisation(tmp_path, monkeypatch):
    started: list[torch.Tensor] = []
    real = pretrain.build_classifier

    def build(*arguments):
        classifier = real(*arguments)
        started.append(classifier.layers[0].weight.clone())
        return classifier

    monkeypatch.setattr(pretrain, "build_classifier", build)
    experiment = make_experiment(tmp_path, "seeds=2")
    for member in (0, 1):
        run_steps(experiment, Plan((image_step(experiment, member=member),), {}))
    first, second = started
    assert not torch.equal(first, second)
    stage = experiment.factory.loaded.recipe.stages[2]
    encoder = experiment.module("image.encoder", experiment.initial("image.encoder", 0))
    # the first has the recipe's own seed
    assert torch.equal(real(experiment, stage, encoder, 0).layers[0].weight, first)


def test_no_rows_have_no_logits(tmp_path):
    experiment = make_experiment(tmp_path)
    learn(experiment)
    assert logits_of(experiment, []).shape == (0, 1, 2)


# a second task: the kind of view


@pytest.fixture
def lit_by_view(monkeypatch):
    """Pictures tell which kind of view they are, and nothing else: whole ones are dark, patches bright."""

    def load(self: ImageInput, cells: Any, cuts: Any) -> list[torch.Tensor]:
        size = self.options.size
        return [torch.full((3, size, size), 60 if c.view == "whole" else 200).byte() for c in cuts]

    monkeypatch.setattr(ImageInput, "load", load)


def called_right(experiment: Experiment) -> float:
    """Returns the share of training views whose kind the second output calls, counted here by their names."""
    tensors = learn(experiment)
    reader, step = experiment.reader("image"), image_step(experiment)
    names = reader.spec.views(training=True)
    assert names == ("whole", "patch6.0", "patch6.1")
    encoder = experiment.fresh("image.encoder", plan_steps(experiment, FOLD, 0).origins["image.encoder"])
    weight, bias = (
        tensors[f"image.encoder.classifier.auxiliary.{name}"].numpy() for name in ("weight", "bias")
    )
    right = []
    for view, name in enumerate(names):
        units = pretrain.make_units(step.rows, 3).take(slice(view, None, 3))
        with torch.no_grad():
            features = encoder.eval()(reader.read(units, training=True)).numpy()
        called = (features @ weight.T + bias).argmax(1)
        right += list(called == (0 if name == "whole" else 1))
    return float(np.mean(right))


LONGER = ("stages.learn_image.epochs=20", "stages.learn_image.learning_rate=0.03")


def test_the_second_output_learns_the_kind_of_view(tmp_path, lit_by_view):
    assert called_right(make_experiment(tmp_path, *BOTH, *LONGER)) == 1.0


def test_kinds_are_numbered_as_their_first_views_come(tmp_path):
    experiment = make_experiment(tmp_path, *BOTH, f"{VIEWS.partition('=')[0]}={{patches: {{6: 2, 3: 1}}}}")
    assert experiment.reader("image").spec.views(training=True) == (
        "whole",
        "patch6.0",
        "patch6.1",
        "patch3.0",
    )
    assert row_kinds(experiment, image_step(experiment).stage) == [0, 1, 1, 2]


@pytest.mark.parametrize("weight", [0.0, 1.0, 0.3])
def test_the_loss_is_the_sum_of_both_with_the_same_row_weights(tmp_path, monkeypatch, weight):
    loops: list[Loop] = []

    def run_loop(loop: Loop, *_: Any) -> list[dict[str, float]]:
        loops.append(loop)
        return []

    monkeypatch.setattr(supervised, "run_loop", run_loop)
    options = (
        "class_weights=balanced",
        "subject_weights=equal",
        f"auxiliary_weight={weight}",
        "batch_size=64",
    )
    manifest = make_manifest(tmp_path / "pictures")
    experiment = make_experiment(
        tmp_path, *BOTH, *(f"stages.learn_image.{option}" for option in options), manifest=manifest
    )
    # subjects of one to three rows, one of the outcomes rarer than the other
    step = image_step(experiment, replace(FOLD, train=(0, 1, 2, 3, 6, 7, 9, 10, 12)))
    run_steps(experiment, Plan((step,), {}))
    (loop,) = loops
    encoder, classifier = loop.modules["image.encoder"], loop.modules["image.encoder.classifier"]
    assert isinstance(encoder, ToyConv)
    batch = next(iter(loop.batches(0)))
    units, raw = batch
    features = encoder(raw).numpy()

    def cross_entropy(layer: Any, targets: list[int]) -> np.ndarray:
        logits = features @ layer.weight.numpy().T + layer.bias.numpy()
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(len(logits)), targets]
        return losses.astype(np.float64)

    names = experiment.reader("image").spec.views(training=True)
    kinds = [0 if names[view] == "whole" else 1 for view in units.views]
    outcomes = [int(manifest.outcomes[row] == "yes") for row in units.rows]
    weights = np.array([row_weights(experiment, step.stage, step.rows)[int(row)] for row in units.rows])
    assert len(set(kinds)) == len(set(outcomes)) == 2
    assert len(set(weights)) > 3
    expected = (cross_entropy(classifier.layers[0], outcomes) * weights).mean()
    expected += weight * (cross_entropy(classifier.auxiliary, kinds) * weights).mean()
    assert float(loop.loss(batch, torch.Generator())) == pytest.approx(expected, rel=1e-5)


def test_a_second_task_of_no_weight_changes_no_bit_of_what_is_learned_or_predicted(tmp_path):
    plain = make_experiment(tmp_path, VIEWS)
    idle = make_experiment(tmp_path, *BOTH, "stages.learn_image.auxiliary_weight=0")
    one, other = learn(plain), learn(idle)
    second = {f"image.encoder.classifier.auxiliary.{name}" for name in ("weight", "bias")}
    assert other.keys() - one.keys() == second
    assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_array_equal(logits_of(plain, FOLD.test), logits_of(idle, FOLD.test))
    # and one of weight does
    weighed = learn(make_experiment(tmp_path, *BOTH))
    assert not torch.equal(one["image.encoder.layers.0.weight"], weighed["image.encoder.layers.0.weight"])


def test_early_stopping_looks_at_the_outcome_alone(tmp_path):
    """Evaluation sees one kind of view, and no kind that is learned."""
    experiment = make_experiment(
        tmp_path,
        *BOTH,
        "modalities.image.encoder.input.eval_views={whole: false, patches: {4: 1}}",
        "split.validation=0.2",
        "stages.learn_image.early_stopping=2",
        "stages.learn_image.epochs=20",
    )
    learn(experiment, FOLD_WITH_VALIDATION)
    artefact = experiment.store.load(image_step(experiment, FOLD_WITH_VALIDATION).address)
    least = min(record["validation_loss"] for record in artefact.metadata["history"])
    logits = torch.from_numpy(logits_of(experiment, range(18, 24), FOLD_WITH_VALIDATION)[:, 0])
    targets = torch.from_numpy(experiment.task.encode(experiment.manifest.outcomes[18:24]))
    assert float(torch.nn.functional.cross_entropy(logits, targets)) == pytest.approx(least, rel=1e-5)


@pytest.mark.parametrize("kind", ["linear", "vgg"])
def test_both_tasks_share_all_but_the_last_layer(kind):
    torch.manual_seed(0)
    plain = Classifier(kind, 3, False, 2)
    torch.manual_seed(0)
    both = Classifier(kind, 3, False, 2, n_kinds=4)
    assert all(torch.equal(both.state_dict()[name], value) for name, value in plain.state_dict().items())
    features = torch.randn(5, 3)
    outcome, kinds = both.eval().both(features)
    assert kinds.shape == (5, 4)
    assert torch.equal(outcome, both(features))
    assert torch.equal(outcome, plain.eval()(features))
    kinds.sum().backward()
    touched = {name for name, value in both.named_parameters() if value.grad is not None}
    shared = {
        name
        for name, _ in plain.named_parameters()
        if not name.startswith(f"layers.{len(plain.layers) - 1}.")
    }
    assert touched == shared | {"auxiliary.weight", "auxiliary.bias"}


def test_an_encoder_that_shows_one_kind_of_view_is_refused_before_anything_learns(tmp_path: Path):
    """No option of toy_mean says what its views are: it is known when the encoder is built."""
    experiment = make_experiment(tmp_path, "stages.learn_record.auxiliary=view")
    with pytest.raises(RecipeError) as caught:
        plan_steps(experiment, FOLD, 0)
    assert caught.value.exit_code == 3
    assert list(caught.value.problems) == [
        "stages.learn_record.auxiliary: needs training views of two kinds or more, and record.encoder has "
        "one (record). Give it views of another kind, such as patches of another side, or null here."
    ]
