from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import toy_images
import toys
from toy_images import (
    COUNTS,
    FOLD,
    addresses,
    make_experiment,
    make_manifest,
    name_of,
)

from fusionkit import RaiserSpec, hookimpl
from fusionkit.core_parts import Scale
from fusionkit.data.batches import make_units
from fusionkit.errors import DataError, IntegrityError, PluginError, TrainingError
from fusionkit.model import state_digest
from fusionkit.training import train
from fusionkit.training.experiment import Origin
from fusionkit.training.stages import Plan, plan_steps, run_steps
from fusionkit.training.supervised import predict_logits


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("stages")
    return folder, addresses(make_experiment(folder))


# plans


def test_a_plan_has_a_step_per_artefact_in_order_and_computes_nothing(base):
    folder, found = base
    assert list(found) == [
        "pretrain record.encoder",
        "fit record.raiser",
        "pretrain image.encoder",
        "fit image.scale",
        "fit record.scale",
        "train head",
    ]
    assert all(len(address) == 64 for address in found.values())
    assert not (folder / "store").exists()


def test_a_fit_stage_sees_one_row_per_subject_unless_it_asks_for_samples(base):
    folder, _ = base
    rows = {name_of(step): step.rows for step in plan_steps(make_experiment(folder), FOLD, 0).steps}
    assert rows["fit record.raiser"] == (0, 3, 6, 9, 12, 15, 18, 21)
    assert rows["fit record.scale"] == rows["train head"] == tuple(range(24))
    by_sample = make_experiment(folder, "stages.raise_record.rows=sample")
    rows = {name_of(step): step.rows for step in plan_steps(by_sample, FOLD, 0).steps}
    assert rows["fit record.raiser"] == tuple(range(24))


def test_a_raiser_with_nothing_to_learn_is_skipped(base):
    folder, before = base
    found = addresses(make_experiment(folder, "modalities.record.raiser.use=toy_repeat"))
    assert "fit record.raiser" not in found
    assert found["pretrain record.encoder"] == before["pretrain record.encoder"]


def test_a_closed_form_part_in_a_train_stage_is_fitted_first(tmp_path):
    experiment = make_experiment(
        tmp_path,
        "modalities.record.raiser.use=toy_center",
        "stages.fuse.train=[head, record.raiser]",
        "stages.raise_record=null",
    )
    plan = plan_steps(experiment, FOLD, 0)
    names = [name_of(step) for step in plan.steps]
    assert names.index("fit record.raiser") < names.index("fit record.scale") < names.index("train head")
    raiser = next(step for step in plan.steps if step.learned == ("record.raiser",))
    assert raiser.rows == tuple(range(24))
    COUNTS.clear()
    run_steps(experiment, plan)
    assert COUNTS["toy_center"] == 24
    assert float(experiment.module("record.raiser", plan.origins["record.raiser"]).mean.abs().sum()) > 0


def test_a_train_stage_that_names_only_closed_form_parts_trains_nothing(base):
    folder, _ = base
    text = toy_images.RECIPE.replace("split: {", "  - name: center\n    train: [record.raiser]\nsplit: {", 1)
    overrides = ["modalities.record.raiser.use=toy_center"]
    plan = plan_steps(make_experiment(folder, *overrides, text=text), FOLD, 0)
    assert [name_of(step) for step in plan.steps][-2:] == ["train head", "fit record.raiser"]


def test_a_modality_that_no_training_row_has_is_one_sentence(base):
    folder, _ = base
    manifest = make_manifest(folder / "pictures")
    cells = manifest.cells.with_columns(
        pl.Series("picture", [None] * 24 + manifest.cells["picture"].to_list()[24:])
    )
    with pytest.raises(DataError) as error:
        addresses(make_experiment(folder, manifest=replace(manifest, cells=cells)))
    assert str(error.value) == (
        "stage learn_image, image.encoder: repeat 0, fold 0: no training row has the modality (0 rows). "
        "Use more data or fewer folds."
    )


def test_a_head_with_nothing_to_learn_gets_scaled_features(tmp_path):
    experiment = make_experiment(tmp_path, "head.use=toy_sum")
    plan = plan_steps(experiment, FOLD, 0)
    assert [name_of(step) for step in plan.steps][-2:] == ["fit image.scale", "fit record.scale"]
    run_steps(experiment, plan)
    scale = experiment.module("image.scale", plan.origins["image.scale"])
    assert not torch.equal(scale.std, torch.ones(4))
    assert predict_logits(experiment, plan.origins, FOLD.test).shape == (12, 1, 2)


def test_a_part_with_nothing_to_learn_is_told_once_per_run(tmp_path):
    told = []

    def tell(name, data):
        told.append((name, dict(data)))

    experiment = make_experiment(tmp_path, "modalities.record.raiser.use=toy_repeat", tell=tell)
    for each in (experiment, experiment, toy_images.variant(experiment, "record")):
        plan_steps(each, FOLD, 0)
    assert told == [("part_skipped", {"stage": "raise_record", "part": "record.raiser"})]
    told.clear()
    plan_steps(make_experiment(tmp_path, "head.use=toy_sum", tell=tell), FOLD, 0)
    assert told == [], "the head is named for its scales"
    raw = [f"modalities.{name}.standardize=false" for name in ("image", "record")]
    plan_steps(make_experiment(tmp_path, "head.use=toy_sum", *raw, tell=tell), FOLD, 0)
    assert told == [("part_skipped", {"stage": "fuse", "part": "head"})]


@pytest.mark.parametrize(
    ("how", "build", "method"),
    [
        ("closed_form", toys.build_toy_denoise, "fit"),
        ("self_supervised", toy_images.ToyCenter, "loss"),
    ],
)
def test_a_card_that_says_other_than_its_part_can_do_is_the_plugins_mistake(
    tmp_path, monkeypatch, how, build, method
):
    class Liar:
        __file__ = __file__

        @staticmethod
        @hookimpl
        def fusionkit_components():
            config = toys.ToyDenoiseConfig
            return [RaiserSpec(name="liar", summary="", source="", config=config, build=build, learns=how)]

    registry = toy_images.make_registry()
    registry.add("liar", Liar)
    monkeypatch.setattr(toy_images, "make_registry", lambda: registry)
    experiment = make_experiment(tmp_path, "modalities.record.raiser={use: liar}")
    with pytest.raises(PluginError) as error:
        run_steps(experiment, plan_steps(experiment, FOLD, 0))
    assert str(error.value) == (
        f"record.raiser: liar has no method `{method}` (learns: {how}). Mend the card or the component."
    )


# frozen stays frozen


@pytest.mark.parametrize(
    ("overrides", "extra"),
    [
        ([], ""),
        (["stages.fuse.train=[head, record.encoder]"], "record.encoder"),
        (["stages.fuse.train=[head, image.encoder]"], "image.encoder"),
    ],
)
def test_every_part_that_a_stage_does_not_name_is_the_same_before_and_after(tmp_path, overrides, extra):
    experiment = make_experiment(tmp_path, *overrides)
    plan = plan_steps(experiment, FOLD, 0)
    origins = {path: experiment.initial(path, 0) for path in experiment.factory.paths()}
    for step in plan.steps:
        parts = {path: experiment.module(path, origins[path]) for path in origins}
        before = {path: state_digest(part) for path, part in parts.items()}
        assert run_steps(experiment, Plan((step,), {})) == 1
        assert {path: state_digest(part) for path, part in parts.items()} == before
        origins |= {path: Origin(step.address, 0, is_learned=True) for path in step.learned}
        after = {path: state_digest(experiment.fresh(path, origins[path])) for path in origins}
        assert {path for path in before if before[path] != after[path]} == set(step.learned)
    assert origins == plan.origins
    assert "head" in plan.steps[-1].learned
    assert not extra or extra in plan.steps[-1].learned


def test_batch_statistics_of_a_frozen_encoder_do_not_move_but_those_of_a_learning_one_do(tmp_path):
    experiment = make_experiment(tmp_path)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    learned = experiment.fresh("image.encoder", plan.origins["image.encoder"])
    steps = 2 * 3  # epochs, batches of 8 in 24 rows
    assert int(learned.layers[1].num_batches_tracked) == steps
    head = experiment.fresh("head", plan.origins["head"])
    assert int(head.norm.num_batches_tracked) == steps


def test_the_scale_is_fitted_on_what_the_head_sees_in_training(tmp_path):
    experiment = make_experiment(tmp_path, "modalities.image.encoder.input.views={patches: {6: 2}}")
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    scale = experiment.fresh("image.scale", plan.origins["image.scale"])
    encoder = experiment.fresh("image.encoder", plan.origins["image.encoder"])
    reader = experiment.reader("image")
    units = make_units(FOLD.train, 3)
    assert len(units) == 72
    with torch.inference_mode():
        expected = Scale(4).fit(encoder(reader.read(units, training=True)))
    torch.testing.assert_close(scale.mean, expected.mean)
    torch.testing.assert_close(scale.std, expected.std)


def test_an_artefact_has_only_what_was_learned(tmp_path):
    experiment = make_experiment(tmp_path)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    for step in plan.steps:
        artefact = experiment.store.load(step.address)
        assert artefact is not None
        own = {name for name in artefact.tensors if name.startswith(step.learned[0] + ".")}
        assert own == set(artefact.tensors)
        assert artefact.metadata["n_rows"] == len(step.rows)
        assert artefact.metadata["stage"] == step.stage.name
    assert list((tmp_path / "store" / "checkpoints").glob("*")) == []


def test_an_artefact_that_is_gone_or_does_not_fit_is_one_sentence(tmp_path):
    experiment = make_experiment(tmp_path)
    gone = Origin("e" * 64, 0, is_learned=True)
    with pytest.raises(IntegrityError) as error:
        experiment.fresh("head", gone)
    assert str(error.value) == (
        "artefact eeeeeeeeeeee: not there, or not what was written. Run the recipe again."
    )
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    with pytest.raises(
        IntegrityError, match=r"^head: artefact [0-9a-f]{12} does not fit the recipe \(.*Missing"
    ):
        experiment.fresh("head", plan.origins["record.scale"])


# stop and resume


@pytest.mark.parametrize("stage", ["learn_image", "raise_record", "fuse"])
def test_a_stage_stopped_in_the_middle_ends_at_the_same_numbers(tmp_path, monkeypatch, stage):
    longer = [f"stages.{stage}.epochs=4"]
    straight = make_experiment(tmp_path / "straight", *longer)
    plan = plan_steps(straight, FOLD, 0)
    run_steps(straight, plan)
    expected = predict_logits(straight, plan.origins, FOLD.test)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)

    def interrupt(name, data):
        if name == "epoch_finished" and data["where"].startswith(f"stage {stage}") and data["epoch"] == 3:
            raise KeyboardInterrupt

    stopped = make_experiment(tmp_path / "stopped", *longer, tell=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_steps(stopped, plan_steps(stopped, FOLD, 0))
    assert len(list((tmp_path / "stopped" / "store" / "checkpoints").iterdir())) == 1
    epochs = []
    resumed = make_experiment(
        tmp_path / "stopped",
        *longer,
        tell=lambda name, data: (
            epochs.append((data["where"], data["epoch"])) if name == "epoch_finished" else None
        ),
    )
    plan = plan_steps(resumed, FOLD, 0)
    assert 0 < run_steps(resumed, plan) <= 6
    assert [epoch for where, epoch in epochs if where.startswith(f"stage {stage}")] == [3, 4]
    assert np.array_equal(predict_logits(resumed, plan.origins, FOLD.test), expected)
    assert list((tmp_path / "stopped" / "store" / "checkpoints").iterdir()) == []


def test_a_loss_that_is_not_finite_names_stage_batch_and_rows_and_leaves_no_artefact(tmp_path):
    experiment = make_experiment(tmp_path, "stages.fuse.train=[head, record.encoder]")
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, Plan(plan.steps[:-1], {}))
    for part in ("image.scale", "record.scale"):
        experiment.module(part, plan.origins[part]).std.fill_(0)
    with pytest.raises(TrainingError) as error:
        run_steps(experiment, plan)
    assert str(error.value).startswith(
        "stage fuse: the loss is not finite (nan) in epoch 1, batch 1: sample sample"
    )
    assert "(subject subject" in str(error.value)
    assert not experiment.store.has(plan.steps[-1].address)


class Forgetful(toy_images.ToyCenter):
    """Learns into an attribute that no artefact keeps."""

    def fit(self, inputs, targets=None, *, seed):
        self.learned = inputs.mean()
        return self


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "closed_form",
            "record.raiser: `fit` changed nothing in state_dict(), so nothing of it would be kept.",
        ),
        ("nothing", "record.raiser: liar has a method `fit`, and its card says that it learns nothing."),
    ],
)
def test_a_fit_that_would_be_lost_is_the_plugins_mistake(tmp_path, monkeypatch, how, said):
    class Liar:
        __file__ = __file__

        @staticmethod
        @hookimpl
        def fusionkit_components():
            config = toys.ToyDenoiseConfig
            card = RaiserSpec(name="liar", summary="", source="", config=config, build=Forgetful, learns=how)
            return [card]

    registry = toy_images.make_registry()
    registry.add("liar", Liar)
    monkeypatch.setattr(toy_images, "make_registry", lambda: registry)

    def learn() -> None:
        experiment = make_experiment(tmp_path, "modalities.record.raiser={use: liar}")
        run_steps(experiment, plan_steps(experiment, FOLD, 0))

    with pytest.raises(PluginError) as error:
        learn()
    assert str(error.value).startswith(said)
