"""The `task` of a recipe: what is predicted, from which columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from fusionkit.recipe.node import Node

WITH_CLASSES = ("classification", "ordinal")
"""Those that predict one of the source's classes."""
OF_NUMBERS = ("regression", "survival")
"""Those that predict a number of any size; survival with horizons gives probabilities beside it."""
SHOWN: Mapping[str, tuple[str, ...]] = {
    "classification": ("roc_auc", "accuracy", "sensitivity", "specificity"),
    "ordinal": ("quadratic_kappa", "rank_error", "concordance", "accuracy"),
    "multi_label": ("roc_auc", "average_precision", "accuracy"),
    "regression": ("r2", "mae", "rmse", "spearman"),
    "survival": ("concordance",),
}
"""The metrics that tables and figures show, by kind of task; sentences are about the first. Reports
of survival show those of its horizons, too, which variants of a sweep need not share."""
UNBOUNDED = ("r2", "mae", "rmse", "spearman", "rank_error", "quadratic_kappa")
"""Metrics that may be below 0 or above 1."""
OF_OUTCOME = ("mae", "rmse")
"""Metrics in the outcome's unit, of any size."""
OF_ALL_FOLDS = ("r2",)
"""Metrics of all folds of a repeat together: resampled, those of a dozen subjects fall below the truth."""
MAX_LABELS = 1000
MAX_HORIZONS = 20


def _check_distinct(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) < len(names):
        raise ValueError("names a column twice")
    return names


class ClassificationNode(Node):
    """One of the source's classes."""

    kind: Literal["classification"] = "classification"
    """classification: one of the source's classes."""
    loss: Literal["cross_entropy", "focal"] = "cross_entropy"
    """focal: rows that are right already weigh less (Lin et al. 2017)."""
    focal_gamma: float = Field(2.0, ge=0, le=100)
    """How much less, for `loss: focal`; 0 is cross_entropy."""

    @model_validator(mode="before")
    @classmethod
    def _drop_use(cls, tree: Any) -> Any:
        # so the recipes of runs that are older than the other kinds say it
        if isinstance(tree, dict) and tree.get("use") == "classification":
            return {key: value for key, value in tree.items() if key != "use"}
        return tree


class OrdinalNode(Node):
    """One of the source's classes, which have an order."""

    kind: Literal["ordinal"]
    """ordinal: the source's classes are ranks, in their order."""


class _YesNoNode(Node):
    """What the cells of an outcome that is yes or no may say."""

    positive: tuple[str, ...] | None = Field(None, min_length=1, max_length=100)
    """Texts that mean yes; null for 1, or for the second of the `values` of a column declared binary."""
    negative: tuple[str, ...] | None = Field(None, min_length=1, max_length=100)
    """Texts that mean no; null for 0, or for the first of the `values` of a column declared binary."""

    @model_validator(mode="after")
    def _check_texts(self) -> _YesNoNode:
        if (self.positive is None) != (self.negative is None):
            raise ValueError("`positive` and `negative` are given together, or neither is")
        both = set(self.positive or ()) & set(self.negative or ())
        if both:
            raise ValueError(f"{sorted(both)} cannot mean yes and no")
        return self


class MultiLabelNode(_YesNoNode):
    """Several labels, of which any number may be true of a sample."""

    kind: Literal["multi_label"]
    """multi_label: each column is a label that is true or not; cells that are missing are left out."""
    columns: Annotated[
        tuple[str, ...], AfterValidator(_check_distinct), Field(min_length=1, max_length=MAX_LABELS)
    ]
    """The labels' columns."""


class RegressionNode(Node):
    """A number."""

    kind: Literal["regression"]
    """regression: a number, standardised on training rows while it is learned."""
    column: str
    """The number's column."""


class SurvivalNode(_YesNoNode):
    """The time to an event, which may not have been seen."""

    kind: Literal["survival"]
    """survival: Cox's proportional hazards."""
    time: str
    """Column of the time to the event, or to the end of follow-up; from 0 on."""
    event: str
    """Column that says whether the event was seen; else the time is censored."""
    horizons: tuple[Annotated[float, Field(gt=0, le=1e100)], ...] = Field((), max_length=MAX_HORIZONS)
    """Times, such as [12, 24], by which to predict the probability of the event; in the unit of `time`."""

    @model_validator(mode="after")
    def _check_columns(self) -> SurvivalNode:
        if self.time == self.event:
            raise ValueError("`time` and `event` are two columns")
        if list(self.horizons) != sorted(set(self.horizons)):
            raise ValueError("`horizons` must rise")
        return self


def horizon_text(horizon: float) -> str:
    """Returns a horizon as names of columns and metrics have it: 12, 0.5."""
    return repr(float(horizon)).removesuffix(".0")


def kind(node: Any) -> str:
    """Returns the kind of a task's node as written or as read."""
    found = node.get("kind", "classification") if isinstance(node, dict) else None
    return str(found or getattr(node, "kind", "classification"))


TaskNode = Annotated[
    Annotated[ClassificationNode, Tag("classification")]
    | Annotated[OrdinalNode, Tag("ordinal")]
    | Annotated[MultiLabelNode, Tag("multi_label")]
    | Annotated[RegressionNode, Tag("regression")]
    | Annotated[SurvivalNode, Tag("survival")],
    Discriminator(kind),
]


def outcome_columns(node: Any) -> dict[str, str]:
    """Returns the columns that hold the outcome, by the key that names them; none where it is a class."""
    if isinstance(node, MultiLabelNode):
        return {f"columns.{index}": name for index, name in enumerate(node.columns)}
    if isinstance(node, RegressionNode):
        return {"column": node.column}
    return {"time": node.time, "event": node.event} if isinstance(node, SurvivalNode) else {}
