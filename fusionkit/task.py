"""The task owns what is predicted: outcomes as numbers, width of the output, loss, link to predictions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from torch import Tensor

    from fusionkit.data.manifest import Manifest

Outcome = int | Sequence[float | None]
"""A subject's class index, -1 where unknown; or its numbers, None where unknown."""


class Task(Protocol):
    """What is predicted.

    Attributes:
        kind: As the recipe writes it.
        classes: The names of the classes; empty where the outcome is no class.
        strata: By what subjects are counted, dealt into folds and resampled: the classes, or who had the
            event; one name where the outcome makes no strata.
        needed: Those of which every set of a split must have somebody.
        columns: The columns of the data that hold the outcome; none where the source says the class.
        output_dim: Width of what a head gives.
        predictions: Names of what `link` gives, in its order.
        keeps_state: Whether a stage keeps something of its training rows, for `finish`.
    """

    kind: str
    classes: tuple[str, ...]
    strata: tuple[str, ...]
    needed: tuple[str, ...]
    columns: tuple[str, ...]
    output_dim: int
    predictions: tuple[str, ...]
    keeps_state: bool

    def identity(self) -> dict[str, Any]:
        """Returns what determines the task, for addresses."""
        ...

    def with_strata(self, manifest: Manifest) -> Manifest:
        """Returns the data with each row's stratum as its outcome, and what is wrong with outcomes."""
        ...

    def targets(self, manifest: Manifest, rows: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Returns the outcomes of rows: class indices (n,), -1 unknown; or numbers (n, k), NaN unknown."""
        ...

    def stratum(self, outcome: Outcome) -> int:
        """Returns the index in `strata` of a subject's outcome, -1 where it is not known."""
        ...

    def spread(self, outcome: Outcome) -> float | tuple[bool, ...] | None:
        """Returns by what else splits are balanced within a stratum: a number, labels, or nothing."""
        ...

    def fitted(self, targets: NDArray[Any]) -> Task:
        """Returns the task as it is learned on these training rows."""
        ...

    def state(
        self, logits: Callable[[], Tensor], rows: Callable[[], tuple[Tensor, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Returns what `finish` needs to know of a stage's training rows; mostly nothing.

        Args:
            logits: Gives (n, output_dim) of the training rows when all is learned.
            rows: Gives their outcomes (n, ...), and weights (n,).
        """
        ...

    def finish(self, logits: NDArray[Any], state: Mapping[str, Tensor]) -> NDArray[Any]:
        """Returns what `link` maps of a model's (n, views, output_dim): as they are, rescaled, or more."""
        ...

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Returns the scalar loss of a batch; weights (n,) are 1 on average over all training rows."""
        ...

    def link(self, logits: Tensor) -> Tensor:
        """Maps what `finish` gives to `predictions` (..., k): probabilities, or numbers of any size."""
        ...


class Stateless:
    """A task that takes nothing from its training rows."""

    keeps_state = False

    def fitted(self, targets: NDArray[Any]) -> Any:
        """Returns itself."""
        return self

    def state(
        self, logits: Callable[[], Tensor], rows: Callable[[], tuple[Tensor, Tensor]]
    ) -> Mapping[str, Tensor]:
        """Returns nothing."""
        return {}

    def finish(self, logits: NDArray[Any], state: Mapping[str, Tensor]) -> NDArray[Any]:
        """Returns the logits as they are."""
        return logits


class WithClasses(Stateless):
    """A task whose outcome is one of the source's classes."""

    columns: tuple[str, ...] = ()

    def __init__(self, classes: Sequence[str]) -> None:
        self.classes = self.strata = self.needed = tuple(classes)
        self.predictions = tuple(f"probability_{name}" for name in self.classes)

    def with_strata(self, manifest: Manifest) -> Manifest:
        """Returns the data as they are."""
        return manifest

    def encode(self, outcomes: Sequence[str | None]) -> NDArray[Any]:
        """Returns class indices (n,); -1 where the outcome is unknown."""
        import numpy as np

        index = {name: number for number, name in enumerate(self.classes)}
        return np.array([-1 if outcome is None else index[outcome] for outcome in outcomes], dtype=np.int64)

    def targets(self, manifest: Manifest, rows: Sequence[int] | NDArray[Any]) -> NDArray[Any]:
        """Returns the class indices (n,) of rows."""
        return self.encode([manifest.outcomes[row] for row in rows])

    def stratum(self, outcome: Outcome) -> int:
        """Returns the class index."""
        assert isinstance(outcome, int)
        return outcome

    def spread(self, outcome: Outcome) -> None:
        """Returns nothing: the class says all."""


class Classification(WithClasses):
    """One class per sample.

    Args:
        classes: Class names in the order of the outputs; the last one is the positive class.
        gamma: Of the focal loss; null for cross-entropy.

    Source: Lin et al. 2017, Focal loss for dense object detection, equation 4 (without its alpha, which is
    what `class_weights` is for).
    """

    kind = "classification"

    def __init__(self, classes: Sequence[str], gamma: float | None = None) -> None:
        super().__init__(classes)
        self.output_dim, self.gamma = len(self.classes), gamma

    def identity(self) -> dict[str, Any]:
        """Returns what determines the task, for addresses."""
        focal = {} if self.gamma is None else {"focal_gamma": self.gamma}
        return {"task": "classification", "classes": list(self.classes), **focal}

    def loss(self, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Returns the mean over rows of weight x cross-entropy, of (n, output_dim) logits.

        Not divided by the batch's own weights: these are 1 on average over all training rows, and a batch
        that happens to hold heavy rows must weigh more. Focal: times (1 - p)^gamma, p of the right class.
        """
        from torch.nn.functional import cross_entropy

        losses = cross_entropy(logits, targets, reduction="none")
        if self.gamma is not None:
            # 1 - p without cancellation; its floor keeps the slope of a power below 1 finite
            losses = (-losses.neg().expm1()).clamp_min(1e-12) ** self.gamma * losses
        return (losses * weights).mean()

    def link(self, logits: Tensor) -> Tensor:
        """Maps logits (..., output_dim) to probabilities (..., output_dim)."""
        return logits.softmax(-1)
