"""What must hold of every encoder, raiser and head: shapes, rows, state, devices, missing values."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from fusionkit.errors import one_line
from fusionkit.interfaces import Fittable, SelfSupervised
from fusionkit.model import check_features, describe, state_digest
from fusionkit.testing.case import NEIGHBOURS, BreachError, Case, DoesNotApplyError, check, is_same, require
from fusionkit.testing.inputs import blank
from fusionkit.training.checks import is_close
from fusionkit.training.device import Device
from fusionkit.training.memory import count_rows, take_rows

PARTS = ("encoder", "raiser", "head")
ROWS_ALONE = 8


@check(*PARTS)
def check_learns(case: Case) -> None:
    """The card's `learns` says what the module has: `fit`, `loss`, parameters, or none of the methods."""
    part = case.build()
    has = {"fit": isinstance(part, Fittable), "loss": isinstance(part, SelfSupervised)}
    due = {"closed_form": "fit", "self_supervised": "loss"}.get(case.learns)
    if due is not None:
        require(case, has[due], f"it has no method `{due}` (learns: {case.learns}).")
    elif case.learns == "gradient":
        require(case, any(True for _ in part.parameters()), "it has no parameters (learns: gradient).")
    else:
        found = [name for name, is_there in has.items() if is_there]
        require(case, not found, f"it has a method `{'`, `'.join(found)}` (learns: nothing).")


@check(*PARTS)
def check_build_is_repeatable(case: Case) -> None:
    """One seed of torch's global generator, two builds: the same state."""
    with torch.random.fork_rng(devices=[]):
        first, again = (state_digest(case.build(seed=1)) for _ in range(2))
    require(case, first == again, "two builds from one seed differ. Draw from torch's global generator only.")


@check(*PARTS)
def check_output(case: Case) -> None:
    """The output is (n, `output_dim`) float32 (an encoder of files: any float), finite, a row for each.

    So for one row and for none, too. A head's is (n, classes).
    """
    part = case.learned()
    if case.kind == "raiser":
        given = getattr(part, "input_dim", None)
        require(case, given == case.batch().shape[1], f"its `input_dim` is not what `build` got ({given}).")
    for n_rows in (case.n_rows, 1):
        _check_shape(case, part, case.batch(range(n_rows)), n_rows)
    nothing = _no_rows(case)
    if nothing is not None:
        _check_shape(case, part, nothing, 0)


def _no_rows(case: Case) -> Any:
    """Returns a batch of no rows, or None where rows of a raw batch cannot be told apart."""
    batch = case.batch()
    return take_rows(batch, slice(0, 0)) if count_rows(batch) == case.n_rows else None


def _check_shape(case: Case, part: nn.Module, batch: Any, n_rows: int) -> None:
    out = case.run(part, batch)
    if case.kind != "head":
        dim = getattr(part, "output_dim", None)
        require(case, isinstance(dim, int) and dim > 0, f"its `output_dim` is no width ({dim!r}).")
        check_features(case.id, part, out, n_rows)
    is_right = out.shape[0] == n_rows and (case.kind != "head" or out.shape == (n_rows, case.n_classes))
    if not is_right or not out.is_floating_point():
        raise BreachError(f"{case.id}: gives {describe(out)}, and {n_rows} rows of floats are due.")
    require(case, bool(torch.isfinite(out).all()), f"gives values that are not finite for {n_rows} rows.")


@check(*PARTS)
def check_rows_are_independent(case: Case) -> None:
    """Frozen, a row's output does not depend on its neighbours in the batch, nor on its place there.

    Batches are made anew for it, in pairs and in reverse: what `collate` pads counts, too.
    """
    part = case.learned()
    n_rows = 2 * (min(ROWS_ALONE, case.n_rows) // 2)
    expected = case.run(part, case.batch())[:n_rows]
    pairs = [[row, n_rows - 1 - row] for row in range(n_rows // 2)]
    is_kept = all(
        is_close(expected[rows], case.run(part, case.batch(rows)), tolerance=NEIGHBOURS)
        for rows in (*pairs, list(range(n_rows))[::-1])
    )
    require(
        case,
        is_kept,
        "gives other values for the same rows in another batch. Look at each row alone, and mask what "
        "`collate` has padded, in every layer.",
    )


@check(*PARTS)
def check_state_is_complete(case: Case) -> None:
    """All that a part learned is in `state_dict()`: another copy that loads it answers alike.

    It holds tensors only, goes through safetensors, and its shapes are known when the part is built.
    """
    part, other = case.learned(seed=0), case.build(seed=1)
    for name, value in part.state_dict().items():
        require(case, isinstance(value, Tensor), f"{name} in its state is {type(value).__name__}, no tensor.")
    data = save({name: value.detach().clone().contiguous() for name, value in part.state_dict().items()})
    try:
        other.load_state_dict(load(data))
    except RuntimeError as error:
        reason = one_line(error)
        raise BreachError(f"{case.id}: a new copy cannot load its state ({reason}).") from error
    batch = case.batch()
    is_kept = is_same(case.run(part, batch), case.run(other.eval(), batch))
    require(case, is_kept, "another copy with its state answers otherwise. Keep all of it in buffers.")


@check(*PARTS)
def check_frozen_stays_frozen(case: Case) -> None:
    """Frozen, a part keeps nothing between calls and draws no random numbers: state and answers stay.

    So in `tokens`, too, where it gives them.
    """
    part, batch = case.learned(), case.batch()
    before, drawn = state_digest(part), _global_generators()
    first = case.run(part, batch)
    if case.gives_tokens:
        with torch.no_grad():
            case.tokens(part, batch)
    require(case, _global_generators() == drawn, "draws random numbers although it is frozen.")
    case.run(part, case.batch(range(2)))
    again = case.run(part, batch)
    require(case, state_digest(part) == before, "its state changes in `forward` although it is frozen.")
    require(case, is_same(first, again), "gives other values for the same batch later. Keep nothing.")


def _global_generators() -> tuple[bytes, str, Any]:
    return torch.random.get_rng_state().numpy().tobytes(), str(np.random.get_state()), random.getstate()


@check("raiser", "encoder")
def check_missing_values(case: Case) -> None:
    """Missing values come and go as the card says.

    A raiser that `accepts_missing` gives finite values for NaN. An encoder gives NaN for missing cells only
    where `emits_missing` says so, and never infinity.
    """
    part = case.learned()
    if case.kind == "raiser":
        if not getattr(case.card, "accepts_missing", False):
            raise DoesNotApplyError("its card does not say that it accepts missing values")
        batch = case.batch()
        for row in range(case.n_rows):
            batch[row, row % batch.shape[1]] = torch.nan
        batch[0] = torch.nan
        is_finite = bool(torch.isfinite(case.run(part, batch)).all())
        require(case, is_finite, "gives values that are not finite for NaN (accepts_missing).")
        return
    blanked = [row for row in blank(case.cells) if case.input_spec.content_key(row) is not None]
    if not blanked or len(case.columns) == 1:
        raise DoesNotApplyError("it reads one column: a row that lacks it is absent, and never comes in")
    out = case.run(part, case.collate(blanked, range(len(blanked))))
    emits = bool(getattr(case.card, "emits_missing")(case.config))  # noqa: B009
    is_kept = not bool(torch.isinf(out).any()) if emits else bool(torch.isfinite(out).all())
    require(
        case, is_kept, f"gives values that are not finite where cells are missing (emits_missing: {emits})."
    )


@check(*PARTS)
def check_device(case: Case) -> None:
    """A part moves between devices: all its tensors are parameters or buffers, new ones are made where it is.

    `tokens` move with it.
    Without a GPU this is tried on torch's meta device, where a part that computes from values cannot go.
    """
    part, batch = case.learned(), case.batch()
    expected = case.run(part, batch)
    target = "cuda" if torch.cuda.is_available() else "meta"
    try:
        moved = Device(target, "fp32", 1, "the kit").move(batch)
        out = case.run(part.to(target), moved)
        if case.gives_tokens:
            with torch.no_grad():
                case.tokens(part, moved)
    except Exception as error:
        reason = str(error)
        if any(words in reason for words in ("expected device", "same device", "different device")):
            raise BreachError(f"{case.id}: cannot move to another device ({one_line(error)}).") from error
        if target == "cuda":
            raise
        raise DoesNotApplyError("no GPU is here, and it computes from values, which meta has not") from None
    require(case, out.device.type == target, f"after a move it answers elsewhere ({out.device}).")
    if target == "cuda":
        require(case, is_close(expected, out.cpu()), "answers otherwise on a GPU.")
