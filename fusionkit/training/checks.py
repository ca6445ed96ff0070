"""What must hold for a number to mean something: values are finite, and a row's own affair."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

from fusionkit.core_parts import is_core_part
from fusionkit.errors import FusionkitError, PluginError, TrainingError
from fusionkit.model import FusionModel, ModalityBatch
from fusionkit.store import Store
from fusionkit.tokens import has_same_tokens

if TYPE_CHECKING:
    from fusionkit.training.experiment import Experiment, Origins

CHECKED_ROWS = 3
"""How many rows are computed once more, in another order and without their neighbours."""
TOLERANCE = {"fp32": 0.01, "bf16": 0.05}
"""Of the largest value: kernels round otherwise for batches of another size, what is kept moves more."""


def check_alone(
    experiment: Experiment,
    path: str,
    values: Tensor,
    again: Callable[[Sequence[int]], Any],
    encode: Callable[[Any], Tensor],
) -> None:
    """Raises PluginError if a frozen encoder's features depend on a row's neighbours or on earlier calls.

    The first rows of the first batch that it sees in this process are read and computed again, by themselves
    and in reverse: what joins items to a batch may let a row see others, too, as padding does.

    Args:
        experiment: The recipe and its rows.
        path: The encoder.
        values: Its features of the batch.
        again: Makes a raw batch of the rows at these places of the batch.
        encode: Maps a raw batch to features.
    """
    if not _is_first(experiment, [path]) or not bool(torch.isfinite(values).all()):
        return  # what is not finite has a message of its own
    n_rows = min(CHECKED_ROWS, len(values))
    found = encode(again(range(n_rows - 1, -1, -1)))
    if not _is_alike(experiment, path, values[:n_rows].flip(0), found):
        raise _dependent(path)


def check_model_alone(
    experiment: Experiment,
    model: FusionModel,
    make: Callable[[NDArray[Any]], Mapping[str, ModalityBatch]],
    compute: Callable[[NDArray[Any]], Tensor],
    index: NDArray[Any],
    logits: Tensor,
) -> None:
    """Raises PluginError if logits depend on a row's neighbours or on earlier calls, naming the first part.

    Args:
        experiment: The recipe and its rows.
        model: The model, all of it frozen.
        make: Makes the batch of some units, by index.
        compute: Computes their logits.
        index: The units of a batch.
        logits: What the model gave for them.
    """
    if not _is_first(experiment, experiment.factory.paths()):
        return
    n_rows = min(CHECKED_ROWS, len(logits))
    first = index[:n_rows][::-1]
    precision = experiment.device.precision
    if is_close(logits[:n_rows].flip(0), compute(first), precision):
        return
    few, whole = make(first), make(index)
    for modality, part in few.items():
        n_here = int(part.present.sum())
        if n_here:
            pairs = zip(_walk(model, modality, whole[modality]), _walk(model, modality, part), strict=True)
            for (path, expected), (_, again) in pairs:
                if not _is_alike(experiment, path, expected[:n_here].flip(0), again):
                    raise _dependent(path)
    raise _dependent("head")


def _is_first(experiment: Experiment, paths: Sequence[str]) -> bool:
    """Says, once per run, that these parts have not been looked at; what they learned does not matter."""
    uses = [experiment.factory.loaded.parts[path] for path in paths if not is_core_part(path)]
    mark = tuple((plan.path, plan.use, str(plan.options)) for plan in uses)
    if mark in experiment.shared.checked:
        return False
    experiment.shared.checked.add(mark)
    return True


def _is_alike(experiment: Experiment, path: str, expected: Tensor, again: Tensor) -> bool:
    """Says whether what a part gives is the same but for rounding; which tokens are there, exactly."""
    modality, _, kind = path.partition(".")
    n_tokens = experiment.factory.n_tokens(modality) if kind in ("encoder", "scale") else 0
    is_same = has_same_tokens(expected, again, n_tokens)
    return is_same and is_close(expected, again, experiment.device.precision)


def is_close(
    expected: Tensor, again: Tensor, precision: str = "fp32", tolerance: float | None = None
) -> bool:
    """Says whether two results are one but for rounding, measured by the largest value."""
    if expected.shape != again.shape:
        return False
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    allowed = (TOLERANCE[precision] if tolerance is None else tolerance) * max(largest, 1e-6)
    return bool(((expected - again).abs() <= allowed).all())


def _dependent(path: str) -> PluginError:
    return PluginError(
        f"{path}: gives other values for the same rows in another batch. Neither a frozen part nor `collate` "
        "may keep anything between calls, draw anything, or let a row see another. Mend the plugin; mask "
        "what is padded, in every layer."
    )


def _walk(model: FusionModel, modality: str, part: ModalityBatch) -> Any:
    return model.walk(modality, part.inputs, part.start)


def find_not_finite(
    experiment: Experiment, model: FusionModel, batch: Mapping[str, ModalityBatch]
) -> tuple[str, NDArray[Any]] | None:
    """Returns the first part whose output is not finite, and for which rows of a batch; None if it all is."""
    found = find_not_finite_before_head(experiment, model, batch)
    if found is not None:
        return found
    with torch.no_grad():
        is_bad = ~torch.isfinite(model(batch)).all(1)
    return ("head", is_bad.nonzero().squeeze(1).cpu().numpy()) if bool(is_bad.any()) else None


def find_not_finite_before_head(
    experiment: Experiment, model: FusionModel, batch: Mapping[str, ModalityBatch]
) -> tuple[str, NDArray[Any]] | None:
    """Returns the same of what comes before the head."""
    with torch.no_grad():
        for modality, part in batch.items():
            here = part.present.nonzero().squeeze(1)
            for path, values in _walk(model, modality, part) if len(here) else ():
                is_bad = ~_is_allowed(experiment, path, values).all(1)
                if bool(is_bad.any()):
                    return path, here[is_bad].cpu().numpy()
    return None


def _is_allowed(experiment: Experiment, path: str, values: Tensor) -> Tensor:
    """Says which values may be: those that are finite, and NaN where the card says that it means missing."""
    if path.endswith(".encoder"):
        plan = experiment.factory.loaded.parts[path]
        if cast(Any, plan.card).emits_missing(plan.config):
            return ~torch.isinf(values)
    return torch.isfinite(values)


def warn_of_parts(store: Store, addresses: Collection[str]) -> list[str]:
    """Returns a warning where artefacts were learned from parts of batches, because memory was full."""
    learned = [store.metadata(address) for address in addresses]
    # what another process has pruned meanwhile has no metadata
    cut = [entry for entry in learned if any("parts" in epoch for epoch in entry.get("history", ()))]
    stages = {entry["stage"] for entry in cut}
    if not stages:
        return []
    return [
        f"memory was full in {', '.join(sorted(stages))}: batches were computed in parts, each weighing as "
        "many rows as it has; batch normalisation and dropout saw the parts."
    ]


def check_finite(
    experiment: Experiment, origins: Origins, path: str, values: Tensor, rows: NDArray[Any]
) -> None:
    """Raises an error that names part and sample where a frozen part's output is not finite."""
    is_bad = ~_is_allowed(experiment, path, values).all(1)
    if bool(is_bad.any()):
        raise not_finite(experiment, origins, path, rows[is_bad.cpu().numpy()])


def not_finite(experiment: Experiment, origins: Origins, path: str, rows: NDArray[Any]) -> FusionkitError:
    """Returns the error of a part whose output is not finite: its plugin's, or that of what it learned."""
    said = f"{path}: gives values that are not finite for {name_rows(experiment, rows)}. "
    if origins[path].is_learned:
        return TrainingError(f"{said}Look at these rows, or lower the learning rate that it learned with.")
    return PluginError(f"{said}Mend the plugin, or look at these rows.")


def name_rows(experiment: Experiment, rows: NDArray[Any]) -> str:
    """Names up to three rows for a message."""
    named = [experiment.manifest.where(int(row)) for row in rows[:3]]
    return ", ".join(named) + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")
