"""The recipe of another disease on its real rows: nearly empty columns, three modalities, finite numbers."""

from __future__ import annotations

import csv
import math
import os
from pathlib import Path

import pytest

from fusionkit import SourceContext
from fusionkit.prepare import Places
from fusionkit.recipe.load import load_recipe
from fusionkit.registry import Registry
from fusionkit.run import run

pytestmark = pytest.mark.skipif("FUSIONKIT_DATA" not in os.environ, reason="FUSIONKIT_DATA is not set")
RECIPE = Path(__file__).parent.parent / "recipes" / "covid_cxr.yaml"
SMALL = (
    "modalities.image.encoder.input.size=32",
    "split={scheme: folds, folds: 2}",
    "stages.raise_record.epochs=5",
    "stages.fuse.epochs=2",
    "evaluation.resamples=100",
    "training.jobs=1",
)
# one row of 306 has a value: half of the training folds have none, and so nothing to scale by
EMPTIER = (
    "source.columns.leukocyte_count={kind: numeric, range: [0, 100]}",
    "modalities.record.columns=[age, sex, temperature, pO2_saturation, neutrophil_count, lymphocyte_count, "
    "leukocyte_count]",
)


def root():
    return Path(os.environ["FUSIONKIT_DATA"])


def run_small(folder, *overrides):
    registry = Registry.discover()
    loaded = load_recipe(RECIPE, registry, [*SMALL, *overrides], data_root=root())
    return run(loaded, registry, Places(root(), folder / "store", folder / "runs"), lambda name, data: None)


def numbers_of(node, path=""):
    """Returns every number of a report with where it stands; None counts as a number that is not there."""
    if isinstance(node, dict):
        return [found for key, value in node.items() for found in numbers_of(value, f"{path}/{key}")]
    if isinstance(node, list):
        return [found for i, value in enumerate(node) for found in numbers_of(value, f"{path}/{i}")]
    return [(path, node)] if isinstance(node, float) or node is None else []


@pytest.fixture(scope="module")
def manifest():
    source = load_recipe(RECIPE, Registry.discover(), data_root=root()).source
    return source.read(SourceContext(root(), root()))


def test_columns_that_are_nine_tenths_empty_are_read(manifest):
    share = {name: manifest.cells[name].null_count() / len(manifest.cells) for name in manifest.schema}
    columns = load_recipe(RECIPE, Registry.discover(), data_root=root()).columns["record"]
    assert {name: round(share[name], 2) for name in columns} == {
        "age": 0.35,
        "sex": 0.04,
        "temperature": 0.94,
        "pO2_saturation": 0.78,
        "neutrophil_count": 0.92,
        "lymphocyte_count": 0.91,
    }


def test_a_patient_with_both_labels_counts_as_covid(manifest):
    labels = {}
    for subject, outcome in zip(manifest.subjects, manifest.outcomes, strict=True):
        labels.setdefault(subject, set()).add(outcome)
    assert {subject for subject, seen in labels.items() if len(seen) == 2} == {"173", "223", "252", "270"}
    assert load_recipe(RECIPE, Registry.discover()).recipe.evaluation.subject_outcome == "any_positive"


def test_what_was_written_down_later_is_read_by_no_modality():
    columns = load_recipe(RECIPE, Registry.discover()).columns
    read = {name for names in columns.values() for name in names}
    later = {"finding", "survival", "intubated", "intubation_present", "went_icu", "in_icu", "extubated"}
    assert read & (later | {"label_covid", "view", "date", "location", "doi", "url", "patientid"}) == set()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_runs_and_every_number_is_finite_and_every_modality_is_reported(tmp_path):
    done = run_small(tmp_path)
    models = done.report["models"]
    assert set(models) == {
        "fused",
        "fused_missing_notes_1",
        "image",
        "record",
        "notes",
        "notes_missing_notes_1",
    }
    assert {name: models[name]["n_subjects"] for name in ("fused", "image", "record", "notes")} == {
        "fused": 154,
        "image": 154,
        "record": 146,
        "notes": 108,
    }
    assert done.report["counts"]["subjects_by_class"] == {"other": 44, "covid": 110}
    check_finite(done)


def test_a_column_that_a_training_fold_lacks_altogether_leaves_everything_finite(tmp_path):
    done = run_small(tmp_path, "modalities.image=null", *EMPTIER)
    assert set(done.report["models"]) >= {"fused", "record", "notes"}
    check_finite(done)


def check_finite(done):
    # with its notes blanked, the model of the notes has nothing to answer from
    models = {name: model for name, model in done.report["models"].items() if name != "notes_missing_notes_1"}
    assert [(path, n) for path, n in numbers_of(models) if n is None or not math.isfinite(n)] == []
    with (done.folder / "predictions.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["model"] for row in rows} >= {"fused", "record", "notes"}
    assert all(0 <= float(row["probability_covid"]) <= 1 for row in rows)
