"""The classifiers: fitted by scikit-learn and LightGBM, kept as arrays, answering from arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit import DataError, FusionkitWarning, IntegrityError, ResourceError
from fusionkit_sklearn import SklearnConfig
from fusionkit_sklearn.forests import (
    Arrays,
    FloatArray,
    dissimilarity_probabilities,
    fit_dissimilarity,
    fit_forest,
    forest_probabilities,
)

N_FOLDS = 5
"""Folds for Platt's sigmoid (Platt 1999: three; scikit-learn: five)."""
MAX_ITERATIONS = 10_000


@dataclass(frozen=True)
class Training:
    """What a classifier learns from.

    Args:
        rows: (n, d) the joined features.
        codes: (n,) class codes.
        n_classes: How many classes there are.
        seed: Less than 2**31.
        widths: How many columns each modality had before a PCA, in order.
        samples: (n,) equal where two rows are views or draws of one sample; None where each is its own.
    """

    rows: FloatArray
    codes: NDArray[np.int64]
    n_classes: int
    seed: int
    widths: tuple[int, ...]
    samples: NDArray[np.int64] | None = None


@dataclass(frozen=True)
class Model:
    """One classifier: `fit(config, training)` gives arrays, from which it answers."""

    fit: Callable[[SklearnConfig, Training], dict[str, NDArray[Any]]]
    probabilities: Callable[[Arrays, FloatArray, int], FloatArray]


def _class_weight(config: SklearnConfig) -> str | None:
    return "balanced" if config.balanced else None


def softmax(logits: FloatArray) -> FloatArray:
    """Returns probabilities (n, k) of logits (n, k)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    found: FloatArray = powers / powers.sum(1, keepdims=True)
    return found


def _two(positive: FloatArray) -> FloatArray:
    return np.stack([1 - positive, positive], 1)


def _expit(values: FloatArray) -> FloatArray:
    return np.exp(-np.logaddexp(0, -values))


# logistic regression


def _fit_logistic(config: SklearnConfig, training: Training) -> dict[str, NDArray[Any]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=config.C, class_weight=_class_weight(config), max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is said below, in one sentence
        model.fit(training.rows, training.codes)
    if model.n_iter_.max() >= MAX_ITERATIONS:
        warnings.warn(
            f"head: logistic_regression has not converged after {MAX_ITERATIONS} iterations. Lower C.",
            FusionkitWarning,
            stacklevel=2,
        )
    return {"coef": model.coef_, "intercept": model.intercept_}


def _logistic_probabilities(arrays: Arrays, rows: FloatArray, n_classes: int) -> FloatArray:
    logits = rows @ arrays["coef"].T + arrays["intercept"]
    return softmax(logits) if n_classes > 2 else _two(_expit(logits[:, 0]))


# support vector machine


def platt_folds(
    is_class: NDArray[np.bool_], samples: NDArray[np.int64] | None, seed: int
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Returns folds for Platt's sigmoid as (learned from, held back), no sample on both sides of one.

    Raises:
        DataError: A class has a single sample.
    """
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    groups = np.arange(len(is_class)) if samples is None else samples
    fewest = min(len(np.unique(groups[is_class])), len(np.unique(groups[~is_class])))
    has_views = len(np.unique(groups)) < len(groups)
    # samples that differ much in their rows may all be held back at once: then with fewer folds
    for n_folds in range(min(N_FOLDS, fewest), 1, -1):
        kind = StratifiedGroupKFold if has_views else StratifiedKFold
        splitter = kind(n_folds, shuffle=True, random_state=seed)
        folds = list(splitter.split(np.zeros((len(is_class), 1)), is_class, groups if has_views else None))
        if all(len(held) and len(np.unique(is_class[learned])) == 2 for learned, held in folds):
            return folds
    raise DataError(
        f"head: sklearn's svm needs two training samples of every class that can be held apart (there are "
        f"{fewest} of the rarest). Use more data or fewer folds, or another model."
    )


def _fit_svm(config: SklearnConfig, training: Training) -> dict[str, NDArray[Any]]:
    """Fits one machine for two classes, else one for each class against the others, with Platt's sigmoid."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.svm import SVC

    rows, n_classes = training.rows, training.n_classes
    variance = float(rows.var())
    scale = 1 / (rows.shape[1] * variance) if variance > 0 else 1.0  # what scikit-learn makes of "scale"
    gamma = scale if config.gamma == "scale" else float(config.gamma)
    arrays: dict[str, NDArray[Any]] = {"gamma": np.array([gamma if config.kernel == "rbf" else -1.0])}
    for number in range(1 if n_classes == 2 else n_classes):
        is_class = training.codes == (1 if n_classes == 2 else number)
        machine = SVC(C=config.C, kernel=config.kernel, gamma=config.gamma)
        folds = platt_folds(is_class, training.samples, training.seed)
        # ensemble=False: the machine is fitted on all rows, its sigmoid on values from outside the folds
        fitted = CalibratedClassifierCV(machine, method="sigmoid", cv=folds, ensemble=False)
        # weights of rows, not of classes: the sigmoid must hear of them, or it would undo what they do
        weights = None
        if config.balanced:
            weights = len(is_class) / (2 * np.bincount(is_class.astype(np.int64), minlength=2))[is_class * 1]
        fitted.fit(rows, is_class, sample_weight=weights)
        (calibrated,) = fitted.calibrated_classifiers_
        (sigmoid,) = calibrated.calibrators
        machine = calibrated.estimator
        arrays |= {
            f"vectors.{number}": machine.support_vectors_,
            f"dual.{number}": machine.dual_coef_[0],
            f"intercept.{number}": machine.intercept_,
            f"sigmoid.{number}": _rising(
                float(sigmoid.a_), float(sigmoid.b_), is_class, balanced=config.balanced
            ),
        }
    return arrays


def _rising(slope: float, offset: float, is_class: NDArray[np.bool_], *, balanced: bool) -> FloatArray:
    """Returns Platt's sigmoid; one that falls would turn the machine's answers round, and is laid flat.

    Flat is the best of Platt's likelihood, which is concave, where falling is forbidden: the mean of
    his targets.
    """
    if slope <= 0:  # the sigmoid is 1 / (1 + exp(slope x value + offset))
        return np.array([slope, offset])
    warnings.warn(
        "head: sklearn's svm answers rows that were held back no better than by chance, so that its "
        "probability is the share of the class for every row. Use more data, another C, or another model.",
        FusionkitWarning,
        stacklevel=2,
    )
    n_in, n_out = int(is_class.sum()), int((~is_class).sum())
    targets = (n_in + 1) / (n_in + 2), 1 / (n_out + 2)  # Platt's
    share = 0.5 if balanced else n_in / (n_in + n_out)
    mean = share * targets[0] + (1 - share) * targets[1]
    return np.array([0.0, np.log(1 / mean - 1)])


def _svm_probabilities(arrays: Arrays, rows: FloatArray, n_classes: int) -> FloatArray:
    gamma = float(arrays["gamma"][0])
    found = []
    for number in range(1 if n_classes == 2 else n_classes):
        vectors = arrays[f"vectors.{number}"]
        products = rows @ vectors.T
        if gamma > 0:
            squares = (rows**2).sum(1)[:, None] - 2 * products + (vectors**2).sum(1)
            products = np.exp(-gamma * np.maximum(squares, 0))
        values = products @ arrays[f"dual.{number}"] + arrays[f"intercept.{number}"]
        slope, offset = arrays[f"sigmoid.{number}"]
        found.append(_expit(-(slope * values + offset)))
    if n_classes == 2:
        return _two(found[0])
    each = np.stack(found, 1)
    total = each.sum(1, keepdims=True)
    # as scikit-learn: where all machines say no for certain, all classes are as likely
    return np.where(total > 0, each / np.where(total > 0, total, 1), 1 / n_classes)


# boosted trees


def _lightgbm() -> Any:
    try:
        import lightgbm
    except OSError as error:  # its wheel needs the system's OpenMP library
        raise ResourceError(
            f"head: LightGBM cannot be loaded ({error}). Install OpenMP (libgomp1), or use another model."
        ) from error
    return lightgbm


def _fit_boosted(config: SklearnConfig, training: Training) -> dict[str, NDArray[Any]]:
    lightgbm, n_classes, codes = _lightgbm(), training.n_classes, training.codes
    weights = None
    if config.balanced:
        weights = len(codes) / (n_classes * np.bincount(codes, minlength=n_classes))[codes]
    objective = (
        {"objective": "binary"} if n_classes == 2 else {"objective": "multiclass", "num_class": n_classes}
    )
    options = {
        **objective,
        "learning_rate": config.learning_rate,
        "num_leaves": config.n_leaves,
        "max_depth": -1 if config.max_depth is None else config.max_depth,
        "min_data_in_leaf": config.min_leaf,
        "seed": training.seed,
        "deterministic": True,
        "force_row_wise": True,  # LightGBM would else choose by time
        "num_threads": 1,  # else its threads wait for one another: see DECISIONS.md, 61
        "verbosity": -1,
    }
    data = lightgbm.Dataset(training.rows, codes, weight=weights, params={"verbosity": -1})
    text = lightgbm.train(options, data, config.n_trees).model_to_string()
    return {"text": np.frombuffer(text.encode(), dtype=np.uint8)}


@lru_cache(maxsize=4)  # the batches of a prediction ask for the same one
def _read_booster(text: bytes) -> Any:
    lightgbm = _lightgbm()
    try:
        return lightgbm.Booster(model_str=text.decode())
    except (lightgbm.basic.LightGBMError, UnicodeDecodeError) as error:
        raise IntegrityError(
            f"head: LightGBM cannot read what it wrote ({error}). Run the recipe again."
        ) from None


def _boosted_probabilities(arrays: Arrays, rows: FloatArray, n_classes: int) -> FloatArray:
    found = np.asarray(_read_booster(arrays["text"].tobytes()).predict(rows, num_threads=1), dtype=np.float64)
    return _two(found) if n_classes == 2 else found


MODELS = {
    "logistic_regression": Model(_fit_logistic, _logistic_probabilities),
    "svm": Model(_fit_svm, _svm_probabilities),
    "random_forest": Model(
        lambda config, given: fit_forest(config, given.rows, given.codes, given.seed),
        lambda arrays, rows, n_classes: forest_probabilities(arrays, rows),
    ),
    "forest_dissimilarity": Model(
        lambda config, given: fit_dissimilarity(config, given.rows, given.widths, given.codes, given.seed),
        lambda arrays, rows, n_classes: dissimilarity_probabilities(arrays, rows),
    ),
    "boosted_trees": Model(_fit_boosted, _boosted_probabilities),
}
