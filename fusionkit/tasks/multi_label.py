"""Several labels, of which any number may be true of a sample."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from fusionkit.recipe.task_nodes import MultiLabelNode
from fusionkit.task import Stateless
from fusionkit.tasks.cells import NAME_IT, OutcomeCells, yes_no_texts_of

if TYPE_CHECKING:
    from fusionkit.data.manifest import Manifest


class MultiLabel(OutcomeCells, Stateless):
    """A label per column, each true or not, or not known.

    Args:
        node: The recipe's.
    """

    kind = "multi_label"
    strata: tuple[str, ...] = ("labelled",)
    needed: tuple[str, ...] = ("labelled",)

    def __init__(self, node: MultiLabelNode) -> None:
        self.node = node
        self.columns = node.columns
        self.output_dim = len(node.columns)
        self.predictions = tuple(f"probability_{name}" for name in node.columns)

    def identity(self) -> dict[str, Any]:
        """Returns what determines the task, for addresses."""
        texts = {"positive": self.node.positive, "negative": self.node.negative}
        return {"task": "multi_label", "columns": list(self.columns), **texts}

    def parse(self, manifest: Manifest, texts: Sequence[str | None]) -> tuple[list[float], list[str]]:
        """Returns 1, 0 or NaN for each label, and what is wrong with its cell."""
        values, problems = [], []
        for column, text in zip(self.columns, texts, strict=True):
            yes_no = yes_no_texts_of(manifest, column, self.node.positive, self.node.negative)
            read = math.nan if text is None else yes_no.read(text)
            if isinstance(read, str):
                problems.append(f"{column}: {read} ('{text}'). {NAME_IT}")
                read = math.nan
            values.append(read)
        return values, problems

    def spread(self, outcome: Any) -> tuple[bool, ...]:
        """Returns of each label whether it is known to be true, and whether to be false."""
        return tuple(value == answer for answer in (1, 0) for value in outcome)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Returns the mean over rows of weight x mean over labels of cross-entropy, of (n, k) logits.

        A cell that is not known counts as zero, so that all that are known weigh the same.
        """
        known = ~targets.isnan()
        losses = binary_cross_entropy_with_logits(
            logits, targets.nan_to_num(0.0).to(logits.dtype), reduction="none"
        )
        return ((losses * known).mean(1) * weights).mean()

    def link(self, logits: Tensor) -> Tensor:
        """Maps logits (..., k) to each label's probability (..., k)."""
        return logits.sigmoid()
