from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import toy_images
from toy_images import COUNTS, FOLD, FOLD_WITH_VALIDATION, make_experiment, make_manifest

from fusionkit.data.splits import Fold
from fusionkit.errors import DataError, IntegrityError, TrainingError
from fusionkit.model import Scale, state_digest
from fusionkit.recipe.schema import TrainStage
from fusionkit.training import train
from fusionkit.training.experiment import Experiment, Origin
from fusionkit.training.stages import Plan, Step, plan_steps, run_steps
from fusionkit.training.supervised import link, predict_logits, predict_pretrained, row_weights

NAMES = {
    "learn_record": "pretrain record.encoder",
    "raise_record": "fit record.raiser",
    "learn_image": "pretrain image.encoder",
    "image.scale": "fit image.scale",
    "record.scale": "fit record.scale",
    "fuse": "train head",
}


def name_of(step: Step) -> str:
    return f"{step.verb} {' '.join(step.learned)}"


def addresses(experiment: Experiment, fold: Fold = FOLD, member: int = 0) -> dict[str, str]:
    return {name_of(step): step.address for step in plan_steps(experiment, fold, member).steps}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


ALL = set(NAMES.values())
RECORD = {"pretrain record.encoder", "fit record.raiser", "fit record.scale"}
IMAGE = {"pretrain image.encoder", "fit image.scale"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("base")
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


# addresses: one change at a time


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["stages.raise_record.epochs=3"], {"fit record.raiser", "fit record.scale", "train head"}),
        (["stages.raise_record.rows=sample"], {"fit record.raiser", "fit record.scale", "train head"}),
        (["stages.learn_image.learning_rate=0.1"], IMAGE | {"train head"}),
        (["stages.learn_image.classifier=vgg"], IMAGE | {"train head"}),
        (["stages.fuse.batch_size=4"], {"train head"}),
        (["stages.fuse.class_weights=balanced"], {"train head"}),
        (["modalities.image.encoder.width=5"], IMAGE | {"train head"}),
        (["modalities.image.encoder.input.size=9"], IMAGE | {"train head"}),
        (["modalities.image.encoder.input.views={patches: {6: 1}}"], IMAGE | {"train head"}),
        (["modalities.image.encoder.input.augment={}"], IMAGE | {"train head"}),
        (["modalities.record.raiser.width=6"], {"fit record.raiser", "fit record.scale", "train head"}),
        (["modalities.record.columns=[number]"], RECORD | {"train head"}),
        (["head={use: toy_linear}"], {"train head"}),
        (["seed=1"], ALL),
        (["training.precision=bf16"], ALL),
    ],
)
def test_an_option_changes_the_addresses_of_what_depends_on_it(base, overrides, expected):
    folder, before = base
    assert changed(before, addresses(make_experiment(folder, *overrides))) == expected


@pytest.mark.parametrize(
    "overrides",
    [
        ["stages.fuse.name=fusion"],
        ["stages.raise_record.name=up"],
        ["modalities.image.encoder.input.eval_views={patches: {6: 2}}"],
        ["evaluation.resamples=500"],
        ["training.threads=2"],
        ["name=other"],
        ["description=words"],
        ["seeds=3"],
        ["split.folds=3"],
    ],
)
def test_what_no_result_depends_on_changes_no_address(base, overrides):
    folder, before = base
    threads = torch.get_num_threads()
    assert changed(before, addresses(make_experiment(folder, *overrides))) == set()
    torch.set_num_threads(threads)


def with_cell(manifest, column: str, row: int, text: str | None):
    cells = manifest.cells[column].to_list()
    cells[row] = text
    return replace(manifest, cells=manifest.cells.with_columns(pl.Series(column, cells, dtype=pl.String)))


def test_a_cell_of_a_training_row_changes_the_addresses_of_what_reads_it(base):
    folder, before = base
    manifest = make_manifest(folder / "pictures")
    in_raiser = make_experiment(folder, manifest=with_cell(manifest, "number", 3, "7"))
    assert changed(before, addresses(in_raiser)) == RECORD | {"train head"}
    (folder / "pictures" / "new.png").write_bytes((folder / "pictures" / "30.png").read_bytes())
    picture = make_experiment(folder, manifest=with_cell(manifest, "picture", 4, "new.png"))
    assert changed(before, addresses(picture)) == IMAGE | {"train head"}


def test_the_name_of_a_file_is_nothing_its_content_everything(base):
    folder, before = base
    (folder / "pictures" / "same.png").write_bytes((folder / "pictures" / "04.png").read_bytes())
    manifest = with_cell(make_manifest(folder / "pictures"), "picture", 4, "same.png")
    assert changed(before, addresses(make_experiment(folder, manifest=manifest))) == set()


@pytest.mark.parametrize("field", ["samples", "subjects", "outcomes"])
def test_sample_subject_and_outcome_of_a_training_row_count(base, field):
    folder, before = base
    manifest = make_manifest(folder / "pictures")
    values = list(getattr(manifest, field))
    values[3] = {"samples": "sample03b", "subjects": "subject01b", "outcomes": "no"}[field]
    found = addresses(make_experiment(folder, manifest=replace(manifest, **{field: values})))
    assert changed(before, found) == ALL


def test_the_order_of_the_data_changes_no_address(base):
    folder, before = base
    order = list(np.random.default_rng(0).permutation(36))
    manifest = make_manifest(folder / "pictures", order=order)
    train_rows = tuple(row for row in range(36) if order[row] < 24)
    fold = Fold(0, 0, train_rows, (), tuple(row for row in range(36) if order[row] >= 24))
    assert changed(before, addresses(make_experiment(folder, manifest=manifest), fold)) == set()


def test_validation_rows_count_only_where_they_are_used(base):
    folder, _ = base
    overrides = ["split.validation=0.2", "stages.fuse.early_stopping=1"]
    one = addresses(make_experiment(folder, *overrides), FOLD_WITH_VALIDATION)
    other = addresses(make_experiment(folder, *overrides), replace(FOLD_WITH_VALIDATION, validation=(18, 19)))
    assert changed(one, other) == {"train head"}
    plain = make_experiment(folder)
    assert addresses(plain, FOLD_WITH_VALIDATION) == addresses(
        plain, replace(FOLD_WITH_VALIDATION, validation=())
    )


def test_nothing_is_fitted_on_test_rows(tmp_path):
    """Another subject's test row at 1e9, another picture: no address and no artefact changes."""
    stores = []
    for name in ("plain", "changed"):
        folder = tmp_path / name
        experiment = make_experiment(folder)
        if name == "changed":
            manifest = with_cell(experiment.manifest, "number", 30, "1e9")
            manifest = with_cell(manifest, "picture", 31, "00.png")
            outcomes = [
                *manifest.outcomes[:32],
                "yes" if manifest.outcomes[32] == "no" else "no",
                *manifest.outcomes[33:],
            ]
            experiment = make_experiment(folder, manifest=replace(manifest, outcomes=outcomes))
        plan = plan_steps(experiment, FOLD, 0)
        run_steps(experiment, plan)
        predict_logits(experiment, plan.origins, FOLD.test)
        files = sorted((folder / "store" / "artefacts").iterdir())
        stores.append({file.name: file.read_bytes() for file in files})
    assert len(stores[0]) == 6
    assert stores[0] == stores[1]


def test_artefacts_do_not_depend_on_evaluation_views(tmp_path):
    """Addresses say that they do not: a scale fitted on evaluation views would be reused wrongly."""
    stores = []
    for views in ("{}", "{whole: false, patches: {3: 4}}"):
        folder = tmp_path / str(len(stores))
        experiment = make_experiment(folder, f"modalities.image.encoder.input.eval_views={views}")
        run_steps(experiment, plan_steps(experiment, FOLD, 0))
        files = sorted((folder / "store" / "artefacts").iterdir())
        stores.append({file.name: file.read_bytes() for file in files})
    assert stores[0] == stores[1]


# what is shared


def variant(experiment: Experiment, modality: str) -> Experiment:
    factory = type(experiment.factory)(
        experiment.factory.loaded.alone(modality), 2, experiment.factory.data_root
    )
    return replace(experiment, factory=factory)


def test_a_modality_alone_shares_all_but_the_head(base):
    folder, fused = base
    experiment = make_experiment(folder)
    for modality, own in (("image", IMAGE), ("record", RECORD)):
        alone = addresses(variant(experiment, modality))
        assert {name: alone[name] for name in own} == {name: fused[name] for name in own}
        assert alone["train head"] != fused["train head"]


STRUCTURED = (
    "modalities.record.encoder={use: structured}",
    "stages.learn_record=null",
    "stages.raise_record.fit=[record.encoder, record.raiser]",
)


def test_an_initialisation_starts_everything_anew_but_shares_what_is_fitted_in_closed_form(base):
    folder, first = base
    assert changed(first, addresses(make_experiment(folder), member=1)) == ALL
    experiment = make_experiment(folder, *STRUCTURED)
    one, two = addresses(experiment, member=0), addresses(experiment, member=1)
    assert set(one) - changed(one, two) == {"fit record.encoder"}
    assert addresses(experiment, member=1) == two
    assert changed(two, addresses(experiment, member=2)) == changed(one, two)


def test_a_head_with_nothing_to_learn_is_not_shared_between_variants(tmp_path):
    experiment = make_experiment(
        tmp_path,
        "head.use=toy_sum",
        "modalities.image.encoder.width=5",
        "stages.fuse.train=[head, record.encoder]",
    )
    for each in (experiment, variant(experiment, "record")):
        plan = plan_steps(each, FOLD, 0)
        run_steps(each, plan)
        assert predict_logits(each, plan.origins, FOLD.test).shape == (12, 1, 2)
    head = experiment.initial("head", 0)
    assert experiment.module("head", head).names == ("image", "record")
    assert variant(experiment, "image").module("head", head).names == ("image",)


def test_a_second_run_computes_nothing_and_calls_no_encoder(tmp_path):
    experiment = make_experiment(tmp_path)
    plan = plan_steps(experiment, FOLD, 0)
    COUNTS.clear()
    assert run_steps(experiment, plan) == 6
    first = predict_logits(experiment, plan.origins, FOLD.test)
    stage = experiment.factory.loaded.recipe.stages[2]
    pretrained = predict_pretrained(experiment, stage, plan.origins["image.encoder"], FOLD.test)
    assert COUNTS["toy_conv"] > 0
    COUNTS.clear()
    told: Counter[str] = Counter()
    again = make_experiment(tmp_path, tell=lambda name, data: told.update([name]))
    plan = plan_steps(again, FOLD, 0)
    assert run_steps(again, plan) == 0
    assert np.array_equal(predict_logits(again, plan.origins, FOLD.test), first)
    assert np.array_equal(
        predict_pretrained(again, stage, plan.origins["image.encoder"], FOLD.test), pretrained
    )
    assert COUNTS["toy_conv"] == 0
    assert not told


def test_frozen_features_are_computed_once_for_all_epochs_and_stages(tmp_path):
    experiment = make_experiment(tmp_path, "stages.fuse.epochs=5")
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, Plan(plan.steps[:3], {}))
    COUNTS.clear()
    run_steps(experiment, plan)
    predict_logits(experiment, plan.origins, FOLD.test)
    alone = variant(experiment, "image")
    plan = plan_steps(alone, FOLD, 0)
    assert run_steps(alone, plan) == 1
    predict_logits(alone, plan.origins, FOLD.test)
    assert COUNTS["toy_conv"] == 36


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
    units = experiment.units(FOLD.train, [], training=True)
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
    assert COUNTS["toy_conv"] == 24 * 3, "three draws, however many epochs"
    artefact = experiment.store.load(steps[-1].address)
    assert artefact is not None
    assert int(artefact.tensors["head.norm.num_batches_tracked"]) == 2 * 9, "72 units in batches of 8"


def test_logits_of_views_become_probabilities(base):
    experiment = make_experiment(base[0])
    logits = np.array([[[0.0, 2.0], [0.0, -4.0]]], dtype=np.float32)

    def sigmoid(x: float) -> float:
        return 1 / (1 + np.exp(-x))

    assert link(experiment, logits, "mean_logit")[0, 1] == pytest.approx(sigmoid(-1))
    both = link(experiment, logits, "mean_probability")[0, 1]
    assert both == pytest.approx((sigmoid(2) + sigmoid(-4)) / 2)


def test_no_rows_have_no_logits(tmp_path):
    experiment = make_experiment(tmp_path)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    assert predict_logits(experiment, plan.origins, []).shape == (0, 1, 2)
    stage = experiment.factory.loaded.recipe.stages[2]
    assert predict_pretrained(experiment, stage, plan.origins["image.encoder"], []).shape == (0, 1, 2)


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
