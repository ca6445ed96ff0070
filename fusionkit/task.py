"""The task owns what is predicted: outcomes as numbers, width of the output, loss, link to probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


class Classification:
    """One class per sample.

    Args:
        classes: Class names in the order of the outputs; the last one is the positive class.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = tuple(classes)
        self.output_dim = len(self.classes)

    def identity(self) -> dict[str, Any]:
        """Returns what determines the task, for addresses."""
        return {"task": "classification", "classes": list(self.classes)}

    def encode(self, outcomes: Sequence[str | None]) -> NDArray[np.int64]:
        """Returns class indices (n,); -1 where the outcome is unknown."""
        import numpy as np

        index = {name: number for number, name in enumerate(self.classes)}
        return np.array([-1 if outcome is None else index[outcome] for outcome in outcomes], dtype=np.int64)

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Returns the mean over rows of weight x cross-entropy, of (n, output_dim) logits.

        Not divided by the batch's own weights: these are 1 on average over all training rows, and a batch
        that happens to hold heavy rows must weigh more.
        """
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(logits, targets, reduction="none")
        return (losses * weights).mean()

    def probabilities(self, logits: Tensor) -> Tensor:
        """Maps logits (n, output_dim) to probabilities (n, output_dim)."""
        return logits.softmax(-1)
