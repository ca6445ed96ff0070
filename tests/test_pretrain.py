from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from toy_images import FOLD, FOLD_WITH_VALIDATION, ToyConv, make_experiment, make_manifest

from fusionkit import DataError, ImageInput, Manifest
from fusionkit.training import pretrain, supervised
from fusionkit.training.experiment import Experiment
from fusionkit.training.pretrain import Classifier, predict_pretrained
from fusionkit.training.stages import Plan, Step, plan_steps, run_steps
from fusionkit.training.supervised import row_weights
from fusionkit.training.train import Loop

SECOND = "stages.learn_image.auxiliary=zoom"


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


# a second task: a column


def zoomed(folder: Path, *, blanks: bool = False) -> Manifest:
    """Returns the toy's rows with a magnification that no outcome tells; rows 0, 6 and 12 may lack it."""
    zooms = [None if blanks and row in (0, 6, 12) else f"{1 + row % 2}00x" for row in range(36)]
    manifest = make_manifest(folder / "pictures")
    return replace(manifest, cells=manifest.cells.with_columns(pl.Series("zoom", zooms, dtype=pl.String)))


@pytest.fixture
def lit_by_zoom(monkeypatch):
    """Pictures tell their magnification, and nothing else: those at 100x are dark."""

    def load(self: ImageInput, cells: Any, cuts: Any) -> list[torch.Tensor]:
        size, row = self.options.size, int(cells["picture"].stem)
        return [torch.full((3, size, size), 200 if row % 2 else 60).byte() for _ in cuts]

    monkeypatch.setattr(ImageInput, "load", load)


def called_right(experiment: Experiment) -> float:
    """Returns the share of training rows whose magnification the second output calls."""
    tensors = learn(experiment)
    reader, step = experiment.reader("image"), image_step(experiment)
    encoder = experiment.fresh("image.encoder", plan_steps(experiment, FOLD, 0).origins["image.encoder"])
    weight, bias = (
        tensors[f"image.encoder.classifier.auxiliary.{name}"].numpy() for name in ("weight", "bias")
    )
    with torch.no_grad():
        raw = reader.read(pretrain.make_units(step.rows, 1), training=True)
        features = encoder.eval()(raw).numpy()
    return float(np.mean((features @ weight.T + bias).argmax(1) == np.array(step.rows) % 2))


LONGER = ("stages.learn_image.epochs=20", "stages.learn_image.learning_rate=0.03")


def test_the_second_output_learns_the_column(tmp_path, lit_by_zoom):
    assert called_right(make_experiment(tmp_path, SECOND, *LONGER, manifest=zoomed(tmp_path))) == 1.0


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
    manifest = zoomed(tmp_path, blanks=True)
    experiment = make_experiment(
        tmp_path, SECOND, *(f"stages.learn_image.{option}" for option in options), manifest=manifest
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

    rows = [int(row) for row in units.rows]
    outcomes = [int(manifest.outcomes[row] == "yes") for row in rows]
    weights = np.array([row_weights(experiment, step.stage, step.rows)[row] for row in rows])
    is_known = np.array([row not in (0, 6, 12) for row in rows])
    assert len(set(outcomes)) == 2
    assert len(set(weights)) > 3
    assert 0 < is_known.sum() < len(rows)
    expected = (cross_entropy(classifier.layers[0], outcomes) * weights).mean()
    second = cross_entropy(classifier.auxiliary, [row % 2 for row in rows])
    expected += weight * (second * weights * is_known).mean()
    assert float(loop.loss(batch, torch.Generator())) == pytest.approx(expected, rel=1e-5)


def test_a_second_task_of_no_weight_changes_no_bit_of_what_is_learned_or_predicted(tmp_path):
    manifest = zoomed(tmp_path)
    plain = make_experiment(tmp_path, manifest=manifest)
    idle = make_experiment(tmp_path, SECOND, "stages.learn_image.auxiliary_weight=0", manifest=manifest)
    one, other = learn(plain), learn(idle)
    second = {f"image.encoder.classifier.auxiliary.{name}" for name in ("weight", "bias")}
    assert other.keys() - one.keys() == second
    assert all(torch.equal(one[name], other[name]) for name in one)
    np.testing.assert_array_equal(logits_of(plain, FOLD.test), logits_of(idle, FOLD.test))
    # and one of weight does
    weighed = learn(make_experiment(tmp_path, SECOND, manifest=manifest))
    assert not torch.equal(one["image.encoder.layers.0.weight"], weighed["image.encoder.layers.0.weight"])


def test_early_stopping_looks_at_the_outcome_alone(tmp_path):
    experiment = make_experiment(
        tmp_path,
        SECOND,
        "split.validation=0.2",
        "stages.learn_image.early_stopping=2",
        "stages.learn_image.epochs=20",
        manifest=zoomed(tmp_path),
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
    both = Classifier(kind, 3, False, 2, n_values=4)
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


@pytest.mark.parametrize(
    ("column", "problem"),
    [
        ("zom", "the data have no column 'zom'. Did you mean 'zoom'? Known: number, picture, word, zoom."),
        ("lens", "the column lens does not have 2 to 100 values in the training rows (old)."),
        ("scan", "the column scan does not have 2 to 100 values in the training rows (none)."),
    ],
)
def test_a_column_with_nothing_to_learn_is_refused_before_anything_learns(tmp_path, column, problem):
    manifest = zoomed(tmp_path)
    if column != "zom":
        lit = pl.lit("old" if column == "lens" else None, dtype=pl.String).alias(column)
        manifest = replace(manifest, cells=manifest.cells.with_columns(lit))
    experiment = make_experiment(tmp_path, f"stages.learn_image.auxiliary={column}", manifest=manifest)
    with pytest.raises(DataError) as caught:
        plan_steps(experiment, FOLD, 0)
    cure = "" if column == "zom" else " Name another column, or set null."
    assert list(caught.value.problems) == [f"stages.learn_image.auxiliary: {problem}{cure}"]


def test_values_are_those_of_training_rows_alone(tmp_path):
    manifest = zoomed(tmp_path)
    values = [*manifest.cells["zoom"].to_list()]
    values[FOLD.test[0]] = "400x"
    cells = manifest.cells.with_columns(pl.Series("zoom", values, dtype=pl.String))
    experiment = make_experiment(tmp_path, SECOND, manifest=replace(manifest, cells=cells))
    assert learn(experiment)["image.encoder.classifier.auxiliary.weight"].shape[0] == 2
    assert (
        image_step(experiment).address
        == image_step(make_experiment(tmp_path, SECOND, manifest=manifest)).address
    )
