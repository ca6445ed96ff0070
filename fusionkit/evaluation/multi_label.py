"""How predicted labels are judged: each as two classes, and the mean over labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fusionkit.evaluation.measures import ENOUGH, NumberMeasures, Outcomes, few_subjects_text
from fusionkit.evaluation.metrics import FloatArray, weighted_metrics, why_not_estimable

_OF_LABEL = ("roc_auc", "average_precision", "accuracy", "brier")


class MultiLabelMeasures(NumberMeasures):
    """Of labels: outcomes (n, k) of 1, 0 and NaN, predictions (n, k).

    A label is scored on those of whom it is known, and called from probability one half on; a metric without
    a label's name is the mean over labels.

    Args:
        labels: Their names.
    """

    kind = "multi_label"
    compared: tuple[str, ...] = ("roc_auc", "average_precision")

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self.of_label = {f"{m}_{name}": (m, i) for i, name in enumerate(labels) for m in _OF_LABEL}
        self.metrics: tuple[str, ...] = (*_OF_LABEL, *self.of_label)
        self.columns = (*(f"outcome_{n}" for n in labels), *(f"probability_{n}" for n in labels))

    def counts(self, outcomes: Outcomes) -> dict[str, int]:
        """Returns how many have each label."""
        return {name: int(np.nansum(outcomes[:, i])) for i, name in enumerate(self.labels)}

    def weighted(
        self,
        outcomes: Outcomes,
        predictions: FloatArray,
        thresholds: float | FloatArray,
        weights: FloatArray,
        metrics: Sequence[str],
    ) -> dict[str, FloatArray]:
        """Returns each metric under each row of weights."""
        wanted = dict.fromkeys(self.of_label.get(name, (name, 0))[0] for name in metrics)
        each = []
        for i in range(len(self.labels)):
            known = ~np.isnan(outcomes[:, i])
            said = predictions[known, i]
            both = np.stack([1 - said, said], axis=1)
            labels = outcomes[known, i].astype(np.int64)
            each.append(weighted_metrics(labels, both, 0.5, weights[:, known], list(wanted)))
        means: dict[str, FloatArray] = {name: np.mean([e[name] for e in each], axis=0) for name in wanted}
        return {
            name: each[self.of_label[name][1]][self.of_label[name][0]]
            if name in self.of_label
            else means[name]
            for name in metrics
        }

    def why_not(self, metric: str, outcomes: Outcomes, noun: str = "subject") -> str | None:
        """Says what a label lacks for the metric; of a mean, the first label that lacks anything."""
        places = [self.of_label[metric][1]] if metric in self.of_label else range(len(self.labels))
        plain = self.of_label.get(metric, (metric, 0))[0]
        for i in places:
            known = outcomes[~np.isnan(outcomes[:, i]), i].astype(np.int64)
            names = (f"no {self.labels[i]}", self.labels[i])
            reason = why_not_estimable(plain, known, names, noun)
            if reason is not None:
                is_unknown = not len(known)
                return (
                    f"not estimable: {self.labels[i]} is known of no {noun}"
                    if is_unknown
                    else (f"not estimable: every {noun} {'has' if known.all() else 'lacks'} {self.labels[i]}")
                )
        return None

    def few(self, counts: Mapping[str, int]) -> list[str]:
        """Warns where few have a label."""
        few = [f"{count} {name}" for name, count in counts.items() if count < ENOUGH]
        return [few_subjects_text(", ".join(few), f"{ENOUGH} with a label")] if few else []
