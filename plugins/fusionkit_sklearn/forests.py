"""Forests as arrays: one on the joined features, or one of each modality and one on their dissimilarities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fusionkit import ResourceError
from fusionkit_sklearn import SklearnConfig

FloatArray = NDArray[np.float64]
Arrays = Mapping[str, NDArray[Any]]
MOST_ROWS = 10_000
"""Training rows of forest_dissimilarity: the dissimilarities of so many are 400 MB."""
PAIRS_AT_ONCE = 4_000_000
"""Pairs of rows whose leaves are compared in one go."""


def fit_forest(
    config: SklearnConfig, rows: FloatArray | NDArray[np.float32], codes: NDArray[np.int64], seed: int
) -> dict[str, NDArray[Any]]:
    """Returns a forest on rows (n, d) as arrays."""
    from sklearn.ensemble import RandomForestClassifier

    forest = RandomForestClassifier(
        config.n_trees,
        max_depth=config.max_depth,
        min_samples_leaf=config.min_leaf,
        class_weight="balanced" if config.balanced else None,
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


def find_leaves(arrays: Arrays, rows: FloatArray | NDArray[np.float32]) -> NDArray[np.int64]:
    """Returns in which leaf of each tree rows (n, d) end, (n, trees); no two trees share a number."""
    narrow = rows.astype(np.float32)  # as scikit-learn compares them
    nodes = np.broadcast_to(arrays["starts"], (len(rows), len(arrays["starts"])))
    samples = np.arange(len(rows))[:, None]
    for _ in range(int(arrays["depth"][0])):
        goes_left = narrow[samples, arrays["feature"][nodes]] <= arrays["threshold"][nodes]
        nodes = np.where(goes_left, arrays["left"][nodes], arrays["right"][nodes])
    return nodes


def forest_probabilities(arrays: Arrays, rows: FloatArray | NDArray[np.float32]) -> FloatArray:
    """Returns the mean over trees of the classes' shares in the leaf, (n, k)."""
    found: FloatArray = arrays["values"][find_leaves(arrays, rows)].mean(1)
    return found


# a forest of each modality, and one on their dissimilarities


def fit_dissimilarity(
    config: SklearnConfig, rows: FloatArray, widths: Sequence[int], codes: NDArray[np.int64], seed: int
) -> dict[str, NDArray[Any]]:
    """Returns a forest of each modality, the leaves of its training rows, and the forest that decides.

    Source:
        Cao et al. 2018 (arXiv:1803.11241).

    Raises:
        ResourceError: The dissimilarities of all rows would not fit into memory.
    """
    if len(rows) > MOST_ROWS:
        raise ResourceError(
            f"head: forest_dissimilarity compares every two of at most {MOST_ROWS} training rows (there are "
            f"{len(rows)}). Use fewer views or draws, or random_forest."
        )
    arrays: dict[str, NDArray[Any]] = {"widths": np.array(widths)}
    for number, columns in enumerate(_columns(widths)):
        forest = fit_forest(config, rows[:, columns], codes, seed + number)
        forest["leaves"] = np.concatenate(
            [
                find_leaves(forest, rows[some, columns]).astype(np.int32)
                for some in _chunks(len(rows), len(forest["starts"]))
            ]
        )
        arrays |= {f"forest{number}.{name}": values for name, values in forest.items()}
    decides = fit_forest(config, dissimilarities(arrays, rows), codes, seed + len(widths))
    return arrays | {f"decides.{name}": values for name, values in decides.items()}


def dissimilarities(arrays: Arrays, rows: FloatArray) -> NDArray[np.float32]:
    """Returns 1 - the share of trees in which rows (n, d) end in a training row's leaf, (n, training rows).

    It is the mean over modalities of their forests' shares.
    """
    columns = _columns(arrays["widths"])
    forests = [_part(arrays, f"forest{number}.") for number in range(len(columns))]
    n_known, n_trees = forests[0]["leaves"].shape
    found = np.empty((len(rows), n_known), dtype=np.float32)
    for some in _chunks(len(rows), n_known):
        n_shared = np.zeros((len(found[some]), n_known), dtype=np.int32)
        for forest, own in zip(forests, columns, strict=True):
            leaves = find_leaves(forest, rows[some, own]).astype(np.int32)
            for tree in range(n_trees):
                n_shared += leaves[:, tree, None] == forest["leaves"][:, tree]
        # every forest has as many trees, so that the mean of the shares is the share of them all
        found[some] = 1 - n_shared / (n_trees * len(forests))
    return found


def dissimilarity_probabilities(arrays: Arrays, rows: FloatArray) -> FloatArray:
    """Returns what the forest on the dissimilarities says, (n, k)."""
    n_known = len(arrays["forest0.leaves"])
    decides = _part(arrays, "decides.")
    parts = [
        forest_probabilities(decides, dissimilarities(arrays, rows[some]))
        for some in _chunks(len(rows), n_known)
    ]
    return np.concatenate(parts)


def _columns(widths: Sequence[int] | NDArray[np.int64]) -> list[slice]:
    bounds = accumulate((int(width) for width in widths), initial=0)
    return [slice(start, stop) for start, stop in pairwise(bounds)]


def _chunks(n_rows: int, n_each: int) -> list[slice]:
    """Returns slices of so many rows that no more than PAIRS_AT_ONCE are compared."""
    size = max(1, PAIRS_AT_ONCE // n_each)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def _part(arrays: Arrays, prefix: str) -> dict[str, NDArray[Any]]:
    return {name[len(prefix) :]: values for name, values in arrays.items() if name.startswith(prefix)}
