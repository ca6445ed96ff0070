from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_images import (
    COUNTS,
    FOLD,
    FOLD_WITH_VALIDATION,
    ToyConv,
    addresses,
    make_experiment,
    make_manifest,
    with_cell,
)

from fusionkit import ImageInput
from fusionkit.recipe.schema import SupervisedOptions, TrainStage
from fusionkit.training import supervised
from fusionkit.training.features import BATCH
from fusionkit.training.stages import Plan, plan_steps, run_steps
from fusionkit.training.supervised import link, predict_logits, row_weights


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("supervised")
    return folder, addresses(make_experiment(folder))


# weights


def stage_with(**options) -> TrainStage:
    return TrainStage(name="x", train=("head",), **options)


def weights_of(base, **options) -> dict[int, float]:
    manifest = make_manifest(base[0] / "pictures")
    rows = (0, 1, 2, 3, 6, 7)  # subjects 0, 0, 0, 1, 2, 2; only subject 1 is a yes
    return row_weights(make_experiment(base[0], manifest=manifest), stage_with(**options), rows)


def test_without_options_every_row_weighs_one(base):
    assert weights_of(base) == dict.fromkeys((0, 1, 2, 3, 6, 7), 1.0)


def test_balanced_classes_weigh_the_same(base):
    """5 rows of no weigh 6 / 2 / 5 each, one of yes 6 / 2 / 1."""
    expected = dict.fromkeys((0, 1, 2, 6, 7), 0.6) | {3: 3.0}
    assert weights_of(base, class_weights="balanced") == pytest.approx(expected)


def test_equal_subjects_weigh_the_same(base):
    """3 subjects: each weighs 6 / 3 = 2, shared among its rows."""
    expected = dict.fromkeys((0, 1, 2), 2 / 3) | {3: 2.0} | dict.fromkeys((6, 7), 1.0)
    assert weights_of(base, subject_weights="equal") == pytest.approx(expected)


def test_both_balance_the_classes_and_the_subjects_within_each(base):
    """Each class weighs 3; no has two subjects of 1.5."""
    expected = dict.fromkeys((0, 1, 2), 0.5) | {3: 3.0} | dict.fromkeys((6, 7), 0.75)
    assert weights_of(base, class_weights="balanced", subject_weights="equal") == pytest.approx(expected)


# early stopping, draws, probabilities


def test_early_stopping_watches_the_validation_rows(tmp_path):
    experiment = make_experiment(
        tmp_path,
        "split.validation=0.2",
        "stages.fuse.early_stopping=1",
        "stages.fuse.epochs=30",
        "stages.fuse.learning_rate=0.3",
    )
    plan = plan_steps(experiment, FOLD_WITH_VALIDATION, 0)
    assert plan.steps[-1].validation == tuple(range(18, 24))
    run_steps(experiment, plan)
    history = experiment.store.load(plan.steps[-1].address).metadata["history"]
    losses = [record["validation_loss"] for record in history]
    assert len(losses) < 30
    assert losses[-1] >= min(losses) == losses[-2]
    logits = torch.from_numpy(predict_logits(experiment, plan.origins, range(18, 24))[:, 0])
    targets = torch.from_numpy(experiment.task.encode(experiment.manifest.outcomes[18:24]))
    assert float(torch.nn.functional.cross_entropy(logits, targets)) == pytest.approx(min(losses), rel=1e-5)


def test_stored_draws_are_all_seen_in_every_epoch_and_online_draws_move_on(tmp_path):
    augmented = ["modalities.image.encoder.input={size: 8, augment: {}, draws: 3}"]
    experiment = make_experiment(tmp_path, *augmented)
    COUNTS.clear()
    steps = plan_steps(experiment, FOLD, 0).steps
    run_steps(experiment, Plan(steps[2:3], {}))
    assert COUNTS["toy_conv"] == 24 * 2, "pretraining: one draw per epoch"
    run_steps(experiment, Plan(steps[:2], {}))
    COUNTS.clear()
    run_steps(experiment, Plan(steps[3:], {}))
    assert COUNTS["toy_conv"] == 3 * BATCH + BATCH, "three draws, however many epochs"
    artefact = experiment.store.load(steps[-1].address)
    assert artefact is not None
    assert int(artefact.tensors["head.norm.num_batches_tracked"]) == 2 * 9, "72 units in batches of 8"


def test_a_picture_of_many_views_is_decoded_once_per_epoch_and_once_for_its_features(tmp_path, monkeypatch):
    decoded: Counter[str] = Counter()
    real = ImageInput.load

    def load(self, cells, cuts):
        decoded[cells["picture"].name] += 1
        return real(self, cells, cuts)

    monkeypatch.setattr(ImageInput, "load", load)
    views = ["modalities.image.encoder.input.views={patches: {6: 4}}"]
    experiment = make_experiment(tmp_path, *views, "stages.learn_image.epochs=3")
    steps = plan_steps(experiment, FOLD, 0).steps
    run_steps(experiment, Plan(steps[2:3], {}))
    assert decoded == {f"{row:02}.png": 3 for row in range(24)}
    run_steps(experiment, Plan(steps[:2], {}))
    decoded.clear()
    run_steps(experiment, Plan(steps[3:], {}))
    again = decoded - Counter({f"{row:02}.png": 1 for row in range(24)})
    # the first three of its views are made anew once in a run, to see whether a row depends on others
    assert again == {"00.png": 1}
    assert set(decoded) == {f"{row:02}.png" for row in range(24)}


def test_a_validation_batch_of_pictures_is_no_larger_than_a_usual_training_batch(tmp_path, monkeypatch):
    assert supervised.RAW_EVAL_BATCH == SupervisedOptions().batch_size == 32
    monkeypatch.setattr(supervised, "RAW_EVAL_BATCH", 4)
    sizes: dict[bool, list[int]] = {True: [], False: []}
    real = ToyConv.forward

    def forward(self, images):
        sizes[self.training].append(len(images))
        return real(self, images)

    monkeypatch.setattr(ToyConv, "forward", forward)
    experiment = make_experiment(
        tmp_path, "split.validation=0.2", "stages.learn_image.early_stopping=2", "stages.learn_image.epochs=1"
    )
    steps = plan_steps(experiment, FOLD_WITH_VALIDATION, 0).steps
    run_steps(experiment, Plan(steps[2:3], {}))
    assert sizes == {True: [8, 8, 2], False: [4, 2]}


def test_logits_of_views_become_probabilities(base):
    experiment = make_experiment(base[0])
    logits = np.array([[[0.0, 2.0], [0.0, -4.0]]], dtype=np.float32)

    def sigmoid(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    assert link(experiment, logits, "mean_logit")[0, 1] == pytest.approx(sigmoid(-1))
    both = link(experiment, logits, "mean_probability")[0, 1]
    assert both == pytest.approx((sigmoid(2) + sigmoid(-4)) / 2)


@pytest.mark.parametrize(
    ("views", "shares"),
    [
        ([[0, 2], [0, -4], [0, 0.1]], [1 / 3, 2 / 3]),
        ([[5, 5], [0, 1]], [1 / 4, 3 / 4]),  # a view that does not decide gives each a half
        ([[3, 1, 2], [0, 9, 0], [0, 1, 0], [4, 4, 0]], [1.5 / 4, 2.5 / 4, 0]),
        ([[-7, 7]], [0, 1]),
    ],
)
def test_views_vote(base, views, shares):
    experiment = make_experiment(base[0])
    logits = np.array([views, views], dtype=np.float32)
    np.testing.assert_allclose(link(experiment, logits, "vote"), [shares, shares])


def test_no_rows_have_no_logits(tmp_path):
    experiment = make_experiment(tmp_path)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    assert predict_logits(experiment, plan.origins, []).shape == (0, 1, 2)


def test_a_prediction_does_not_depend_on_who_else_is_predicted(tmp_path):
    experiment = make_experiment(tmp_path)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    together = predict_logits(experiment, plan.origins, FOLD.test)
    alone = np.concatenate([predict_logits(experiment, plan.origins, [row]) for row in FOLD.test])
    np.testing.assert_allclose(alone, together, rtol=1e-5, atol=1e-6)


def test_rows_without_any_modality_are_nan(tmp_path):
    manifest = make_manifest(tmp_path / "pictures")
    for column in ("picture", "number", "word"):
        manifest = with_cell(manifest, column, 30, None)
    experiment = make_experiment(tmp_path, manifest=manifest)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    logits = predict_logits(experiment, plan.origins, FOLD.test)
    assert np.isnan(logits[6]).all()
    assert np.isfinite(np.delete(logits, 6, 0)).all()
