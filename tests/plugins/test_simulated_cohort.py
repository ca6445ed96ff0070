"""The source `simulated_cohort`: what it says is true of its subjects is what can be found in them."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from fusionkit import Manifest, SourceContext
from fusionkit.prepare import Places
from fusionkit.recipe.load import load_recipe
from fusionkit.registry import Registry
from fusionkit.run import run
from fusionkit_pathoemr import fusionkit_components
from fusionkit_pathoemr.design import draw_subjects
from fusionkit_pathoemr.lesion import LesionStyle
from fusionkit_pathoemr.profile import ProfileStyle
from fusionkit_pathoemr.simulated import design_of, latent_ceilings
from fusionkit_pathoemr.simulated_options import SimulatedOptions

SMALL = {
    "subjects": 8,
    "fresh_subjects": 3,
    "samples_per_subject": [1, 3],
    "weights": {"lesion": 1.5, "risk": 1.0},
    "classes": {"low": 0.6, "high": 0.4},
    "image": {"shows": "lesion", "width": 24, "height": 20},
    "vectors": {"shows": "risk", "width": 12, "signal": 4},
    "record": {
        "age": {
            "kind": "numeric",
            "shows": "risk",
            "slope": 1,
            "mean": 50,
            "deviation": 10,
            "range": [20, 80],
        },
        "stage": {
            "kind": "ordinal",
            "shows": "risk",
            "slope": 1,
            "values": ["I", "II", "III"],
            "shares": [0.5, 0.3, 0.2],
        },
        "site": {"kind": "category", "values": ["left", "right"], "shares": [0.5, 0.5], "slope": [0, 0]},
    },
}
LARGE = {"subjects": 4000, "fresh_subjects": 0, "samples_per_subject": 1, "image": None, "vectors": None}
SURVIVAL = {"classes": None, "survival": {"median": 20, "shape": 1.5, "follow_up": [10, 40]}}


def options(**changes) -> SimulatedOptions:
    return SimulatedOptions.model_validate({**SMALL, **changes})


def read(cache: Path, workers: int = 1, **changes) -> Manifest:
    card = next(card for card in fusionkit_components() if card.name == "simulated_cohort")
    return card.build(options(**changes)).read(SourceContext(cache, cache, workers))


def subjects_of(**changes):
    return draw_subjects(design_of(options(**{**LARGE, **changes})))


def latents_of(subjects, name):
    return np.array([subject.truth.latents[name] for subject in subjects])


def field_of(subjects, name):
    return np.array([subject.record[name] for subject in subjects], dtype=object)


# what a row says


def test_a_manifest_says_all_that_was_asked_for_and_that_it_is_simulated(tmp_path):
    manifest = read(tmp_path)
    assert manifest.is_simulated
    assert manifest.cells.columns == ["image", "vectors", "age", "stage", "site", "split"]
    assert list(manifest.schema) == ["image", "vectors", "age", "stage", "site"]
    assert manifest.classes == ("low", "high")
    assert list(dict.fromkeys(manifest.subjects)) == [
        *(f"S000{i}" for i in range(1, 9)),
        "F0001",
        "F0002",
        "F0003",
    ]
    assert {
        name[0]
        for name, split in zip(manifest.subjects, manifest.cells["split"], strict=True)
        if split == "test"
    } == {"F"}
    assert all(name.startswith("simulated_") for name in manifest.samples)
    files = [*manifest.cells["image"], *manifest.cells["vectors"]]
    assert all(name.startswith("simulated_") and (manifest.root / name).is_file() for name in files)
    assert len(set(manifest.cells["image"])) == len(manifest)
    assert len(set(manifest.cells["vectors"])) == 11  # one for each subject


def test_the_outcome_of_a_survival_cohort_is_a_time_and_an_event_that_no_encoder_reads(tmp_path):
    manifest = read(tmp_path, **SURVIVAL, subjects=60)
    assert manifest.classes == ("censored", "died")
    assert not {"months", "died"} & set(manifest.schema)
    died = [text == "1" for text in manifest.cells["died"]]
    assert [outcome == "died" for outcome in manifest.outcomes] == died
    assert {True, False} == set(died)
    assert all(0 < float(text) <= 40 for text in manifest.cells["months"])
    censored = [float(text) for text, event in zip(manifest.cells["months"], died, strict=True) if not event]
    assert min(censored) >= 10  # nobody is lost before the least follow-up


def test_more_subjects_and_more_samples_change_none_that_are_there(tmp_path):
    def told(manifest):
        cells = manifest.cells.rows()
        found = zip(manifest.samples, manifest.outcomes, cells, strict=True)
        return {sample: (outcome, row[2:]) for sample, outcome, row in found}

    def contents(manifest):
        return {
            n: (manifest.root / n).read_bytes()
            for n in [*manifest.cells["image"], *manifest.cells["vectors"]]
        }

    few = read(tmp_path / "a", samples_per_subject=1)
    many = read(tmp_path / "b", samples_per_subject=2, subjects=12, fresh_subjects=5)
    assert told(few).items() <= told(many).items()
    assert contents(few).items() <= contents(many).items()
    assert not contents(few).items() & contents(read(tmp_path / "c", seed=1)).items()


def test_other_latents_are_other_files_and_other_weights_are_the_same(tmp_path):
    first = read(tmp_path)
    assert read(tmp_path, weights={"lesion": 3, "risk": 0}).root == first.root
    assert read(tmp_path, weights={"risk": 1.0, "lesion": 1.5}).root != first.root


# what is true


@pytest.mark.parametrize(
    "classes", [{"a": 0.5, "b": 0.5}, {"a": 0.9, "b": 0.1}, {"a": 0.4, "b": 0.3, "c": 0.2, "d": 0.1}]
)
def test_classes_have_their_shares(classes):
    outcomes = [subject.truth.outcome for subject in subjects_of(classes=classes)]
    for name, share in classes.items():
        # 4000 subjects: four standard errors
        assert outcomes.count(name) / 4000 == pytest.approx(
            share, abs=4 * math.sqrt(share * (1 - share) / 4000)
        )


def test_a_logistic_regression_on_the_latents_finds_the_weights():
    subjects = subjects_of()
    x = np.column_stack([latents_of(subjects, name) for name in ("lesion", "risk")])
    y = [subject.truth.outcome == "high" for subject in subjects]
    found = LogisticRegression(C=np.inf).fit(x, y).coef_[0]
    assert found == pytest.approx([1.5, 1.0], abs=0.2)


def test_without_censoring_the_log_of_time_is_linear_in_the_latents():
    """Of a Weibull log T = log(scale) - eta / shape + Gumbel noise: least squares finds the slopes."""
    survival = {"median": 20, "shape": 2, "follow_up": [1e6, 2e6]}
    subjects = subjects_of(classes=None, survival=survival)
    assert {subject.truth.outcome for subject in subjects} == {"died"}
    times = np.array([float(subject.truth.cells["months"]) for subject in subjects])
    x = np.column_stack([np.ones(4000), *(latents_of(subjects, name) for name in ("lesion", "risk"))])
    found = np.linalg.lstsq(x, np.log(times), rcond=None)[0]
    assert found[1:] == pytest.approx([-0.75, -0.5], abs=0.05)
    # the Gumbel's mean is -0.5772 / shape from the log of the scale
    scale = math.log(20) - math.log(math.log(2)) / 2
    assert found[0] == pytest.approx(scale - 0.5772 / 2, abs=0.05)


def test_a_field_shows_its_latent_and_no_other():
    subjects = subjects_of()
    age = field_of(subjects, "age").astype(float)
    assert age.mean() == pytest.approx(50, abs=0.7)
    assert age.std() == pytest.approx(10, abs=0.5)
    # signal over noise 1: half of the variance
    assert np.corrcoef(age, latents_of(subjects, "risk"))[0, 1] == pytest.approx(math.sqrt(0.5), abs=0.03)
    assert abs(np.corrcoef(age, latents_of(subjects, "lesion"))[0, 1]) < 0.06
    stage = np.searchsorted(["I", "II", "III"], field_of(subjects, "stage").astype(str))
    assert np.corrcoef(stage, latents_of(subjects, "risk"))[0, 1] > 0.5
    site = field_of(subjects, "site") == "left"
    assert abs(np.corrcoef(site, latents_of(subjects, "risk"))[0, 1]) < 0.06


def test_cells_are_blank_at_random_or_by_their_value():
    field = {"kind": "numeric", "mean": 0, "deviation": 1, "decimals": 3}

    def blanked(**changes):
        whole, gone = (field_of(subjects_of(record={"x": {**field, **some}}), "x") for some in ({}, changes))
        return whole.astype(float), np.array([text is None for text in gone])

    values, gone = blanked(missing=0.3)
    assert gone.mean() == pytest.approx(0.3, abs=0.03)
    assert values[gone].mean() == pytest.approx(0, abs=0.1)
    values, gone = blanked(missing=0.3, missing_slope=1.0)
    # probit: P(blank) over a standard normal value is Phi(Phi^-1(.3) / sqrt(2))
    assert gone.mean() == pytest.approx(0.355, abs=0.03)
    assert values[gone].mean() > 0.4 > 0 > values[~gone].mean()


def test_some_numbers_of_a_vector_follow_the_latent(tmp_path):
    manifest = read(tmp_path, subjects=400, fresh_subjects=0, samples_per_subject=1, image=None)
    vectors = np.stack(
        [np.load(manifest.root / name, allow_pickle=False) for name in manifest.cells["vectors"]]
    )
    assert (vectors.shape, vectors.dtype) == ((400, 12), np.float32)
    latent = latents_of(draw_subjects(design_of(options(subjects=400, fresh_subjects=0))), "risk")
    found = np.array([np.corrcoef(column, latent)[0, 1] for column in vectors.T])
    loadings = ProfileStyle(0, 12, 4, 0.5).loadings()
    assert sorted(loadings.tolist()) == [-0.5, -0.5, *[0.0] * 8, 0.5, 0.5]
    # a slope of .5: a correlation of .5 / sqrt(1 + .25)
    assert found == pytest.approx(np.sign(loadings) * 0.447, abs=0.17)


def test_an_image_shows_its_latent():
    """Least squares on six numbers, learned on some subjects, read off others."""
    chosen = options(subjects=150, fresh_subjects=0, samples_per_subject=1)
    subjects = draw_subjects(design_of(chosen))
    style = LesionStyle(48, 48)
    pixels = [np.asarray(style.draw(subject.files["image"][0]), dtype=float) / 255 for subject in subjects]
    features = [np.concatenate([each.mean(axis=(0, 1)), each.std(axis=(0, 1))]) for each in pixels]
    x = np.column_stack([np.ones(150), features])
    shown = np.tanh(latents_of(subjects, "lesion") / 1.5)
    weights = np.linalg.lstsq(x[:100], shown[:100], rcond=None)[0]
    assert np.corrcoef(x[100:] @ weights, shown[100:])[0, 1] > 0.6


# what can be reached


def test_the_ceiling_of_two_classes_is_the_auc_of_the_true_predictor_on_the_fresh():
    chosen = options(fresh_subjects=300)
    fresh = [subject for subject in draw_subjects(design_of(chosen)) if subject.name[0] == "F"]
    lesion, risk = latents_of(fresh, "lesion"), latents_of(fresh, "risk")
    y = [subject.truth.outcome == "high" for subject in fresh]
    assert latent_ceilings(chosen) == pytest.approx(
        {
            "all": roc_auc_score(y, 1.5 * lesion + risk),
            "image": roc_auc_score(y, lesion),
            "vectors": roc_auc_score(y, risk),
            "record": roc_auc_score(y, risk),
        }
    )


def test_the_ceiling_of_survival_is_harrells_concordance():
    chosen = options(**SURVIVAL, fresh_subjects=80)
    fresh = [subject for subject in draw_subjects(design_of(chosen)) if subject.name[0] == "F"]
    right = total = 0.0
    for one, other in combinations(fresh, 2):
        first, second = sorted((one, other), key=lambda each: float(each.truth.cells["months"]))
        if first.truth.cells["died"] != "1" or first.truth.cells["months"] == second.truth.cells["months"]:
            continue
        eta = [1.5 * each.truth.latents["lesion"] + each.truth.latents["risk"] for each in (first, second)]
        total += 1
        right += eta[0] > eta[1]
    assert latent_ceilings(chosen)["all"] == pytest.approx(right / total)
    assert 0.75 < right / total < 0.95


RECIPES = Path(__file__).parents[2] / "recipes"


def run_recipe(name, folder, *overrides):
    registry = Registry.discover()
    loaded = load_recipe(RECIPES / f"{name}.yaml", registry, overrides)
    places = Places(folder / "data", folder / "store", folder / "runs")
    return loaded, run(loaded, registry, places, lambda event, data: None).report


def test_the_survival_recipe_runs_and_says_that_it_is_simulated(tmp_path):
    small = ["source.subjects=40", "source.fresh_subjects=30", "source.vectors.width=30"]
    small += ["modalities.genes.encoder.width=30", "stages.raise_record.epochs=2", "stages.fuse.epochs=2"]
    _, report = run_recipe("survival_omics", tmp_path, *small)
    assert report["simulated"] is True
    assert set(report["models"]) == {"fused", "genes", "record"}
    for model in report["models"].values():
        estimate = model["subject"]["concordance"]
        assert estimate["low"] < estimate["value"] < estimate["high"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("name", "metric", "shown"),
    [
        ("cervical_dysplasia", "roc_auc", {"image": "image", "record": "record"}),
        ("survival_omics", "concordance", {"genes": "vectors", "record": "record"}),
    ],
)
def test_a_recipe_comes_near_its_ceilings_and_fusion_adds_to_each_modality(tmp_path, name, metric, shown):
    loaded, report = run_recipe(name, tmp_path)
    best = latent_ceilings(loaded.source.options)
    reached = {model: each["subject"][metric]["value"] for model, each in report["models"].items()}
    print("ceilings", best, "reached", reached)
    for model, seen in {"fused": "all", **shown}.items():
        # the half of what is above chance, and no more than the ceiling
        assert 0.5 + 0.5 * (best[seen] - 0.5) < reached[model] < best[seen]
    gains = {gain["b"]: gain for gain in report["differences"] if gain["metric"] == metric}
    assert all(gains[model]["low"] > 0 for model in shown), gains


# what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"survival": {}}, "the outcome is either `classes` or `survival`"),
        ({"classes": None}, "the outcome is either `classes` or `survival`"),
        (
            {"classes": {"a": 0.5, "b": 0.4}},
            "`classes` are at least two, with shares above 0 that add up to 1",
        ),
        (
            {"samples_per_subject": [3, 1]},
            "`samples_per_subject` is a count from 1 to 99, or [least, most] of such",
        ),
        (
            {"image": {"shows": "tumour"}},
            "`image` shows tumour, and the latents of `weights` are: lesion, risk",
        ),
        (
            {"image": None, "vectors": None, "record": {}},
            "nothing shows anything: add `record`, `image` or `vectors`",
        ),
        (
            {"record": {"split": {"kind": "numeric"}}},
            "`record` has a field split, which is another column's name",
        ),
        (
            {"record": {"x": {"kind": "binary", "values": ["no", "yes"], "shares": [0.5, 0.6]}}},
            "`shares` are above 0 and add up to 1",
        ),
        (
            {"record": {"x": {"kind": "binary", "values": ["no", "no"], "shares": [0.5, 0.5]}}},
            "`values` are different, and none is empty: an empty cell is a missing one",
        ),
        (
            {"record": {"x": {"kind": "ordinal", "values": ["", "a"], "shares": [0.5, 0.5]}}},
            "`values` are different, and none is empty: an empty cell is a missing one",
        ),
        (
            {"record": {"x": {"kind": "binary", "values": ["a", "b", "c"], "shares": [0.5, 0.25, 0.25]}}},
            "a binary field has two `values`",
        ),
        ({"record": {"x": {"kind": "ordinal"}}}, "`values` and `shares` are as many, and at least two"),
        (
            {"record": {"x": {"kind": "category", "values": ["a", "b"], "shares": [0.5, 0.5]}}},
            "a category has one `slope` per value, and other fields have one",
        ),
        (
            {"record": {"x": {"kind": "numeric", "values": ["a"]}}},
            "a numeric field takes no `values` or `shares`, and one `slope`",
        ),
        ({"vectors": {"shows": "risk", "width": 3, "signal": 4}}, "`signal` is at most `width`"),
        (
            {"classes": None, "survival": {"follow_up": [9, 3]}},
            "`follow_up` is [least, greatest], above 0",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(changes, message):
    with pytest.raises(ValidationError) as caught:
        options(**changes)
    assert message in str(caught.value)
