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

from fusionkit import interruption
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
class Loop:
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
    loop: Loop, store: Store, address: str, tell: Callable[[str, Mapping[str, Any]], None]
) -> list[dict[str, float]]:
    """Trains a loop's modules, continuing from its checkpoint if there is one; returns the history by epoch.

    Raises:
        TrainingError: A loss, a gradient or a weight is not finite; nothing of it is saved.
        ResourceError: Memory is full even for the smallest part of a batch.
        KeyboardInterrupt: A stop was asked for; what it got to is saved.
    """
    for module in loop.modules.values():
        module.requires_grad_(True)
    with interruption.postponed():
        progress, best = _run_epochs(loop, store, address, tell)
    if best is not None:
        _load(loop, best)
    _set_training(loop, False)
    for module in loop.modules.values():
        module.requires_grad_(False)
    return progress.history


def _run_epochs(
    loop: Loop, store: Store, address: str, tell: Callable[[str, Mapping[str, Any]], None]
) -> tuple[Progress, dict[str, Tensor] | None]:
    """Runs the epochs that are left; returns the progress, and the best weights under early stopping."""
    optimizer = make_optimizer(loop)
    progress, best = _restore(loop, optimizer, store, address)
    if progress.epoch:
        tell("stage_continued", {"where": loop.where, "epoch": progress.epoch, "epochs": loop.options.epochs})
    portions = Portions(loop.where, tell, progress.n_parts, fewest_rows(loop.modules))
    saved = time.monotonic()
    while progress.epoch < loop.options.epochs and not _is_over(loop, progress):
        loss = _run_epoch(loop, optimizer, progress.epoch, portions, tell)
        progress.epoch, progress.n_parts = progress.epoch + 1, portions.n_parts
        parts = {"parts": float(portions.n_parts)} if portions.n_parts > 1 else {}
        record = {"epoch": float(progress.epoch), "loss": loss, **parts}
        _check_weights(loop, progress.epoch)
        if loop.validate is not None:
            record["validation_loss"] = score = _validate(loop, loop.validate, progress.epoch)
            if score < progress.best_score:
                progress.best_score, progress.best_epoch = score, progress.epoch
                best = _state(loop)
        progress.history.append(record)
        tell("epoch_finished", {"where": loop.where, "epochs": loop.options.epochs, **record})
        is_due = time.monotonic() - saved > CHECKPOINT_SECONDS and progress.epoch < loop.options.epochs
        must_stop = interruption.is_asked()
        if is_due or must_stop:
            _checkpoint(loop, optimizer, progress, best, store, address)
            saved = time.monotonic()
        if must_stop:
            raise KeyboardInterrupt
    return progress, best


def _is_over(loop: Loop, progress: Progress) -> bool:
    return (
        loop.patience is not None
        and progress.epoch - progress.best_epoch >= loop.patience
        and progress.epoch > 0
    )


def _check_weights(loop: Loop, epoch: int) -> None:
    # a finite loss may have infinite gradients, and no further batch follows the last one
    for path, module in loop.modules.items():
        if not all(bool(torch.isfinite(parameter).all()) for parameter in module.parameters()):
            raise TrainingError(
                f"{loop.where}: the weights of {path} are not finite after epoch {epoch}. "
                "Lower the learning rate, or set gradient_clip."
            )


def _validate(loop: Loop, validate: Callable[[], float], epoch: int) -> float:
    _set_training(loop, False)
    score = validate()
    if not math.isfinite(score):
        raise TrainingError(
            f"{loop.where}: the validation loss is not finite ({score}) after epoch {epoch}. "
            "Lower the learning rate, or look at the validation rows."
        )
    return score


def _set_training(loop: Loop, training: bool) -> None:
    for module in loop.modules.values():
        module.train(training)


def _run_epoch(
    loop: Loop,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    portions: Portions,
    tell: Callable[[str, Mapping[str, Any]], None],
) -> float:
    seed = seed_of(loop.seed, "epoch", epoch)
    torch.manual_seed(seed)
    generator = torch.Generator(device=loop.device).manual_seed(seed)
    _set_training(loop, True)
    total, step = 0.0, epoch * loop.n_batches
    for number, batch in enumerate(loop.batches(epoch)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(loop.options, step, loop.n_batches)
        place = f"epoch {epoch + 1}, batch {number + 1}"
        total += _compute_gradients(loop, optimizer, batch, generator, portions, place)
        _check_gradients(loop, batch, place)
        optimizer.step()
        step += 1
        tell(
            "batch_finished",
            {
                "where": loop.where,
                "epoch": epoch + 1,
                "epochs": loop.options.epochs,
                "batch": number + 1,
                "batches": loop.n_batches,
            },
        )
    return total / max(1, loop.n_batches)


def _compute_gradients(
    loop: Loop,
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
    n_rows = loop.n_rows_of(batch)

    def compute(part: slice) -> float:
        if part.start == 0:
            optimizer.zero_grad(set_to_none=True)
        is_whole = part.stop - part.start == n_rows
        some = batch if is_whole else loop.take(batch, part)
        loss = _compute_loss(loop, some, generator, place)
        if not is_whole:
            loss = loss * ((part.stop - part.start) / n_rows)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(
                f"{loop.where}: the loss is not finite ({value}) in {place}: {loop.name_of(some)}. "
                f"{loop.explain(some)}Lower the learning rate, or look at these rows."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return value

    return sum(portions.run(n_rows, compute))


def _compute_loss(loop: Loop, batch: Any, generator: torch.Generator, place: str) -> Tensor:
    try:
        loss = loop.loss(batch, generator)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):  # torch's words in batch normalisation
            raise
        raise TrainingError(
            f"{loop.where}: batch normalisation cannot learn from one row alone ({place}: "
            f"{loop.name_of(batch)}). Use a larger batch_size, or parts without it."
        ) from error
    if isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad:
        return loss if loss.ndim == 0 else loss.reshape(())
    given = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    if isinstance(loss, Tensor) and loss.numel() == 1:
        given = "no parameter has a part in it"
    raise PluginError(
        f"{loop.where}: the loss is no scalar that can be differentiated ({given}). Mend the plugin."
    )


def _check_gradients(loop: Loop, batch: Any, place: str) -> None:
    """Clips the gradients if asked to; raises TrainingError where one is not finite."""
    gradients = {p: p.grad for p in _parameters(loop) if p.grad is not None}
    if not gradients:
        return
    if loop.options.gradient_clip is not None:
        probe = nn.utils.clip_grad_norm_(list(gradients), loop.options.gradient_clip)
    else:
        # quicker than a norm; where this sum is finite, so is every summand
        probe = torch.stack([gradient.sum() for gradient in gradients.values()]).sum()
    if math.isfinite(float(probe)):
        return
    for path, module in sorted(loop.modules.items()):
        values = [p.grad for p in module.parameters() if p.grad is not None]
        # large values may overflow together, and be finite each
        if not all(bool(torch.isfinite(value).all()) for value in values):
            raise TrainingError(
                f"{loop.where}: the gradient of {path} is not finite in {place}: {loop.name_of(batch)}. "
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


def _parameters(loop: Loop) -> list[nn.Parameter]:
    return [parameter for path in sorted(loop.modules) for parameter in loop.modules[path].parameters()]


def make_optimizer(loop: Loop) -> torch.optim.Optimizer:
    """Builds the optimiser that the options name."""
    options, parameters = loop.options, _parameters(loop)
    rate, decay = options.learning_rate, options.weight_decay
    if options.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
    kind = torch.optim.AdamW if options.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, rate, weight_decay=decay, fused=True)


def _state(loop: Loop) -> dict[str, Tensor]:
    return {
        f"{path}/{name}": tensor.detach().clone()
        for path, module in loop.modules.items()
        for name, tensor in module.state_dict().items()
    }


def _load(loop: Loop, state: Mapping[str, Tensor]) -> None:
    for path, module in loop.modules.items():
        prefix = f"{path}/"
        module.load_state_dict({n[len(prefix) :]: t for n, t in state.items() if n.startswith(prefix)})


def _checkpoint(
    loop: Loop,
    optimizer: torch.optim.Optimizer,
    progress: Progress,
    best: Mapping[str, Tensor] | None,
    store: Store,
    address: str,
) -> None:
    tensors = {f"now/{name}": tensor for name, tensor in _state(loop).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer/{index}/{name}": torch.as_tensor(value) for name, value in state.items()}
    store.put(f"checkpoints/{address}.safetensors", to_bytes(Artefact(tensors, vars(progress))))


def _restore(
    loop: Loop, optimizer: torch.optim.Optimizer, store: Store, address: str
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
    _load(loop, groups["now"])
    for index, parameter in enumerate(_parameters(loop)):
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
