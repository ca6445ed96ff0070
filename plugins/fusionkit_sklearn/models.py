"""The classifiers: fitted by scikit-learn and LightGBM, kept as arrays, answering from arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusionkit import FusionkitWarning, IntegrityError, ResourceError
from fusionkit_sklearn import SklearnConfig

FloatArray = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
N_FOLDS = 5
"""Folds for Platt's sigmoid (Platt 1999: three; scikit-learn: five)."""
MAX_ITERATIONS = 10_000


@dataclass(frozen=True)
class Model:
    """One classifier: `fit(config, rows, codes, n_classes, seed)` gives arrays, from which it answers."""

    fit: Callable[[SklearnConfig, FloatArray, NDArray[np.int64], int, int], dict[str, NDArray[Any]]]
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


def _fit_logistic(
    config: SklearnConfig, rows: FloatArray, codes: NDArray[np.int64], n_classes: int, seed: int
) -> dict[str, NDArray[Any]]:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=config.C, class_weight=_class_weight(config), max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # it is said below, in one sentence
        model.fit(rows, codes)
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


def _fit_svm(
    config: SklearnConfig, rows: FloatArray, codes: NDArray[np.int64], n_classes: int, seed: int
) -> dict[str, NDArray[Any]]:
    """Fits one machine for two classes, else one for each class against the others, with Platt's sigmoid."""
    from sklearn.calibration import CalibratedClassifierCV
    from sklearn.model_selection import StratifiedKFold
    from sklearn.svm import SVC

    variance = float(rows.var())
    scale = 1 / (rows.shape[1] * variance) if variance > 0 else 1.0  # what scikit-learn makes of "scale"
    gamma = scale if config.gamma == "scale" else float(config.gamma)
    arrays: dict[str, NDArray[Any]] = {"gamma": np.array([gamma if config.kernel == "rbf" else -1.0])}
    for number in range(1 if n_classes == 2 else n_classes):
        is_class = codes == (1 if n_classes == 2 else number)
        fewest = min(int(is_class.sum()), int((~is_class).sum()))
        machine = SVC(
            C=config.C, kernel=config.kernel, gamma=config.gamma, class_weight=_class_weight(config)
        )
        folds = StratifiedKFold(min(N_FOLDS, fewest), shuffle=True, random_state=seed)
        # ensemble=False: the machine is fitted on all rows, its sigmoid on values from outside the folds
        fitted = CalibratedClassifierCV(machine, method="sigmoid", cv=folds, ensemble=False)
        fitted.fit(rows, is_class)
        (calibrated,) = fitted.calibrated_classifiers_
        (sigmoid,) = calibrated.calibrators
        machine = calibrated.estimator
        arrays |= {
            f"vectors.{number}": machine.support_vectors_,
            f"dual.{number}": machine.dual_coef_[0],
            f"intercept.{number}": machine.intercept_,
            f"sigmoid.{number}": np.array([sigmoid.a_, sigmoid.b_]),
        }
    return arrays


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


# forest


def _fit_forest(
    config: SklearnConfig, rows: FloatArray, codes: NDArray[np.int64], n_classes: int, seed: int
) -> dict[str, NDArray[Any]]:
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(
        config.n_trees,
        max_depth=config.max_depth,
        min_samples_leaf=config.min_leaf,
        class_weight=_class_weight(config),
        random_state=seed,
        n_jobs=torch.get_num_threads(),  # results do not depend on it
    )
    trees = [estimator.tree_ for estimator in forest.fit(rows, codes).estimators_]
    starts = np.cumsum([0, *(tree.node_count for tree in trees[:-1])])
    offsets = np.repeat(starts, [tree.node_count for tree in trees])
    left, right = (
        np.concatenate([getattr(tree, f"children_{side}") for tree in trees]) for side in ("left", "right")
    )
    is_leaf, itself = left < 0, np.arange(len(left))
    values = np.concatenate([tree.value[:, 0, :] for tree in trees])
    return {
        "starts": starts.astype(np.int64),
        # a leaf leads to itself, so that all trees are walked in step
        "left": np.where(is_leaf, itself, left + offsets),
        "right": np.where(is_leaf, itself, right + offsets),
        "feature": np.where(is_leaf, 0, np.concatenate([tree.feature for tree in trees])),
        "threshold": np.concatenate([tree.threshold for tree in trees]),
        "values": values / values.sum(1, keepdims=True),
        "depth": np.array([max(tree.max_depth for tree in trees)]),
    }


def _forest_probabilities(arrays: Arrays, rows: FloatArray, n_classes: int) -> FloatArray:
    narrow = rows.astype(np.float32)  # as scikit-learn compares them
    nodes = np.broadcast_to(arrays["starts"], (len(rows), len(arrays["starts"])))
    samples = np.arange(len(rows))[:, None]
    for _ in range(int(arrays["depth"][0])):
        goes_left = narrow[samples, arrays["feature"][nodes]] <= arrays["threshold"][nodes]
        nodes = np.where(goes_left, arrays["left"][nodes], arrays["right"][nodes])
    found: FloatArray = arrays["values"][nodes].mean(1)
    return found


# boosted trees


def _lightgbm() -> Any:
    try:
        import lightgbm
    except OSError as error:  # its wheel needs the system's OpenMP library
        raise ResourceError(
            f"head: LightGBM cannot be loaded ({error}). Install OpenMP (libgomp1), or use another model."
        ) from error
    return lightgbm


def _fit_boosted(
    config: SklearnConfig, rows: FloatArray, codes: NDArray[np.int64], n_classes: int, seed: int
) -> dict[str, NDArray[Any]]:
    lightgbm = _lightgbm()
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
        "seed": seed,
        "deterministic": True,
        "force_row_wise": True,  # LightGBM would else choose by time
        "num_threads": 1,  # else its threads wait for one another: see DECISIONS.md, 61
        "verbosity": -1,
    }
    data = lightgbm.Dataset(rows, codes, weight=weights, params={"verbosity": -1})
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
    "random_forest": Model(_fit_forest, _forest_probabilities),
    "boosted_trees": Model(_fit_boosted, _boosted_probabilities),
}
