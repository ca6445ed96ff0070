"""The simulated cohort's model: fields, exact posteriors, ceilings."""

import math
from functools import cache
from itertools import pairwise

import numpy as np
import pytest

from fusionkit_pathoemr import cohort
from fusionkit_pathoemr.schema import CLASSES, COLUMNS, FIELDS

CODE_COUNTS = {
    "age": 3,
    "gender": 2,
    "disease_course_type": 4,
    "personal_tumor_history": 2,
    "family_tumor_history": 2,
    "prophase_treatment": 2,
    "neoadjuvant_chemotherapy": 2,
    "pectoral_muscle_adhesion": 2,
    "dimple_sign": 2,
    "orange_peel_appearance": 2,
    "redness_swelling_of_skin": 2,
    "skin_ulcers": 2,
    "skin_adhesion": 2,
    "tumor": 2,
    "breast_deformation": 2,
    "nipple_discharge": 2,
    "smooth_surface": 2,
    "nipple_change": 3,
    "axillary_lymphadenectasis": 4,
    "swelling_of_lymph_nodes": 2,
    "tumor_position": 5,
    "tumor_number": 3,
    "tumor_size": 3,
    "tumor_texture": 5,
    "tumor_border": 3,
    "tumor_morphology": 3,
    "activity": 3,
    "capsules": 3,
    "tenderness": 3,
}


@pytest.fixture(scope="module")
def drawn() -> cohort.Latents:
    generator = np.random.default_rng(1)
    return cohort.draw(generator.random(40_000) < cohort.MALIGNANT_SHARE, generator)


def test_the_schema_is_the_papers_29_fields_in_its_order():
    assert {name: len(spec.values) for name, spec in FIELDS.items()} == CODE_COUNTS
    assert list(COLUMNS) == ["image", *CODE_COUNTS]
    assert CLASSES == ("benign", "malignant")


def test_codes_are_texts_of_small_integers_and_blank_or_na_is_missing():
    for spec in FIELDS.values():
        assert spec.values == tuple(str(code) for code in range(len(spec.values)))
        assert spec.missing == ("", "NA")
    assert {spec.kind for spec in FIELDS.values()} == {"ordinal", "category", "binary"}
    assert FIELDS["capsules"].description == "0 no envelope; 1 incomplete; 2 enveloped"


def test_every_field_has_a_model_with_as_many_codes():
    assert list(cohort.FIELD_MODELS) == list(FIELDS)
    for name, model in cohort.FIELD_MODELS.items():
        assert len(model.shares) == CODE_COUNTS[name]
        assert sum(model.shares) == pytest.approx(1)
    assert sum(cohort.CLARITY.values()) == pytest.approx(1)


def test_ceilings_are_the_calibrated_ones():
    found = cohort.bayes_ceilings(50_000, seed=5)
    assert found["record"]["accuracy"] == pytest.approx(0.79, abs=0.01)
    assert found["image"]["accuracy"] == pytest.approx(0.84, abs=0.01)
    assert found["both"]["accuracy"] == pytest.approx(0.92, abs=0.01)
    assert found["record"]["auc"] < found["image"]["auc"] < found["both"]["auc"]


def test_a_field_is_drawn_as_its_probabilities_say():
    generator = np.random.default_rng(2)
    for model in cohort.FIELD_MODELS.values():
        for r in (-1.5, 0.0, 2.0):
            codes = model.draw(np.full(20_000, r), generator)
            shares = np.bincount(codes, minlength=len(model.shares)) / 20_000
            np.testing.assert_allclose(shares, model.probabilities(np.array([r]))[:, 0], atol=0.018)


def test_fields_go_the_way_the_paper_states(drawn):
    index = list(FIELDS).index

    def rise(name: str, code: int) -> float:
        has = drawn.codes[:, index(name)] == code
        return float(has[drawn.malignant].mean() - has[~drawn.malignant].mean())

    for name in ("dimple_sign", "skin_ulcers", "skin_adhesion", "swelling_of_lymph_nodes"):
        assert rise(name, 1) > 0, name
    assert rise("age", 0) < 0
    assert rise("nipple_change", 0) < 0
    assert rise("axillary_lymphadenectasis", 0) < 0
    assert rise("tumor_number", 0) > 0
    assert rise("tumor_texture", 1) > 0
    assert rise("tumor_border", 0) < 0
    assert rise("smooth_surface", 1) < 0
    assert rise("tumor_morphology", 0) < 0
    assert rise("capsules", 2) < 0


def test_small_tumours_move_well(drawn):
    size, activity = (drawn.codes[:, list(FIELDS).index(name)] for name in ("tumor_size", "activity"))
    assert (activity[size == 0] == 0).mean() > (activity[size == 2] == 0).mean() + 0.2


def test_clarity_is_drawn_without_regard_to_the_diagnosis(drawn):
    for k, share in enumerate(cohort.CLARITY.values()):
        for malignant in (False, True):
            found = (drawn.clarity[drawn.malignant == malignant] == k).mean()
            assert found == pytest.approx(share, abs=0.015)


def test_a_posterior_agrees_with_brute_force_in_plain_python(drawn):
    """Sums y, c and a grid of its own over r in logs, by math.erf, one patient at a time."""
    for i in range(6):
        codes, s = [int(code) for code in drawn.codes[i]], float(drawn.image[i])
        row = drawn.codes[i : i + 1]
        assert cohort.posterior(row)[0] == pytest.approx(_brute_force(codes, None), abs=1e-4)
        assert cohort.posterior(row, drawn.image[i : i + 1])[0] == pytest.approx(
            _brute_force(codes, s), abs=1e-4
        )


def test_the_images_posterior_is_the_closed_form():
    s = np.linspace(-6, 6, 25)
    clear = cohort.CLARITY["both"] + cohort.CLARITY["image"]

    def density(sign: int) -> np.ndarray:
        told = np.exp(-((s - sign * cohort.IMAGE_SHIFT) ** 2) / 2)
        return clear * told + (1 - clear) * np.exp(-(s**2) / 2)

    p = 103 * density(1) / (103 * density(1) + 82 * density(-1))
    np.testing.assert_allclose(cohort.posterior(image_latent=s), p, rtol=1e-10)


@pytest.mark.parametrize("given", ["record", "image", "both"])
def test_a_posterior_of_x_is_right_x_of_the_time(drawn, given):
    codes = None if given == "image" else drawn.codes
    p = cohort.posterior(codes, None if given == "record" else drawn.image)
    edges = np.linspace(0, 1, 11)
    for low, high in pairwise(edges):
        inside = (p >= low) & (p < high + 1e-9)
        n = inside.sum()
        if n > 100:
            assert drawn.malignant[inside].mean() == pytest.approx(
                p[inside].mean(), abs=4 * math.sqrt(0.25 / n)
            )


def test_a_missing_field_says_nothing():
    nothing = np.full((1, len(FIELDS)), -1)
    assert cohort.posterior(nothing)[0] == pytest.approx(103 / 185)
    assert cohort.posterior(nothing, np.array([2.0]))[0] == pytest.approx(
        cohort.posterior(image_latent=np.array([2.0]))[0]
    )


def test_a_posterior_needs_something():
    with pytest.raises(ValueError, match="posterior needs codes, image_latent or both"):
        cohort.posterior()


def _brute_force(codes: list[int], s: float | None) -> float:
    evidence = []
    for sign, prior in ((-1, 82 / 185), (1, 103 / 185)):
        total = 0.0
        for clarity, share in cohort.CLARITY.items():
            shift = cohort.IMAGE_SHIFT if clarity in ("both", "image") else 0
            image = 1.0 if s is None else math.exp(-((s - sign * shift) ** 2) / 2)
            shift = cohort.RECORD_SHIFT if clarity in ("both", "record") else 0
            total += share * image * _integral(codes, sign * shift)
        evidence.append(prior * total)
    return evidence[1] / sum(evidence)


def _integral(codes: list[int], mean: float) -> float:
    step, total = 0.07, 0.0
    for k in range(-115, 116):
        r = k * step
        density = math.exp(-((r - mean) ** 2) / 2)
        for model, code in zip(cohort.FIELD_MODELS.values(), codes, strict=True):
            density *= _share(model, code, r)
        total += density * step
    return total


def _share(model: cohort.FieldModel, code: int, r: float) -> float:
    if isinstance(model.slope, tuple):
        odds = [p * math.exp(w * r) for p, w in zip(model.shares, model.slope, strict=True)]
        return odds[code] / sum(odds)
    return _below(model, code + 1, r) - _below(model, code, r)


def _below(model: cohort.FieldModel, code: int, r: float) -> float:
    if code in (0, len(model.shares)):
        return float(code > 0)
    return 0.5 * (1 + math.erf((_quantile(sum(model.shares[:code])) - model.slope * r) / math.sqrt(2)))


@cache
def _quantile(share: float) -> float:
    low, high = -9.0, 9.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if 0.5 * (1 + math.erf(middle / math.sqrt(2))) < share else (low, middle)
    return low
