"""Modality dropout and the learned vector: who loses what in training, and that none of it comes through."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score
from toy_images import (
    COUNTS,
    FOLD,
    FOLD_WITH_VALIDATION,
    RECIPE,
    load,
    make_experiment,
    make_manifest,
    variant,
    with_cell,
)

import fusionkit_heads
import fusionkit_tabular
from fusionkit import ColumnSpec, ComponentConfig, Manifest, SourceSpec, hookimpl
from fusionkit.data.batches import make_units
from fusionkit.part_factory import PartFactory
from fusionkit.prepare import Places, examine
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.store import Store
from fusionkit.task import Classification
from fusionkit.training import train
from fusionkit.training.device import choose_device
from fusionkit.training.dropout import ModalityDropout
from fusionkit.training.experiment import Experiment, Feed
from fusionkit.training.stages import Plan, plan_steps, run_steps
from fusionkit.training.supervised import predict_logits

EVERY = tuple(range(36))


def losing(image: float = 0.0, record: float = 0.0, *more: str) -> list[str]:
    return [f"modalities.image.dropout={image}", f"modalities.record.dropout={record}", *more]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("dropout")


def kept_in(
    folder: Path, overrides: Sequence[str], n_draws: int = 300, manifest: Manifest | None = None
) -> dict[str, np.ndarray]:
    """Returns by modality which of 36 rows keep it, (36, draws)."""
    experiment = make_experiment(folder, *overrides, manifest=manifest)
    kept = ModalityDropout(experiment).keep(make_units(EVERY, 1, n_draws))
    return {name: here.reshape(36, n_draws) for name, here in kept.items()}


# how often


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_share_that_loses_a_modality_is_the_one_that_was_asked_for(folder, share):
    kept = kept_in(folder, losing(image=share))
    assert kept["record"].all()
    # 10800 draws: a deviation of .005 at most
    assert 1 - kept["image"].mean() == pytest.approx(share, abs=0.02)
    assert (1 - kept["image"].mean(1)).std() < 0.06, "every sample loses it as often"


@pytest.mark.parametrize(("image", "record"), [(0.3, 0.3), (0.8, 0.2), (0.9, 0.9)])
def test_with_shares_of_both_a_sample_that_would_lose_both_keeps_one_as_often_as_the_other(
    folder, image, record
):
    kept = kept_in(folder, losing(image, record))
    assert (kept["image"] | kept["record"]).all()
    assert 1 - kept["image"].mean() == pytest.approx(image - image * record / 2, abs=0.02)
    assert 1 - kept["record"].mean() == pytest.approx(record - image * record / 2, abs=0.02)


def test_a_sample_never_loses_the_only_modality_that_it_has_and_gains_none(folder):
    manifest = make_manifest(folder / "pictures", blanks=True)
    kept = kept_in(folder, losing(0.9, 0.9), 50, manifest)
    lacks_image = np.array([cell is None for cell in manifest.cells["picture"]])
    lacks_record = np.array([cell is None for cell in manifest.cells["number"]])
    lacks_record &= np.array([cell is None for cell in manifest.cells["word"]])
    assert lacks_image.sum() == 8
    assert lacks_record.sum() == 4
    assert not kept["image"][lacks_image].any()
    assert kept["record"][lacks_image & ~lacks_record].all()
    assert not kept["record"][lacks_record].any()
    assert kept["image"][lacks_record & ~lacks_image].all()
    both = ~lacks_image & ~lacks_record
    assert (kept["image"] | kept["record"])[both].all()
    assert not kept["image"][both].all()


# what it depends on


@given(st.permutations(list(EVERY)), st.integers(1, 36))
@settings(max_examples=20, deadline=None)
def test_no_draw_depends_on_the_order_of_rows_or_on_batches(folder, order, size):
    experiment = make_experiment(folder, *losing(0.5, 0.5))
    dropout = ModalityDropout(experiment)
    whole = dropout.keep(make_units(EVERY, 1, 3))
    units = make_units(order, 1, 3)
    parts = [dropout.keep(part) for part in units.chunks(size)]
    for name in ("image", "record"):
        found = np.concatenate([part[name] for part in parts]).reshape(36, 3)
        assert np.array_equal(found[np.argsort(order)], whole[name].reshape(36, 3))


def test_no_draw_depends_on_a_samples_name_or_on_the_order_of_modalities(folder):
    expected = kept_in(folder, losing(0.5, 0.5), 20)
    manifest = make_manifest(folder / "pictures")
    renamed = replace(manifest, samples=[f"other{row}" for row in EVERY])
    found = kept_in(folder, losing(0.5, 0.5), 20, renamed)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    experiment = make_experiment(folder, *losing(0.5, 0.5))
    dropout = ModalityDropout(experiment)
    dropout.readers = dict(reversed(dropout.readers.items()))
    turned = dropout.keep(make_units(EVERY, 1, 20))
    assert list(turned) == ["record", "image"]
    assert all(np.array_equal(turned[name].reshape(36, 20), expected[name]) for name in expected)


def test_another_seed_draw_or_content_draws_anew(folder):
    base = kept_in(folder, losing(0.5), 2)["image"]
    assert not np.array_equal(base[:, 0], base[:, 1])
    assert not np.array_equal(kept_in(folder, losing(0.5, 0.0, "seed=1"), 2)["image"], base)
    changed = with_cell(make_manifest(folder / "pictures"), "number", 7, "0.123")
    found = kept_in(folder, losing(0.5), 50, changed)["image"]
    differs = (found != kept_in(folder, losing(0.5), 50)["image"]).any(1)
    assert np.flatnonzero(differs).tolist() == [7]


def test_all_views_of_a_sample_share_a_draw(folder):
    kept = ModalityDropout(make_experiment(folder, *losing(0.5))).keep(make_units(EVERY, 4, 3))
    by_view = kept["image"].reshape(36, 4, 3)
    assert (by_view == by_view[:, :1]).all()


# in a stage


def spy(monkeypatch) -> list[tuple[bool, bool]]:
    """Notes of every batch whether it is one of training, and whether a present modality was taken away."""
    seen = []
    real = Feed.batch

    def batch(self, units, *, training, kept=None):
        found = real(self, units, training=training, kept=kept)
        present = {name: self.experiment.reader(name).present(units.rows) for name in found}
        lost = any(not np.array_equal(found[name].present.numpy(), here) for name, here in present.items())
        seen.append((training, lost))
        return found

    monkeypatch.setattr(Feed, "batch", batch)
    return seen


def test_train_stages_take_away_and_nothing_else_does(tmp_path, monkeypatch):
    early = ["split.validation=0.2", "stages.fuse.early_stopping=2", "stages.fuse.epochs=3"]
    experiment = make_experiment(tmp_path, *losing(0.5, 0.5), *early)
    plan = plan_steps(experiment, FOLD_WITH_VALIDATION, 0)
    seen = spy(monkeypatch)
    run_steps(experiment, Plan(plan.steps[:-1], {}))
    assert seen == [], "fit and pretrain stages have batches of their own, of whoever is there"
    run_steps(experiment, plan)
    predict_logits(experiment, plan.origins, FOLD.test)
    assert {lost for training, lost in seen if not training} == {False}
    assert (True, True) in seen


def test_a_single_modality_loses_nothing_and_has_no_vector(tmp_path, folder):
    asked = ["modalities.image.absent=learned", "modalities.record.absent=learned"]
    plain, losers = (make_experiment(folder, *given) for given in ([], losing(0.5, 0.5, *asked)))
    for name in ("image", "record"):
        steps = [plan_steps(variant(one, name), FOLD, 0).steps for one in (plain, losers)]
        assert [step.address for step in steps[0]] == [step.address for step in steps[1]]


def test_a_picture_that_is_taken_away_is_not_even_read(tmp_path):
    online = ["stages.fuse.train=[head, image.encoder]", "stages.fuse.epochs=10"]
    counts = []
    for share in (0.0, 0.5):
        experiment = make_experiment(tmp_path, *losing(share), *online)
        plan = plan_steps(experiment, FOLD, 0)
        run_steps(experiment, Plan(plan.steps[:-1], {}))
        COUNTS.clear()
        run_steps(experiment, Plan(plan.steps[-1:], {}))
        counts.append(COUNTS["toy_conv"])
    assert counts[0] == 240
    assert 90 < counts[1] < 150


def test_what_is_read_ahead_is_what_is_kept(tmp_path):
    online = [
        "stages.fuse.train=[head, image.encoder]",
        "modalities.image.encoder.input.views={patches: {6: 3}}",
    ]
    experiment = make_experiment(tmp_path, *losing(0.5), *online)
    run_steps(experiment, plan_steps(experiment, FOLD, 0))
    assert experiment.reader("image")._ahead == {}


@pytest.mark.parametrize("learned", [(), ("image", "record")])
def test_no_value_that_is_taken_away_reaches_any_output(tmp_path, learned):
    """Other pictures in the rows that lose theirs give the same logits and gradients, bit for bit."""
    overrides = [f"modalities.{name}.absent=learned" for name in learned]
    experiment = make_experiment(tmp_path, *overrides)
    manifest = experiment.manifest
    units = make_units(range(8), 1)
    is_kept = np.array([True, False, True, True, False, False, True, False])
    for row in np.flatnonzero(~is_kept):
        manifest = with_cell(manifest, "picture", int(row), f"{row + 20:02}.png")
    found = []
    for data in (experiment.manifest, manifest):
        other = make_experiment(tmp_path, *overrides, manifest=data)
        origins = {path: other.initial(path, 0) for path in other.factory.paths()}
        feed = Feed(other, origins, ("head",))
        feed.ensure(units, training=True)
        head = other.fresh("head", origins["head"]).requires_grad_(True)
        model = feed.model({"head": head})
        for number, part in enumerate(model.absent.values()):
            part.vector.data = torch.full_like(part.vector, 0.7 + number)
        logits = model(feed.batch(units, training=True, kept={"image": is_kept, "record": np.ones(8, bool)}))
        logits.square().sum().backward()
        found.append([logits, *(parameter.grad for parameter in head.parameters())])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


# the learned vector

LEARNED = losing(0.5, 0.0, "modalities.image.absent=learned", "stages.fuse.epochs=4")


def test_the_vector_learns_with_the_head_and_stands_where_the_modality_is_absent(tmp_path):
    experiment = make_experiment(tmp_path, *LEARNED)
    assert experiment.factory.paths()[-5:] == [
        "image.absent",
        "record.encoder",
        "record.raiser",
        "record.scale",
        "head",
    ]
    plan = plan_steps(experiment, FOLD, 0)
    assert [step.learned for step in plan.steps if step.verb == "train"] == [("image.absent", "head")]
    run_steps(experiment, plan)
    artefact = experiment.store.load(plan.steps[-1].address)
    vector = artefact.tensors["image.absent.vector"]
    assert vector.shape == (4,)
    assert (vector != 0).all()
    manifest = make_manifest(tmp_path / "pictures", blanks=True)
    blank = make_experiment(tmp_path, *LEARNED, manifest=manifest)
    units = make_units(range(8), 1)
    feed = Feed(blank, plan.origins)
    feed.ensure(units, training=False)
    features, present = feed.model({}).join(feed.batch(units, training=False))
    assert present["image"].all(), "the vector counts, or heads would let nothing of it through"
    gone = torch.tensor([manifest.cells["picture"][row] is None for row in range(8)])
    assert gone.nonzero().squeeze(1).tolist() == [0, 1, 2, 7]
    assert torch.equal(features["image"][gone], vector.repeat(4, 1))
    assert not (features["image"][~gone] == vector).all(1).any()
    assert not features["record"][~present["record"]].any(), "this one is zero, as nothing was asked for"


def test_a_stage_that_does_not_train_the_head_leaves_the_vector_as_it_is(tmp_path):
    later = "  - {name: tune, train: [image.encoder], epochs: 1, batch_size: 8}\nsplit:"
    experiment = make_experiment(tmp_path, *LEARNED, text=RECIPE.replace("split:", later))
    plan = plan_steps(experiment, FOLD, 0)
    assert plan.steps[-1].learned == ("image.encoder",)
    assert plan.origins["image.absent"] == plan.origins["head"]
    assert plan.origins["image.absent"].address == plan.steps[-2].address


def test_what_was_learned_answers_the_same_from_the_store(tmp_path):
    experiment = make_experiment(tmp_path, *LEARNED)
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    manifest = make_manifest(tmp_path / "pictures", blanks=True)
    found = []
    for _ in range(2):
        blank = make_experiment(tmp_path, *LEARNED, manifest=manifest)
        found.append(predict_logits(blank, plan.origins, FOLD.test))
    assert np.array_equal(*found)
    without = {**plan.origins, "image.absent": experiment.initial("image.absent", 0)}
    zero = predict_logits(make_experiment(tmp_path, *LEARNED, manifest=manifest), without, FOLD.test)
    lacks = np.array([manifest.cells["picture"][row] is None for row in FOLD.test])
    assert ((zero != found[0]).any((1, 2)) == lacks).all(), (
        "it speaks where the picture is absent, and only there"
    )


def test_a_stage_that_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    whole = make_experiment(tmp_path / "whole", *LEARNED)
    plan = plan_steps(whole, FOLD, 0)
    run_steps(whole, plan)
    expected = whole.store.load(plan.steps[-1].address).tensors
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)

    def interrupt(name: str, data: Any) -> None:
        if name == "epoch_finished" and data["where"] == "stage fuse" and data["epoch"] == 3:
            raise KeyboardInterrupt

    stopped = make_experiment(tmp_path / "stopped", *LEARNED, tell=interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_steps(stopped, plan_steps(stopped, FOLD, 0))
    resumed = make_experiment(tmp_path / "stopped", *LEARNED)
    assert run_steps(resumed, plan_steps(resumed, FOLD, 0)) == 1
    found = resumed.store.load(plan.steps[-1].address).tensors
    assert set(found) == set(expected) > {"image.absent.vector"}
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_batch_size_one_row_at_a_time_and_memory_in_parts_take_away_the_same(tmp_path):
    """A part of a batch that is read again has lost what the batch had lost."""
    experiment = make_experiment(tmp_path, *losing(0.5, 0.3))
    dropout = ModalityDropout(experiment)
    units = make_units(EVERY, 1, 2)
    whole = dropout.keep(units)
    for start in range(0, 72, 7):
        part = dropout.keep(units.take(slice(start, start + 7)))
        assert all(np.array_equal(part[name], whole[name][start : start + 7]) for name in whole)


# asked for in vain


def warnings_of(folder: Path, *overrides: str) -> list[str]:
    places = Places(folder / "data", folder / "store", folder / "runs")
    found = examine(load(*overrides), places, lambda name, data: None)
    return [warning.message for warning in found.audit.warnings if warning.check == "absence"]


def test_what_will_do_nothing_is_a_warning(tmp_path):
    learned = "modalities.image.absent=learned"
    assert warnings_of(tmp_path) == []
    assert warnings_of(tmp_path, learned) == [
        "modalities.image.absent: the vector stays zero, since no training sample lacks image (36 samples). "
        "Set modalities.image.dropout."
    ]
    assert warnings_of(tmp_path, learned, "modalities.image.dropout=0.1") == []
    assert warnings_of(tmp_path, learned, "source.blanks=true") == []
    alone = "modalities.record=null"
    assert warnings_of(tmp_path, learned, "modalities.image.dropout=0.1", alone) == [
        "modalities.image.dropout: does nothing, a sample keeps its only modality.",
        "modalities.image.absent: does nothing, a sample keeps its only modality.",
    ]


# where the truth is known

TRUTH = """\
name: truth
source: {use: truth}
modalities:
  scan: {columns: [blurred], encoder: {use: structured}}
  record: {columns: [blur, marker], encoder: {use: structured}}
head: {use: concat_mlp, hidden: [16], dropout: 0.0}
stages:
  - {name: fit, fit: [scan.encoder, record.encoder], rows: sample}
  - {name: fuse, train: [head], epochs: 60, batch_size: 64, learning_rate: 0.01}
split: {scheme: holdout}
training: {device: cpu, precision: fp32, threads: 1}
"""
"""The scan shows the outcome, blurred; the record knows the blur, and has a weak marker."""
NUMBERS = {name: ColumnSpec(kind="numeric") for name in ("blurred", "blur", "marker")}
MARKER = 1.5
"""How far apart the classes' markers are, in standard deviations."""


class TruthConfig(ComponentConfig):
    """Options of truth."""


class Truth:
    """What the recipe is checked against; the rows are given."""

    schema, classes, simulated = NUMBERS, ("no", "yes"), True

    def __init__(self, config: TruthConfig) -> None:
        pass


@hookimpl
def fusionkit_components() -> Sequence[Any]:
    """Returns the card of the source."""
    return [SourceSpec(name="truth", summary="ours", source="ours", config=TruthConfig, build=Truth)]


def truth_of(n_rows: int, seed: int) -> Manifest:
    rng = np.random.default_rng(seed)
    is_yes = rng.integers(0, 2, n_rows)
    blur = rng.normal(0, 3, n_rows)
    values = {
        "blurred": 2 * is_yes + blur + rng.normal(0, 0.7, n_rows),
        "blur": blur,
        "marker": MARKER * is_yes + rng.normal(0, 1, n_rows),
    }
    names = [f"row{row}" for row in range(n_rows)]
    return Manifest(
        samples=names,
        subjects=names,
        outcomes=["yes" if yes else "no" for yes in is_yes],
        cells=pl.DataFrame({name: [f"{value:.6f}" for value in column] for name, column in values.items()}),
        schema=NUMBERS,
        classes=("no", "yes"),
        root=Path("nowhere"),
        is_simulated=True,
    )


def aucs_of(folder: Path, *overrides: str) -> tuple[float, float]:
    """Returns the AUC of 1000 new rows with the scan, and without it."""
    registry = Registry()
    for plugin in (fusionkit_heads, fusionkit_tabular, sys.modules[__name__]):
        registry.add(plugin.__name__, plugin)
    loaded = load_text(TRUTH, registry, overrides=overrides)
    manifest = truth_of(1400, 0)
    device = choose_device(loaded.recipe.training)
    experiment = Experiment(
        PartFactory(loaded, 2, folder),
        manifest,
        Classification(manifest.classes),
        Store(folder / "store"),
        device,
        lambda name, data: None,
    )
    test = range(400, 1400)
    plan = plan_steps(experiment, replace(FOLD, train=tuple(range(400)), test=tuple(test)), 0)
    run_steps(experiment, plan)
    is_yes = [manifest.outcomes[row] == "yes" for row in test]
    blind = replace(manifest, cells=manifest.cells.with_columns(pl.lit(None, pl.String).alias("blurred")))
    aucs = []
    for data in (manifest, blind):
        same = replace(experiment, manifest=data, shared=type(experiment.shared)())
        logits = predict_logits(same, plan.origins, list(test))[:, 0]
        aucs.append(roc_auc_score(is_yes, logits[:, 1] - logits[:, 0]))
    return aucs[0], aucs[1]


def test_with_dropout_the_fused_model_answers_better_where_the_scan_is_absent(tmp_path):
    """Without the scan, only the marker tells: at best an AUC of Phi(1.5 / sqrt 2) = .856.

    A model that always had the scan takes the blur away from it; where there is no scan, that is noise.
    """
    best = 0.5 * (1 + math.erf(MARKER / 2))
    whole, blind = aucs_of(tmp_path)
    assert whole > 0.95
    assert blind < best - 0.15, "without dropout the record's noise is taken for the scan's"
    for more in ([], ["modalities.scan.absent=learned"]):
        whole, blind = aucs_of(tmp_path, "modalities.scan.dropout=0.5", *more)
        assert whole > 0.93, "with the scan it costs some: the head has to know two tasks"
        assert blind > best - 0.04
