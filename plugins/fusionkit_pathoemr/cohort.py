"""The simulated cohort's generative model, and its exact Bayes posteriors; no patient data.

    y       ~ Bernoulli(103 / 185)                    the diagnosis, malignant or benign
    c       ~ CLARITY, independent of y               which modalities tell: both, image, record, neither
    s | y,c ~ Normal(+-IMAGE_SHIFT or 0, 1)           the image's latent, shown by all the patient's images
    r | y,c ~ Normal(+-RECORD_SHIFT or 0, 1)          the record's latent, independent of s given y and c
    f_j | r                                           29 fields, independent given r

A shift is + for malignant, - for benign, and 0 where c says that the modality does not tell. A graded field
is a_j * r + Normal(0, 1) cut at thresholds; an unordered one is multinomial logistic in r. So fields are
correlated through r, which is what a denoising autoencoder can use. The likelihood of a record is an integral
over r, here a sum over a grid: posteriors need no sampling.

Signs of the slopes follow the paper where it states a direction; the others, and every size, are ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from fusionkit_pathoemr.fields import Array, Codes, FieldModel
from fusionkit_pathoemr.schema import FIELDS

MALIGNANT_SHARE = 103 / 185
CLARITY: Mapping[str, float] = {"both": 0.40, "image": 0.275, "record": 0.20, "neither": 0.125}
IMAGE_SHIFT = 3.0
RECORD_SHIFT = 2.5
GRID = np.linspace(-9.0, 9.0, 181)
"""Values of r that the integral sums over: half a step in the narrowest likelihood, far into every tail."""


FIELD_MODELS: Mapping[str, FieldModel] = {
    "age": FieldModel((0.04, 0.44, 0.52), 0.5),
    "gender": FieldModel((0.01, 0.99), 0.0),
    "disease_course_type": FieldModel((0.25, 0.35, 0.15, 0.25), (0.0, -0.4, 0.4, 0.1)),
    "personal_tumor_history": FieldModel((0.96, 0.04), 0.2),
    "family_tumor_history": FieldModel((0.93, 0.07), 0.2),
    "prophase_treatment": FieldModel((0.88, 0.12), 0.1),
    "neoadjuvant_chemotherapy": FieldModel((0.98, 0.02), 0.5),
    "pectoral_muscle_adhesion": FieldModel((0.98, 0.02), 0.5),
    "dimple_sign": FieldModel((0.96, 0.04), 0.5),
    "orange_peel_appearance": FieldModel((0.98, 0.02), 0.5),
    "redness_swelling_of_skin": FieldModel((0.96, 0.04), 0.3),
    "skin_ulcers": FieldModel((0.99, 0.01), 0.4),
    "skin_adhesion": FieldModel((0.96, 0.04), 0.5),
    "tumor": FieldModel((0.06, 0.94), 0.2),
    "breast_deformation": FieldModel((0.95, 0.05), 0.4),
    "nipple_discharge": FieldModel((0.90, 0.10), -0.1),
    "smooth_surface": FieldModel((0.50, 0.50), -0.6),
    "nipple_change": FieldModel((0.94, 0.02, 0.04), (0.0, 0.6, 0.6)),
    "axillary_lymphadenectasis": FieldModel((0.82, 0.13, 0.04, 0.01), 0.5),
    "swelling_of_lymph_nodes": FieldModel((0.98, 0.02), 0.5),
    "tumor_position": FieldModel((0.25, 0.35, 0.12, 0.18, 0.10), (0.1, 0.0, 0.0, -0.1, 0.1)),
    "tumor_number": FieldModel((0.75, 0.17, 0.08), -0.4),
    "tumor_size": FieldModel((0.40, 0.52, 0.08), 0.4),
    "tumor_texture": FieldModel((0.12, 0.30, 0.16, 0.26, 0.16), (-0.6, 0.6, 0.3, -0.2, -0.2)),
    "tumor_border": FieldModel((0.50, 0.40, 0.10), 0.6),
    "tumor_morphology": FieldModel((0.45, 0.33, 0.22), 0.5),
    "activity": FieldModel((0.50, 0.36, 0.14), 0.5),
    "capsules": FieldModel((0.60, 0.20, 0.20), -0.5),
    "tenderness": FieldModel((0.74, 0.16, 0.10), (0.0, 0.1, -0.4)),
}


@dataclass(frozen=True)
class Latents:
    """What is drawn for n patients. Shape: every array (n,), `codes` (n, 29)."""

    malignant: NDArray[np.bool_]
    clarity: NDArray[np.int64]
    image: Array
    record: Array
    codes: Codes


def draw_latents(malignant: NDArray[np.bool_], generator: np.random.Generator) -> tuple[Codes, Array, Array]:
    """Draws clarity and both latents, image and record, of patients with known diagnoses; (n,) each."""
    n = len(malignant)
    clarity = generator.choice(len(CLARITY), size=n, p=list(CLARITY.values()))
    tells_image, tells_record = _tells()
    sign = np.where(malignant, 1.0, -1.0)
    image = sign * IMAGE_SHIFT * tells_image[clarity] + generator.standard_normal(n)
    record = sign * RECORD_SHIFT * tells_record[clarity] + generator.standard_normal(n)
    return clarity, image, record


def draw(malignant: NDArray[np.bool_], generator: np.random.Generator) -> Latents:
    """Draws clarity, latents and fields of patients with known diagnoses."""
    clarity, image, record = draw_latents(malignant, generator)
    codes = np.empty((len(malignant), len(FIELDS)), dtype=np.int64)
    for j, name in enumerate(FIELDS):
        codes[:, j] = FIELD_MODELS[name].draw(record, generator)
    return Latents(malignant, clarity, image, record, codes)


def posterior(codes: Codes | None = None, image_latent: Array | None = None) -> Array:
    """Returns P(malignant | what is given) exactly: record alone, image alone, or both.

    Shape: codes (n, 29), image_latent (n,) -> (n,).

    Args:
        codes: The fields' codes; -1 where missing.
        image_latent: The image's latent, as if it could be read off the image without error.
    """
    if codes is None and image_latent is None:
        raise ValueError("posterior needs codes, image_latent or both")
    n = len(codes) if codes is not None else len(image_latent) if image_latent is not None else 0
    record = np.ones((2, 2, n)) if codes is None else _record_likelihood(codes)
    image = np.ones((2, 2, n)) if image_latent is None else _image_likelihood(image_latent)
    joint = np.zeros((2, n))
    tells_image, tells_record = (tells.astype(int) for tells in _tells())
    for share, i, j in zip(CLARITY.values(), tells_image, tells_record, strict=True):
        joint += share * image[:, i] * record[:, j]
    joint *= np.array([[1 - MALIGNANT_SHARE], [MALIGNANT_SHARE]])
    return np.asarray(joint[1] / joint.sum(axis=0))


def bayes_ceilings(n: int = 200_000, seed: int = 0) -> dict[str, dict[str, float]]:
    """Returns accuracy (at threshold .5) and AUC of the three Bayes rules, by simulating n patients.

    No method that sees the same modality can do better on average.
    """
    from sklearn.metrics import roc_auc_score

    generator = np.random.default_rng(seed)
    drawn = draw(generator.random(n) < MALIGNANT_SHARE, generator)
    rules = {
        "record": posterior(codes=drawn.codes),
        "image": posterior(image_latent=drawn.image),
        "both": posterior(codes=drawn.codes, image_latent=drawn.image),
    }
    return {
        name: {
            "accuracy": float(((p >= 0.5) == drawn.malignant).mean()),
            "auc": float(roc_auc_score(drawn.malignant, p)),
        }
        for name, p in rules.items()
    }


def _tells() -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    names = list(CLARITY)
    return np.array([n in ("both", "image") for n in names]), np.array(
        [n in ("both", "record") for n in names]
    )


def _image_likelihood(s: Array) -> Array:
    """Returns p(s | y, whether the image tells), up to a constant. Shape: (n,) -> (2, 2, n)."""
    mean = IMAGE_SHIFT * np.array([[0.0, -1.0], [0.0, 1.0]])
    return np.asarray(np.exp(-0.5 * (s - mean[:, :, None]) ** 2))


def _record_likelihood(codes: Codes, chunk: int = 20_000) -> Array:
    """Returns p(fields | y, whether the record tells), up to one factor per row.

    Shape: (n, 29) -> (2, 2, n).
    """
    mean = RECORD_SHIFT * np.array([[0.0, -1.0], [0.0, 1.0]])
    weights = np.exp(-0.5 * (GRID - mean[:, :, None]) ** 2)
    parts = []
    for start in range(0, len(codes), chunk):
        logs = _record_log_likelihood(codes[start : start + chunk])
        parts.append(np.exp(logs - logs.max(axis=1, keepdims=True)) @ weights.reshape(4, -1).T)
    return np.concatenate(parts).T.reshape(2, 2, -1) if parts else np.ones((2, 2, 0))


def _record_log_likelihood(codes: Codes) -> Array:
    """Returns log p(fields | r) on the grid; a missing field says nothing. Shape: (n, 29) -> (n, grid)."""
    total = np.zeros((len(codes), len(GRID)))
    for j, table in enumerate(_log_tables()):
        # row -1, the last, is the missing code's: log 1
        total += table[codes[:, j]]
    return total


@cache
def _log_tables() -> tuple[Array, ...]:
    tables = []
    for name in FIELDS:
        probabilities = FIELD_MODELS[name].probabilities(GRID)
        tables.append(np.log(np.maximum(np.vstack([probabilities, np.ones_like(GRID)]), 1e-300)))
    return tuple(tables)
