"""The one training loop: plain PyTorch, resumable after every epoch."""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.errors import PluginError, TrainingError
from fusionkit.model import seed_of
from fusionkit.recipe.schema import LoopOptions
from fusionkit.store import Artefact, Store, read_artefact, to_bytes
from fusionkit.training.memory import Portions, fewest_rows

LOOP_VERSION = 3
"""Part of every address: raised when the loop would give other numbers."""
CHECKPOINT_SECONDS = 5.0

Loss = Callable[[Any, torch.Generator], Tensor]


@dataclass
class Progress:
    """How far a loop is; what a checkpoint holds beside tensors."""

    epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    best_score: float = math.inf
    best_epoch: int = 0
    n_parts: int = 1
    """Into how many parts memory asked to cut a batch."""


@dataclass(frozen=True)
class Job:
    """What a loop needs.

    Args:
        modules: What learns, by part path; already in place on the device.
        batches: Gives an epoch's batches, a pure function of the epoch.
        n_batches: How many there are.
        loss: Maps a batch and a generator to a scalar; all randomness is the generator's or torch's, both
            reseeded each epoch.
        name_of: Names a batch's samples, for messages.
        options: The stage's options.
        seed: What the epochs' seeds derive from.
        validate: Returns the validation loss; None without early stopping.
        patience: Epochs without a better validation loss before it stops.
        where: Names the stage, for messages.
        device: Where the generator lives.
        n_rows_of: Counts a batch's rows.
        take: Returns some rows of a batch, as a batch.
        explain: Says, in a sentence, where in a batch values are not finite; empty if it cannot say.
    """

    modules: Mapping[str, nn.Module]
    batches: Callable[[int], Iterable[Any]]
    n_batches: int
    loss: Loss
    name_of: Callable[[Any], str]
    options: LoopOptions
    seed: int
    where: str
    device: torch.device
    validate: Callable[[], float] | None = None
    patience: int | None = None
    n_rows_of: Callable[[Any], int] = len
    take: Callable[[Any, slice], Any] = operator.getitem
    explain: Callable[[Any], str] = lambda batch: ""


def run_loop(
    job: Job, store: Store, address: str, tell: Callable[[str, Mapping[str, Any]], None]
) -> list[dict[str, float]]:
    """Trains a job's modules, continuing from its checkpoint if there is one; returns the history by epoch.

    Raises:
        TrainingError: A loss, a gradient or a weight is not finite; nothing of it is saved.
        ResourceError: Memory is full even for the smallest part of a batch.
    """
    for module in job.modules.values():
        module.requires_grad_(True)
    optimizer = make_optimizer(job)
    progress, best = _restore(job, optimizer, store, address)
    portions = Portions(job.where, tell, progress.n_parts, fewest_rows(job.modules))
    saved = time.monotonic()
    while progress.epoch < job.options.epochs and not _is_over(job, progress):
        loss = _run_epoch(job, optimizer, progress.epoch, portions, tell)
        progress.epoch, progress.n_parts = progress.epoch + 1, portions.n_parts
        parts = {"parts": float(portions.n_parts)} if portions.n_parts > 1 else {}
        record = {"epoch": float(progress.epoch), "loss": loss, **parts}
        _check_weights(job, progress.epoch)
        if job.validate is not None:
            record["validation_loss"] = score = _validate(job, job.validate, progress.epoch)
            if score < progress.best_score:
                progress.best_score, progress.best_epoch = score, progress.epoch
                best = _state(job)
        progress.history.append(record)
        tell("epoch_finished", {"where": job.where, "epochs": job.options.epochs, **record})
        if time.monotonic() - saved > CHECKPOINT_SECONDS and progress.epoch < job.options.epochs:
            _checkpoint(job, optimizer, progress, best, store, address)
            saved = time.monotonic()
    if best is not None:
        _load(job, best)
    _set_training(job, False)
    for module in job.modules.values():
        module.requires_grad_(False)
    return progress.history


def _is_over(job: Job, progress: Progress) -> bool:
    return (
        job.patience is not None
        and progress.epoch - progress.best_epoch >= job.patience
        and progress.epoch > 0
    )


def _check_weights(job: Job, epoch: int) -> None:
    # a finite loss may have infinite gradients, and no further batch follows the last one
    for path, module in job.modules.items():
        if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
            raise TrainingError(
                f"{job.where}: the weights of {path} are not finite after epoch {epoch}. "
                "Lower the learning rate, or set gradient_clip."
            )


def _validate(job: Job, validate: Callable[[], float], epoch: int) -> float:
    _set_training(job, False)
    score = validate()
    if not math.isfinite(score):
        raise TrainingError(
            f"{job.where}: the validation loss is not finite ({score}) after epoch {epoch}. "
            "Lower the learning rate, or look at the validation rows."
        )
    return score


def _set_training(job: Job, training: bool) -> None:
    for module in job.modules.values():
        module.train(training)


def _run_epoch(
    job: Job,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    portions: Portions,
    tell: Callable[[str, Mapping[str, Any]], None],
) -> float:
    seed = seed_of(job.seed, "epoch", epoch)
    torch.manual_seed(seed)
    generator = torch.Generator(device=job.device).manual_seed(seed)
    _set_training(job, True)
    total, step = 0.0, epoch * job.n_batches
    for number, batch in enumerate(job.batches(epoch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(job.options, step, job.n_batches)
        place = f"epoch {epoch + 1}, batch {number + 1}"
        total += _compute_gradients(job, optimizer, batch, generator, portions, place)
        _check_gradients(job, batch, place)
        optimizer.step()
        step += 1
        tell(
            "batch_finished",
            {
                "where": job.where,
                "epoch": epoch + 1,
                "epochs": job.options.epochs,
                "batch": number + 1,
                "batches": job.n_batches,
            },
        )
    return total / max(1, job.n_batches)


def _compute_gradients(
    job: Job,
    optimizer: torch.optim.Optimizer,
    batch: Any,
    generator: torch.Generator,
    portions: Portions,
    place: str,
) -> float:
    """Leaves the gradients of a batch's loss in its parameters, and returns the loss.

    Each part of a batch weighs as many rows as it has. So a loss that is a mean over rows has the gradients
    of the whole batch; what looks at a batch as a whole (batch normalisation, a mean over observed cells)
    and random draws (dropout) see the part.
    """
    n_rows = job.n_rows_of(batch)

    def compute(part: slice) -> float:
        if part.start == 0:
            optimizer.zero_grad(set_to_none=True)
        is_whole = part.stop - part.start == n_rows
        some = batch if is_whole else job.take(batch, part)
        loss = _compute_loss(job, some, generator, place)
        if not is_whole:
            loss = loss * ((part.stop - part.start) / n_rows)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{job.where}: the loss is not finite ({value}) in {place}: {job.name_of(some)}. "
                f"{job.explain(some)}Lower the learning rate, or look at these rows."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return value

    return sum(portions.run(n_rows, compute))


def _compute_loss(job: Job, batch: Any, generator: torch.Generator, place: str) -> Tensor:
    try:
        loss = job.loss(batch, generator)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # torch's words in batch normalisation
            raise
        raise TrainingError(
            f"{job.where}: batch normalisation cannot learn from one row alone ({place}: "
            f"{job.name_of(batch)}). Use a larger batch_size, or parts without it."
        ) from error
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss if loss.ndim == 0 else loss.reshape(())
    given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    if isinstance(loss, Tensor) and loss.numel() == 1:
        given = "no parameter has a part in it"
    raise PluginError(
        f"{job.where}: the loss is no scalar that can be differentiated ({given}). Mend the plugin."
    )


def _check_gradients(job: Job, batch: Any, place: str) -> None:
    """Clips the gradients if asked to; raises TrainingError where one is not finite."""
    gradients = {p: p.grad for p in _parameters(job) if p.grad is not None}
    if not gradients:
        return
    if job.options.gradient_clip is not None:
        probe = nn.utils.clip_grad_norm_(list(gradients), job.options.gradient_clip)
    else:
        # quicker than a norm; where this sum is finite, so is every summand
        probe = torch.stack([gradient.sum() for gradient in gradients.values()]).sum()
    if math.isfinite(float(probe)):
        return
    for path, module in sorted(job.modules.items()):
        values = [p.grad for p in module.parameters() if p.grad is not None]
        # large values may overflow together, and be finite each
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise TrainingError(
                f"{job.where}: the gradient of {path} is not finite in {place}: {job.name_of(batch)}. "
                "Lower the learning rate, or look at these rows."
            )


def learning_rate(options: LoopOptions, step: int, n_batches: int) -> float:
    """Returns the learning rate of a step: a linear warm-up, then constant or a cosine to zero."""
    total = options.epochs * n_batches
    warmup = options.warmup_epochs * n_batches
    if step < warmup:
        return options.learning_rate * (step + 1) / (warmup + 1)
    if options.schedule == "constant":
        return options.learning_rate
    done = (step - warmup) / max(1.0, total - warmup)
    return options.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _parameters(job: Job) -> list[nn.Parameter]:
    return [parameter for path in sorted(job.modules) for parameter in job.modules[path].parameters()]


def make_optimizer(job: Job) -> torch.optim.Optimizer:
    """Builds the optimiser that the options name."""
    options, parameters = job.options, _parameters(job)
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=decay, fused=True)


def _state(job: Job) -> dict[str, Tensor]:
    return {
        f"{path}/{name}": tensor.detach().clone()
        for path, module in job.modules.items()
        for name, tensor in module.state_dict().items()
    }


def _load(job: Job, state: Mapping[str, Tensor]) -> None:
    for path, module in job.modules.items():
        prefix = f"{path}/"
        module.load_state_dict({n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)})


def _checkpoint(
    job: Job,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    best: Mapping[str, Tensor] | None,
    store: Store,
    address: str,
) -> None:
    tensors = {f"now/{name}": tensor for name, tensor in _state(job).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    store.put(f"checkpoints/{address}.safetensors", to_bytes(Artefact(tensors, vars(progress))))


def _restore(
    job: Job, optimizer: torch.optim.Optimizer, store: Store, address: str
) -> tuple[Progress, dict[str, Tensor] | None]:
    name = f"checkpoints/{address}.safetensors"
    if not store.verify(name):
        return Progress(), None
    checkpoint = read_artefact(store.path(name))
    groups: dict[str, dict[str, Tensor]] = {"now": {}, "best": {}}
    moments: dict[int, dict[str, Tensor]] = {}
    for key, tensor in checkpoint.tensors.items():
        kind, _, rest = key.partition("/")
        if kind == "optimizer":
            number, _, what = rest.partition("/")
            moments.setdefault(int(number), {})[what] = tensor
        else:
            groups[kind][rest] = tensor
    _load(job, groups["now"])
    for index, parameter in enumerate(_parameters(job)):
        for what, tensor in moments.get(index, {}).items():
            if tensor.shape == parameter.shape:
                # moments must have their parameter's strides: fused Adam on CPU is silently wrong without
                moments[index][what] = torch.empty_like(parameter, dtype=tensor.dtype).copy_(tensor)
    state = optimizer.state_dict()
    state["state"] = moments
    optimizer.load_state_dict(state)
    return Progress(**checkpoint.metadata), groups["best"] or None


def delete_checkpoint(store: Store, address: str) -> None:
    """Deletes the checkpoint of a stage that is done."""
    store.path(f"checkpoints/{address}.safetensors").unlink(missing_ok=True)
