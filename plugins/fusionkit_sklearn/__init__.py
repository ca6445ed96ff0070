"""Classical classifiers as a head: logistic regression, support vector machine, forest, boosted trees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from fusionkit import ComponentConfig, HeadSpec, hookimpl

if TYPE_CHECKING:
    from fusionkit import Head

OWN = {
    "logistic_regression": ("C",),
    "svm": ("C", "kernel", "gamma"),
    "random_forest": ("n_trees", "max_depth", "min_leaf"),
    "forest_dissimilarity": ("n_trees", "max_depth", "min_leaf"),
    "boosted_trees": ("n_trees", "max_depth", "min_leaf", "n_leaves", "learning_rate"),
}
"""Each model's own options."""


def shared_by(model: str) -> tuple[str, ...]:
    """Returns the common options that a model has; a PCA would mix what dissimilarities keep apart."""
    return ("balanced",) if model == "forest_dissimilarity" else ("pca", "balanced")


class SklearnConfig(ComponentConfig):
    """Options of sklearn; the numbers that are not scikit-learn's or LightGBM's defaults are ours."""

    model: Literal["logistic_regression", "svm", "random_forest", "forest_dissimilarity", "boosted_trees"] = (
        "logistic_regression"
    )
    """The classifier; boosted_trees are LightGBM's, the others scikit-learn's. forest_dissimilarity: a forest
    of each modality, the mean of their dissimilarities to all training rows, a forest on those."""
    pca: int | None = Field(None, ge=1, le=100_000)
    """At most this many principal components of the joined features, learned first; null for no PCA
    (all but forest_dissimilarity)."""
    balanced: bool = False
    """Whether every class weighs the same."""
    C: float = Field(1.0, gt=0, le=1e12)
    """Inverse strength of the penalty (logistic_regression, svm)."""
    kernel: Literal["rbf", "linear"] = "rbf"
    """The kernel (svm)."""
    gamma: Literal["scale"] | Annotated[float, Field(gt=0, le=1e12)] = "scale"
    """Of the rbf kernel; scale: 1 / (width x variance) of the training rows (svm)."""
    n_trees: int = Field(300, ge=1, le=100_000)
    """How many trees, or rounds of boosting (forests, boosted_trees)."""
    max_depth: int | None = Field(None, ge=1, le=1000)
    """Largest depth of a tree; null for no limit (forests, boosted_trees)."""
    min_leaf: int = Field(5, ge=1, le=1_000_000)
    """Fewest training rows in a leaf (forests, boosted_trees)."""
    n_leaves: int = Field(31, ge=2, le=100_000)
    """Most leaves of a tree (boosted_trees)."""
    learning_rate: float = Field(0.05, gt=0, le=1)
    """What each round adds (boosted_trees)."""

    @model_validator(mode="after")
    def _check_own(self) -> SklearnConfig:
        shared = shared_by(self.model)
        known = ("model", *shared, *OWN[self.model])
        foreign = [name for name in type(self).model_fields if name in self.model_fields_set - set(known)]
        if foreign:
            raise ValueError(
                f"{' and '.join(foreign)}: no option of {self.model}, whose options are "
                f"{', '.join(OWN[self.model])}, besides {' and '.join(shared)}"
            )
        return self

    @model_serializer(mode="wrap")
    def _leave_out_foreign(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # what a model does not read must not be in its address, nor in resolved.yaml, which is read again
        known = ("model", *shared_by(self.model), *OWN[self.model])
        return {name: value for name, value in handler(self).items() if name in known}


def _build(config: SklearnConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_sklearn.head import SklearnHead

    return SklearnHead(config, input_dims, output_dim)


SKLEARN = HeadSpec(
    name="sklearn",
    summary="Joins all features, then a classical classifier: logistic regression, SVM, trees.",
    source="scikit-learn (Pedregosa et al. 2011), LightGBM (Ke et al. 2017), Platt 1999, Cao et al. 2018",
    config=SklearnConfig,
    build=_build,
    learns="closed_form",
    takes_samples=lambda config: config.model == "svm",  # for the folds of Platt's sigmoid
    examples=(
        SklearnConfig(),
        SklearnConfig(model="svm", pca=3),
        SklearnConfig(model="random_forest", n_trees=5),
        SklearnConfig(model="forest_dissimilarity", n_trees=5),
        SklearnConfig(model="boosted_trees", n_trees=5, min_leaf=2),
    ),
)


@hookimpl
def fusionkit_components() -> Sequence[HeadSpec]:
    """Returns the card of the head."""
    return [SKLEARN]
