"""What a run would compute: planned, compared with the store, and computed by nobody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import toy_images
from toy_images import COUNTS

from fusionkit import dry_run
from fusionkit.dry_run import plan_text, plan_work
from fusionkit.locks import users
from fusionkit.prepare import Places
from fusionkit.run import run
from fusionkit.store import prune

ALONE = "evaluation.modalities_alone=false"


def places(folder: Path) -> Places:
    return Places(folder / "data", folder / "store", folder / "runs")


def plan(folder: Path, *overrides: str) -> dict[str, Any]:
    return plan_work(toy_images.load(*overrides), places(folder), lambda name, data: None)


def run_toy(folder: Path, *overrides: str) -> Any:
    loaded = toy_images.load(*overrides)
    return run(loaded, toy_images.make_registry(), places(folder), lambda name, data: None)


def todo(work: dict[str, Any]) -> list[str]:
    return [" ".join((step["verb"], *step["parts"])) for step in work["steps"] if not step["stored"]]


def test_before_a_run_everything_is_to_compute_and_no_stage_is(tmp_path):
    work = plan(tmp_path)
    assert (work["recipe"], work["samples"], work["subjects"], work["folds"]) == ("pictures", 36, 12, 2)
    assert work["models"] == ["fused", "image", "record"]
    # per fold: five that the models share, and a head for each of them
    assert len(work["steps"]) == len(todo(work)) == 2 * (5 + 3)
    # every row of both folds, by an encoder that each fold learns anew
    assert work["features"] == {"image": 72}
    assert not (tmp_path / "store" / "artefacts").exists()
    assert not (tmp_path / "store" / "features").exists()
    assert not (tmp_path / "runs").exists()
    json.dumps(work)


def test_the_plan_is_what_the_run_then_computes(tmp_path):
    work = plan(tmp_path)
    result = run_toy(tmp_path)
    assert result.computed == len(todo(work))
    stored = {path.stem for path in (tmp_path / "store" / "artefacts").iterdir()}
    assert stored == {step["address"] for step in work["steps"]}


def test_after_a_run_nothing_is_to_compute_and_nothing_is_measured(tmp_path):
    run_toy(tmp_path)
    COUNTS.clear()
    work = plan(tmp_path)
    assert (todo(work), work["features"], work["seconds"]) == ([], {}, 0.0)
    assert COUNTS["toy_conv"] == 0
    assert plan_text(work).splitlines()[-1] == "There is nothing to compute."


def test_a_change_is_followed_to_what_depends_on_it(tmp_path):
    run_toy(tmp_path, ALONE)
    work = plan(tmp_path, ALONE, "stages.fuse.epochs=3")
    assert todo(work) == ["train head"] * 2
    assert work["features"] == {}
    work = plan(tmp_path, ALONE, "modalities.image.encoder.input.eval_views={patches: {6: 2}}")
    assert todo(work) == []
    # two further views of the rows that either fold tests; the whole one is there
    assert work["features"] == {"image": 2 * 36}


def test_a_broken_artefact_counts_as_not_there(tmp_path):
    run_toy(tmp_path, ALONE)
    path = tmp_path / "store" / "artefacts" / (plan(tmp_path, ALONE)["steps"][-1]["address"] + ".safetensors")
    path.write_bytes(b"")
    with pytest.warns(UserWarning, match="set aside"):
        assert todo(plan(tmp_path, ALONE)) == ["train head"]


def test_an_encoder_that_learns_costs_its_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr(
        dry_run, "_rows_per_second", lambda experiment, name: 10.0 if name == "image" else float("inf")
    )
    work = plan(tmp_path, ALONE)
    # 72 features; 2 folds of 18 training rows for 2 epochs, at the cost of three passes each
    assert work["seconds"] == pytest.approx(72 / 10 + 2 * 18 * 2 * 3 / 10)


def test_in_words_it_fits_80_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(dry_run, "_rows_per_second", lambda experiment, name: 10.0)
    lines = plan_text(plan(tmp_path)).splitlines()
    assert lines[:5] == [
        "pictures: 36 samples of 12 subjects, 2 folds,",
        "models: fused, image, record; on cpu in fp32.",
        "16 stage results: 0 in the store, 16 to compute.",
        "  learn_record: pretrain record.encoder: 2 of 2 to compute",
        "  raise_record: fit record.raiser: 2 of 2 to compute",
    ]
    assert lines[-2] == "  features of image: 72 rows to encode"
    assert lines[-1] == "Rough cost of the encoders: 50 s; heads and records add to it."
    assert max(map(len, lines)) <= 80


def test_where_a_record_is_all_that_learns_no_cost_is_made_up(tmp_path):
    lines = plan_text(plan(tmp_path, "modalities.image=null")).splitlines()
    assert lines[2].endswith(" to compute.")
    assert not [line for line in lines if "cost" in line]


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min")])
def test_a_duration_is_rounded(seconds, text):
    assert dry_run._duration(seconds) == text


def test_whoever_plans_is_named_to_who_prunes_the_store(tmp_path):
    seen = []

    def tell(name: str, data: Any) -> None:
        seen.append(len(prune(tmp_path / "store", older_than_days=0, dry_run=True).users))

    plan_work(toy_images.load(ALONE), places(tmp_path), tell)
    assert set(seen) == {1}
    assert users(tmp_path / "store" / "locks") == []
