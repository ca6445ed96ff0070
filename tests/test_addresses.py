from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_images import (
    COUNTS,
    FOLD,
    FOLD_WITH_VALIDATION,
    RECIPE,
    addresses,
    make_experiment,
    make_manifest,
    variant,
    with_cell,
)

from fusionkit.data.splits import Fold
from fusionkit.training.addresses import describe_step
from fusionkit.training.features import BATCH
from fusionkit.training.pretrain import predict_pretrained
from fusionkit.training.stages import Plan, plan_steps, run_steps
from fusionkit.training.supervised import predict_logits

NAMES = {
    "learn_record": "pretrain record.encoder",
    "raise_record": "fit record.raiser",
    "learn_image": "pretrain image.encoder",
    "image.scale": "fit image.scale",
    "record.scale": "fit record.scale",
    "fuse": "train head",
}


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


ALL = set(NAMES.values())
RECORD = {"pretrain record.encoder", "fit record.raiser", "fit record.scale"}
IMAGE = {"pretrain image.encoder", "fit image.scale"}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("addresses")
    return folder, addresses(make_experiment(folder))


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
        (["modalities.image.dropout=0.3"], {"train head"}),
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


def test_what_is_asked_for_absent_modalities_changes_the_fused_model_and_its_absence_nothing(base):
    """A recipe without it is described as before the keys existed, so that its addresses are as old."""
    folder, before = base
    other, learned = (
        make_experiment(folder, "modalities.image.dropout=0.3", *more)
        for more in ([], ["modalities.image.absent=learned"])
    )
    assert changed(before, addresses(other)) == {"train head"}
    vector = addresses(learned)
    assert vector.pop("train image.absent head") not in {*addresses(other).values(), *before.values()}
    assert vector == {name: address for name, address in before.items() if name != "train head"}

    described = [describe_step(e, plan_steps(e, FOLD, 0).steps[-1]) for e in (make_experiment(folder), other)]
    assert described[1].pop("dropout") == {"image": 0.3}
    assert described[0] == described[1]
    assert set(described[0]) == {
        *("format", "loop", "verb", "options", "learned", "parts", "order", "inputs", "rows", "validation"),
        *("task", "seed", "device", "precision", "torch"),
    }
    fitted = [describe_step(other, step) for step in plan_steps(other, FOLD, 0).steps[:-1]]
    assert not any("dropout" in entry for entry in fitted)


def test_with_and_without_a_learned_vector_all_else_is_drawn_alike(base):
    steps = [
        plan_steps(make_experiment(base[0], *more), FOLD, 0).steps[-1]
        for more in ([], ["modalities.image.absent=learned"])
    ]
    assert steps[0].seed == steps[1].seed


def test_a_second_task_changes_the_addresses_of_what_depends_on_it_and_its_absence_none(base):
    """A stage without it is described as it was before the option existed, so that its address is as old."""
    folder, _ = base
    given: list[tuple[str, ...]] = [(), ("stages.learn_image.auxiliary=word",)]
    given.append((*given[-1], "stages.learn_image.auxiliary_weight=0.5"))
    without, with_it, weighed = (make_experiment(folder, *overrides) for overrides in given)
    assert changed(addresses(without), addresses(with_it)) == IMAGE | {"train head"}
    assert changed(addresses(with_it), addresses(weighed)) == IMAGE | {"train head"}

    def options(experiment) -> dict[str, object]:
        step = plan_steps(experiment, FOLD, 0).steps[2]
        assert step.learned == ("image.encoder",)
        return describe_step(experiment, step)["options"]

    assert options(without) == {
        "epochs": 2,
        "batch_size": 8,
        "optimizer": "adamw",
        "learning_rate": 3e-4,
        "weight_decay": 0.01,
        "schedule": "constant",
        "warmup_epochs": 0.0,
        "gradient_clip": None,
        "class_weights": None,
        "subject_weights": None,
        "early_stopping": None,
        "classifier": "linear",
    }
    assert options(weighed) == options(without) | {"auxiliary": "word", "auxiliary_weight": 0.5}


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


@pytest.mark.parametrize(
    ("stage", "expected"), [("fuse", {"train head"}), ("learn_image", IMAGE | {"train head"})]
)
def test_evaluation_views_count_where_early_stopping_looks_at_them(base, stage, expected):
    folder, _ = base
    overrides = ["split.validation=0.2", f"stages.{stage}.early_stopping=1"]
    views = "modalities.image.encoder.input.eval_views={patches: {6: 2}}"
    one, other = (
        addresses(make_experiment(folder, *each), FOLD_WITH_VALIDATION)
        for each in (overrides, [*overrides, views])
    )
    assert changed(one, other) == expected


def test_the_order_of_modalities_changes_the_head_and_nothing_else(base):
    """A head may join its modalities in the recipe's order: its columns would be permuted."""
    folder, before = base
    parts = RECIPE.split("  record:\n")
    image = "  image:\n" + parts[0].split("  image:\n")[1]
    record, rest = parts[1].split("head:", 1)
    swapped = parts[0].replace(image, "") + "  record:\n" + record + image + "head:" + rest
    experiment = make_experiment(folder, text=swapped)
    assert experiment.modalities == ["record", "image"]
    assert changed(before, addresses(experiment)) == {"train head"}


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        ("fusionkit.data.images.VERSION", IMAGE | {"train head"}),
        ("fusionkit.data.tables.VERSION", RECORD | {"train head"}),
        (
            "fusionkit.training.experiment.SCALE_VERSION",
            {"fit image.scale", "fit record.scale", "train head"},
        ),
        ("fusionkit.training.addresses.LOOP_VERSION", ALL),
    ],
)
def test_other_code_of_the_core_changes_the_addresses_of_what_ran_it(base, monkeypatch, version, expected):
    folder, before = base
    monkeypatch.setattr(version, 1000)
    assert changed(before, addresses(make_experiment(folder))) == expected


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
    assert COUNTS["toy_conv"] == 2 * BATCH + BATCH
