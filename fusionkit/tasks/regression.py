"""Regression: a number, by squared errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionkit.errors import DataError
from fusionkit.recipe.task_nodes import RegressionNode
from fusionkit.tasks.cells import OutcomeCells, read_outcome

if TYPE_CHECKING:
    from fusionkit.data.manifest import Manifest


class Regression(OutcomeCells):
    """A number; the head gives it standardised on its training rows.

    Args:
        node: The recipe's.
        mean: Of the training rows' outcomes.
        sd: Their standard deviation.
    """

    kind = "regression"
    strata: tuple[str, ...] = ("measured",)
    needed: tuple[str, ...] = ("measured",)
    output_dim = 1
    predictions: tuple[str, ...] = ("predicted",)
    keeps_state = True

    def __init__(self, node: RegressionNode, mean: float = 0.0, sd: float = 1.0) -> None:
        self.node, self.mean, self.sd = node, mean, sd
        self.columns = (node.column,)

    def identity(self) -> dict[str, Any]:
        """Returns what determines the task, for addresses."""
        return {"task": "regression", "columns": list(self.columns)}

    def parse(self, manifest: Manifest, texts: Sequence[str | None]) -> tuple[list[float], list[str]]:
        """Returns the number, and what is wrong with its cell."""
        if texts[0] is None:
            return [math.nan], []
        value = read_outcome(texts[0])
        if isinstance(value, str):
            return [math.nan], [f"{self.node.column}: {value} ('{texts[0]}'). Mend the cell, or blank it."]
        return [value], []

    def spread(self, outcome: Any) -> float:
        """Returns the number."""
        return float(outcome[0])

    def fitted(self, targets: NDArray[Any]) -> Regression:
        """Returns the task with mean and standard deviation of training rows; DataError if all are equal."""
        least = float(targets.min())
        if least == float(targets.max()):  # not by the standard deviation, whose mean may be rounded
            raise DataError(
                f"task: the outcome is the same in all training rows ({self.node.column} is {least:g}). "
                "Use more data or fewer folds."
            )
        # centred first, so that a large mean costs no digits
        centred = targets - least
        return Regression(self.node, least + float(centred.mean()), float(centred.std()))

    def state(
        self, logits: Callable[[], Tensor], rows: Callable[[], tuple[Tensor, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Returns mean and standard deviation of training rows."""
        return {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("mean", "sd")}

    def finish(self, logits: NDArray[Any], state: Mapping[str, Tensor]) -> NDArray[Any]:
        """Returns what a model says on the outcome's own scale, in float64: float32 would round it."""
        scaled = np.asarray(logits, dtype=np.float64) * float(state["sd"]) + float(state["mean"])
        return np.asarray(scaled)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Returns the mean over rows of weight x squared error in standard deviations, of (n, 1) logits.

        Targets are float64, and standardised as such.
        """
        errors = logits - ((targets - self.mean) / self.sd).to(logits.dtype)
        return (errors.square().squeeze(-1) * weights).mean()

    def link(self, logits: Tensor) -> Tensor:
        """Returns the number as it is, (..., 1): `finish` has brought it to its scale."""
        return logits
