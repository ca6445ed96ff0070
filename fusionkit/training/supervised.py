"""Stages that learn from outcomes: what both verbs share; named parts of the model; their predictions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionkit.data.batches import (
    Kept,
    ModalityReader,
    Units,
    cut_batches,
    epoch_order,
    make_units,
    read_ahead,
)
from fusionkit.data.threads import prefetch
from fusionkit.errors import IntegrityError
from fusionkit.model import ModalityBatch
from fusionkit.recipe.schema import SupervisedOptions, TrainStage
from fusionkit.training.checks import check_model_alone, find_not_finite, name_rows, not_finite
from fusionkit.training.dropout import ModalityDropout
from fusionkit.training.experiment import Experiment, Feed, Origin
from fusionkit.training.train import Loop, run_loop

if TYPE_CHECKING:
    from fusionkit.training.stages import Step

OF_TASK = "task."
"""Begins the names of what the task keeps of a stage's training rows, in the stage's artefact."""
EVAL_BATCH = 256
RAW_EVAL_BATCH = 32
"""Where files go through an encoder: the default of a training batch, so that they fit where that does."""

Batch = tuple[Units, Any]
LossOf = Callable[[Units, Any, Tensor, Tensor], Tensor]
"""Maps units, inputs, targets (n, ...) and weights (n,) to a scalar loss."""
Result = tuple[dict[str, Tensor], list[dict[str, float]]]


def row_weights(experiment: Experiment, options: SupervisedOptions, rows: Sequence[int]) -> dict[int, float]:
    """Returns each training row's weight in the loss, 1 on average."""
    manifest = experiment.manifest
    weights = np.ones(len(rows))
    if options.subject_weights == "equal":
        _, subject, n_samples = np.unique(
            [manifest.subjects[row] for row in rows], return_inverse=True, return_counts=True
        )
        weights /= n_samples[subject]
    if options.class_weights == "balanced":
        outcomes = experiment.targets(rows)
        weights /= np.bincount(outcomes, weights)[outcomes]
    weights *= len(rows) / weights.sum()
    return dict(zip(map(int, rows), map(float, weights), strict=True))


class Supervised:
    """What both verbs share: units, targets, weights, batches, validation, the loop."""

    def __init__(
        self,
        experiment: Experiment,
        options: SupervisedOptions,
        step: Step,
        read: Callable[[Units, bool], Any],
        logits: Callable[[Any], Tensor],
        stored: Sequence[str],
        raw: Sequence[ModalityReader],
        n_views: tuple[int, int],
        find: Callable[[Any], tuple[str, NDArray[Any]] | None],
        loss_of: LossOf | None = None,
        keep: Callable[[Units], Kept] | None = None,
    ) -> None:
        self.experiment, self.options, self.step = experiment, options, step
        self.read, self.logits, self.raw, self.find = read, logits, raw, find
        self.keep = keep
        self.loss_of = loss_of or self._loss_of_task
        self.weights = row_weights(experiment, options, step.rows)
        self.units = make_units(step.rows, n_views[0], experiment.n_draws(stored))
        self.validation = make_units(step.validation, n_views[1])
        outcomes = experiment.targets(step.rows)
        self.task = experiment.task.fitted(outcomes)
        self.balanced = outcomes if options.sampling == "balanced" else None
        rows = [*step.rows, *step.validation]
        self.place = {int(row): index for index, row in enumerate(rows)}
        # numbers stay float64 until the task has brought them to its scale: float32 would round large ones
        self.targets = torch.from_numpy(experiment.targets(rows))

    def batches(self, epoch: int) -> Iterator[Batch]:
        """Yields an epoch's batches of training units."""
        order = epoch_order(
            self.units, self.step.seed, epoch, in_blocks=bool(self.raw), classes=self.balanced
        )
        return self._batches(order, self.options.batch_size, True)

    def _batches(self, units: Units, size: int, training: bool) -> Iterator[Batch]:
        keep = self.keep if training else None
        parts = read_ahead(units, size, self.raw, training=training, learning=training, keep=keep)
        made = ((part, self.read(part, training)) for part in parts)
        return prefetch(made, look=self._look) if self.raw else made

    def _look(self) -> None:
        for reader in self.raw:
            reader.tell_slow()

    def take(self, batch: Batch, part: slice, training: bool = True) -> Batch:
        """Returns some rows of a batch; read again where its inputs have no rows that can be told apart."""
        units, inputs = batch
        some = units.take(part)
        taken: Any = None
        if isinstance(inputs, Tensor):
            taken = inputs[part] if len(inputs) == len(units) else None
        elif isinstance(inputs, dict) and all(isinstance(m, ModalityBatch) for m in inputs.values()):
            taken = {name: modality.take(part) for name, modality in inputs.items()}
            taken = None if None in taken.values() else taken
        return some, self.read(some, training) if taken is None else taken

    def loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        """Returns the scalar loss of a batch."""
        units, inputs = batch
        weights = torch.tensor(
            [self.weights[int(row)] for row in units.rows], device=self.experiment.device.torch
        )
        return self.loss_of(units, inputs, self._targets(units), weights)

    def _loss_of_task(self, units: Units, inputs: Any, targets: Tensor, weights: Tensor) -> Tensor:
        return self.task.loss(self.logits(inputs), targets, weights)

    def _targets(self, units: Units) -> Tensor:
        index = [self.place[row] for row in units.rows.tolist()]
        return self.targets[index].to(self.experiment.device.torch)

    def validate(self) -> float:
        """Returns the mean loss of the validation rows."""
        total = 0.0
        size = RAW_EVAL_BATCH if self.raw else EVAL_BATCH
        with torch.no_grad():
            for batch in self._batches(self.validation, size, False):
                units = batch[0]
                ones = torch.ones(len(units), device=self.experiment.device.torch)
                logits = self._validation_logits(batch)
                total += float(self.task.loss(logits, self._targets(units), ones)) * len(units)
        return total / len(self.validation)

    def _validation_logits(self, batch: Batch) -> Tensor:
        n_rows = len(batch[0])

        def compute(part: slice) -> Tensor:
            is_whole = part.stop - part.start == n_rows
            return self.logits((batch if is_whole else self.take(batch, part, False))[1])

        return torch.cat(self.experiment.portions("validation").run(n_rows, compute))

    def explain(self, batch: Batch) -> str:
        """Says which part gives values that are not finite, and for which rows of a batch."""
        found = self.find(batch[1])
        if found is None:
            return ""
        rows = name_rows(self.experiment, batch[0].rows[found[1]])
        return f"{found[0]} gives values that are not finite for {rows}. "

    def run(self, modules: dict[str, nn.Module]) -> Result:
        """Runs the loop; returns what the modules are then, by path, and the loop's history."""
        manifest, options = self.experiment.manifest, self.options
        stops_early = options.early_stopping is not None
        loop = Loop(
            modules=modules,
            batches=self.batches,
            n_batches=len(cut_batches(len(self.units), options.batch_size)),
            loss=self.loss,
            name_of=lambda batch: ", ".join(manifest.where(int(row)) for row in batch[0].rows[:8]),
            options=options,
            seed=self.step.seed,
            where=f"stage {self.step.stage.name}",
            device=self.experiment.device.torch,
            validate=self.validate if stops_early else None,
            patience=options.early_stopping,
            n_rows_of=lambda batch: len(batch[0]),
            take=self.take,
            explain=self.explain,
        )
        history = run_loop(loop, self.experiment.store, self.step.address, self.experiment.tell)
        state = {
            f"{path}.{name}": t for path, module in modules.items() for name, t in module.state_dict().items()
        }
        for module in modules.values():
            module.eval()
        kept = self.task.state(self._training_logits, self._training_outcomes)
        return state | {OF_TASK + name: tensor for name, tensor in kept.items()}, history

    def _training_logits(self) -> Tensor:
        """Returns (n, output_dim) of the training units, as they are when the loop is done."""
        size = RAW_EVAL_BATCH if self.raw else EVAL_BATCH
        with torch.no_grad():
            return torch.cat(
                [self.logits(inputs).cpu() for _, inputs in self._batches(self.units, size, True)]
            )

    def _training_outcomes(self) -> tuple[Tensor, Tensor]:
        """Returns outcomes (n, ...) and weights (n,) of the training units."""
        weights = torch.tensor([self.weights[row] for row in self.units.rows.tolist()], dtype=torch.float64)
        return self._targets(self.units).cpu(), weights


def run_train(experiment: Experiment, stage: TrainStage, step: Step) -> Result:
    """Trains the named parts of the model from the outcome; frozen encoders' features come from the store."""
    feed = Feed(experiment, step.used, step.learned)
    learning = {path: experiment.fresh(path, step.used[path]) for path in step.learned}
    model = feed.model(learning)
    readers = [experiment.reader(name) for name in experiment.modalities if name not in feed.stored]
    raw = [reader for reader in readers if reader.is_stored]
    dropout = ModalityDropout(experiment)

    def read(units: Units, training: bool) -> dict[str, ModalityBatch]:
        return feed.batch(units, training=training, kept=dropout.keep(units) if training else None)

    loop = Supervised(
        experiment,
        stage,
        step,
        read=read,
        logits=model,
        stored=feed.stored,
        raw=raw,
        n_views=(experiment.n_views(training=True), experiment.n_views(training=False)),
        find=lambda batch: find_not_finite(experiment, model, batch),
        keep=dropout.keep,
    )
    feed.ensure(loop.units, training=True)
    if len(loop.validation):
        feed.ensure(loop.validation, training=False)
    return loop.run(learning)


def predict_logits(
    experiment: Experiment, origins: Mapping[str, Origin], rows: Sequence[int] | NDArray[np.int64]
) -> NDArray[Any]:
    """Returns the model's logits (n rows, n views, output_dim); rows without any modality give NaN."""
    rows = np.asarray(rows, dtype=np.int64)
    n_views = experiment.n_views(training=False)
    feed = Feed(experiment, origins)
    units = make_units(rows, n_views)
    feed.ensure(units, training=False)
    model = feed.model({})
    out = np.full((len(rows) * n_views, experiment.task.output_dim), np.nan, dtype=np.float32)
    any_present = np.zeros(len(units), dtype=bool)
    for name in experiment.modalities:
        any_present |= experiment.reader(name).present(units.rows)
    everyone = np.flatnonzero(any_present)

    def make(index: NDArray[np.int64]) -> dict[str, ModalityBatch]:
        return feed.batch(units.take(index), training=False)

    def compute(index: NDArray[np.int64]) -> Tensor:
        portions = experiment.portions("prediction")
        return torch.cat(portions.run(len(index), lambda part: model(make(index[part])).float()))

    with torch.inference_mode():
        for start in range(0, len(everyone), EVAL_BATCH):
            index = everyone[start : start + EVAL_BATCH]
            logits = compute(index)
            if not bool(torch.isfinite(logits).all()):
                path, bad = find_not_finite(experiment, model, make(index)) or ("head", np.arange(len(index)))
                raise not_finite(experiment, origins, path, units.rows[index[bad]])
            check_model_alone(experiment, model, make, compute, index, logits)
            out[index] = logits.cpu().numpy()
    said = out.reshape(len(rows), n_views, experiment.task.output_dim)
    return finish(experiment, said, origins["head"])


def finish(experiment: Experiment, logits: NDArray[np.float32], origin: Origin) -> NDArray[Any]:
    """Returns what the task makes of what a model says, (n, views, output_dim), by its training rows.

    Args:
        experiment: Whose task it is.
        logits: What the model says.
        origin: Where its head comes from, or what else gives the logits.

    Raises:
        IntegrityError: What was learned does not say the scale that it learned on.
    """
    if not experiment.task.keeps_state or not origin.is_learned:
        return logits
    tensors = experiment.artefact(origin.address).tensors
    state = {
        name.removeprefix(OF_TASK): tensor for name, tensor in tensors.items() if name.startswith(OF_TASK)
    }
    if not state:
        raise IntegrityError(
            f"artefact {origin.address[:12]}: does not say on which scale of the outcome it learned. Run the "
            "recipe again with another --store."
        )
    return experiment.task.finish(logits, state)


def mean_of_members(
    experiment: Experiment, logits: Iterable[NDArray[Any]], views: str
) -> NDArray[np.float64]:
    """Returns predictions (n, k): the mean over members of what each one's logits (n, views, d) say."""
    each = [link(experiment, of_member, views) for of_member in logits]
    # summed in order: a mean over an axis may sum otherwise for one row than for many
    return sum(each[1:], start=each[0]) / len(each)


def link(experiment: Experiment, logits: NDArray[Any], views: str) -> NDArray[np.float64]:
    """Maps logits (n, views, d) to predictions (n, k): of the mean logit, or the views' mean or votes.

    A view that does not decide between classes gives each of them its part.
    """
    values = torch.from_numpy(logits).double()
    if views == "mean_logit":
        return experiment.task.link(values.mean(1)).numpy()
    predictions = experiment.task.link(values)
    if views == "vote":
        is_called = (predictions == predictions.amax(-1, keepdim=True)).double()
        predictions = is_called / is_called.sum(-1, keepdim=True)
    return predictions.mean(1).numpy()
