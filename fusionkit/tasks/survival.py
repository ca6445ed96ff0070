"""Survival: the time to an event, by Cox's proportional hazards."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionkit.errors import DataError
from fusionkit.recipe.task_nodes import SurvivalNode, horizon_text
from fusionkit.tasks.cells import NAME_IT, OutcomeCells, read_outcome, yes_no_texts_of

if TYPE_CHECKING:
    from fusionkit.data.manifest import Manifest


class Survival(OutcomeCells):
    """Time to an event, or to the end of follow-up; predicted is the log of a hazard.

    The likelihood says nothing of where it is zero. So each model's is brought to zero on average over its
    training rows, and what models of several folds say can be averaged and compared. With horizons, it is
    the probability of the event by each of them, too, from a baseline hazard of the training rows.

    Args:
        node: The recipe's.

    Source: Cox 1972, Regression models and life-tables; Efron 1977 for ties; Katzman et al. 2018, DeepSurv,
    for the partial likelihood as the loss of a network; Breslow 1972, in the discussion of Cox's paper, for
    the baseline hazard.
    """

    kind = "survival"
    strata: tuple[str, ...] = ("censored", "event")
    needed: tuple[str, ...] = ("event",)
    output_dim = 1
    keeps_state = True

    def __init__(self, node: SurvivalNode) -> None:
        self.node = node
        self.columns, self.horizons = (node.time, node.event), node.horizons
        self.predictions = names_of_predictions(node.horizons)

    def identity(self) -> dict[str, Any]:
        """Returns what determines the task, for addresses."""
        texts = {"positive": self.node.positive, "negative": self.node.negative}
        # addresses without horizons are older
        horizons = {"horizons": list(self.horizons)} if self.horizons else {}
        return {"task": "survival", "columns": list(self.columns), **texts, **horizons}

    def parse(self, manifest: Manifest, texts: Sequence[str | None]) -> tuple[list[float], list[str]]:
        """Returns time and event, and what is wrong with them."""
        if texts[0] is None and texts[1] is None:
            return [math.nan, math.nan], []
        values, problems = list[float](), list[str]()
        yes_no = yes_no_texts_of(manifest, self.node.event, self.node.positive, self.node.negative)
        for column, text, other in zip(self.columns, texts, reversed(texts), strict=True):
            if text is None:
                problems.append(
                    f"{column}: missing, where the other half of the outcome is known ('{other}'). "
                    "Fill it in, or blank both."
                )
                continue
            read = read_outcome(text) if column == self.node.time else yes_no.read(text)
            if column == self.node.time and isinstance(read, float) and read < 0:
                read = "a time before 0"
            if isinstance(read, str):
                advice = NAME_IT if column == self.node.event else "Mend the cell, or blank the outcome."
                problems.append(f"{column}: {read} ('{text}'). {advice}")
            else:
                values.append(read)
        if problems:
            return [math.nan, math.nan], problems
        return values, []

    @staticmethod
    def stratum(outcome: Any) -> int:
        """Returns 1 where the event was seen, 0 where the time is censored, -1 where it is not known."""
        event = outcome[1]
        return -1 if event is None or math.isnan(event) else int(event)

    def spread(self, outcome: Any) -> float:
        """Returns the time."""
        return float(outcome[0])

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Returns minus Cox's partial log-likelihood of the batch over its number of rows; Efron's for ties.

        Who is at risk is who is in the batch. A batch without an event has a loss of zero.

        Shape:
            logits (n, 1), targets (n, 2) of time and event as float64, for ties, weights (n,) -> ()
        """
        return cox_loss(logits.squeeze(-1), targets[:, 0], targets[:, 1], weights) / len(logits)

    def fitted(self, targets: NDArray[Any]) -> Survival:
        """Returns itself; DataError if a horizon is where these training rows (n, 2) say nothing."""
        events = targets[targets[:, 1] > 0, 0]
        for horizon in self.horizons:
            if horizon > targets[:, 0].max():
                raise DataError(
                    f"task.horizons: nobody in training is followed so long ({horizon:g}, and the longest "
                    f"time there is {targets[:, 0].max():g}). Leave it out, or use other data."
                )
            if not (events <= horizon).any():
                raise DataError(
                    f"task.horizons: nobody in training has the event so early ({horizon:g}). "
                    "Leave it out, or use more data."
                )
        return self

    def state(
        self, logits: Callable[[], Tensor], rows: Callable[[], tuple[Tensor, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Returns the mean over training rows, and where it is zero the cumulative hazard at each horizon."""
        said = logits().double()
        mean = said.mean(0)
        if not self.horizons:
            return {"mean": mean}
        targets, weights = rows()
        of_rows = (said - mean).squeeze(-1), targets[:, 0], targets[:, 1], weights
        return {"mean": mean, "cumulative_hazard": cumulative_hazard(*of_rows, self.horizons)}

    def finish(self, logits: NDArray[Any], state: Mapping[str, Tensor]) -> NDArray[Any]:
        """Subtracts the mean over training rows; appends logs of the cumulative hazard by each horizon."""
        hazards = np.asarray(logits - state["mean"].numpy(), dtype=logits.dtype)
        if not self.horizons:
            return hazards
        return np.concatenate([hazards, hazards + state["cumulative_hazard"].log().numpy()], axis=-1)

    def link(self, logits: Tensor) -> Tensor:
        """Returns the log of the hazard as it is, and the probability of the event by each horizon."""
        return torch.cat([logits[..., :1], -(-logits[..., 1:].exp()).expm1()], -1)


def names_of_predictions(horizons: Sequence[float]) -> tuple[str, ...]:
    """Returns the names of the log hazard and of the probability of the event by each horizon."""
    return ("log_hazard", *(f"probability_by_{horizon_text(horizon)}" for horizon in horizons))


def cumulative_hazard(
    hazards: Tensor, times: Tensor, events: Tensor, weights: Tensor, horizons: Sequence[float]
) -> Tensor:
    """Returns by each horizon Breslow's estimate of the cumulative hazard where the log hazard is zero.

    Shape:
        all (n,); times from 0 on, events 0 or 1 -> (k,)
    """
    order = torch.argsort(times, descending=True, stable=True)
    times, logs = times[order], weights[order].log()
    tied, at_risk = _at_risk(hazards[order] + logs, times)
    steps = (logs - at_risk[tied]).exp() * (events[order] > 0)
    return torch.stack([steps[times <= horizon].sum() for horizon in horizons])


def _at_risk(weighted: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the index of each row's distinct time, from the latest on, and logs of who is at risk then."""
    _, tied, counts = torch.unique_consecutive(times, return_inverse=True, return_counts=True)
    return tied, torch.logcumsumexp(weighted, 0)[counts.cumsum(0) - 1]


def cox_loss(hazards: Tensor, times: Tensor, events: Tensor, weights: Tensor) -> Tensor:
    """Returns minus the weighted partial log-likelihood, by Efron's approximation of ties.

    As R's `coxph`: a row weighs in the sums of who is at risk, and tied events share their mean weight.
    All in logarithms, so that no hazard overflows.

    Shape:
        all (n,); times from 0 on, events 0 or 1 -> ()
    """
    order = torch.argsort(times, descending=True, stable=True)
    hazards, times, weights = hazards[order], times[order], weights[order]
    is_event = events[order] > 0
    weighted = hazards + weights.log()
    tied, at_risk = _at_risk(weighted, times)
    n_events = torch.zeros_like(at_risk).index_add(0, tied[is_event], torch.ones_like(hazards[is_event]))
    weight = torch.zeros_like(at_risk).index_add(0, tied[is_event], weights[is_event])
    # share of the events in who is at risk
    share = torch.zeros_like(at_risk).index_add(
        0, tied[is_event], (weighted[is_event] - at_risk[tied[is_event]]).exp()
    )
    of_event = tied[is_event]
    # 0, 1, ... among the events of one time
    starts = torch.cat([n_events.new_zeros(1), n_events.cumsum(0)[:-1]])
    rank = torch.arange(len(of_event), device=hazards.device) - starts[of_event]
    left_out = (rank / n_events[of_event]) * share[of_event]
    # rounding must not leave out all who are at risk
    logs = at_risk[of_event] + torch.log1p(-left_out.clamp_max(1 - 1e-6))
    mean_weight = weight[of_event] / n_events[of_event]
    return (mean_weight * logs).sum() - (weights[is_event] * hazards[is_event]).sum()
