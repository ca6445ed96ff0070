"""What must hold of parts that learn: by `fit`, by `loss`, by gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fusionkit.errors import PluginError
from fusionkit.model import state_digest
from fusionkit.testing.case import Case, DoesNotApplyError, check, is_same, require

PARTS = ("encoder", "raiser", "head")
SEEDS = (0, 1, 2)
N_STEPS = 2
RATE = 0.01


@check(*PARTS, learns=("closed_form",))
def check_refuses_before_fit(case: Case) -> None:
    """A closed-form part raises `PluginError` in `forward` before it was fitted."""
    part, batch = case.build(), case.batch()
    try:
        with torch.no_grad():
            part(*batch) if case.kind == "head" else part(batch)
    except PluginError:
        return
    require(case, False, "answers before it was fitted. Raise PluginError.")


@check(*PARTS, learns=("closed_form",))
def check_fit_is_repeatable(case: Case) -> None:
    """`fit` returns `self`; the same seed and rows give the same state, whatever else was drawn before."""
    digests = []
    for noise in (0, 1):
        part = case.build()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            given = case.fit(part)
        require(case, given is part, f"`fit` returns {type(given).__name__}, and `self` is due.")
        digests.append(state_digest(part))
    require(case, digests[0] == digests[1], "two fits with one seed differ. Draw from `seed` only.")


@check(*PARTS, learns=("closed_form",))
def check_fit_forgets(case: Case) -> None:
    """`fit` forgets an earlier fit."""
    fresh, used = case.build(), case.build()
    case.fit(used, range(case.n_rows // 2), seed=1)
    for part in (fresh, used):
        case.fit(part)
    require(case, state_digest(fresh) == state_digest(used), "a second `fit` remembers the first.")


@check(*PARTS, learns=("closed_form",))
def check_fit_keeps_widths(case: Case) -> None:
    """`fit` changes neither `output_dim` nor the shapes of the state; torch's extra state may grow."""
    part = case.build()
    before = _widths(part)
    case.fit(part)
    changed = [name for name, width in _widths(part).items() if before.get(name) != width]
    require(case, not changed, f"`fit` changes the width of {', '.join(changed)}. Know it when built.")


def _widths(part: nn.Module) -> dict[str, Any]:
    state = {name: value for name, value in part.state_dict().items() if not name.endswith("_extra_state")}
    shapes: dict[str, Any] = {name: tuple(value.shape) for name, value in state.items()}
    return shapes | {"output_dim": getattr(part, "output_dim", None)}


@check(*PARTS, learns=("self_supervised",))
def check_loss(case: Case) -> None:
    """`loss` is a finite scalar with a gradient; so with NaN, where the card accepts missing values."""
    part = case.build().train().requires_grad_(True)
    batch = case.batch()
    found = case.loss(part, batch)
    is_scalar = isinstance(found, Tensor) and found.ndim == 0 and found.requires_grad
    require(case, is_scalar, "`loss` gives no scalar tensor that can be differentiated.")
    require(case, bool(torch.isfinite(found)), "`loss` is not finite.")
    if getattr(case.card, "accepts_missing", False):
        batch[::2, 0] = torch.nan
        is_finite = bool(torch.isfinite(case.loss(part, batch)))
        require(case, is_finite, "`loss` is not finite for NaN (accepts_missing).")


@check(*PARTS, learns=("self_supervised",))
def check_loss_is_repeatable(case: Case) -> None:
    """`loss` draws all its random numbers from the `generator` that it is given."""
    part, batch, found = case.build().train(), case.batch(), []
    for noise in (0, 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise)
            found.append(case.loss(part, batch).detach())
    require(case, is_same(*found), "`loss` differs although its generator is the same. Draw from it only.")


@check(*PARTS, learns=("gradient", "self_supervised"))
def check_every_parameter_learns(case: Case) -> None:
    """Every parameter gets a gradient: from outcomes, its own `loss`, a pretrain stage, or `tokens`."""
    dead: set[str] = set()
    for seed in SEEDS:  # a ReLU may be off for all rows by chance
        still = _without_gradient(case, seed)
        dead = still if seed == SEEDS[0] else dead & still
        if not dead:
            return
    named = ", ".join(sorted(dead))
    require(case, False, f"parameters that no loss changes: {named}. Use them, or make them buffers.")


def _without_gradient(case: Case, seed: int) -> set[str]:
    """Returns the parameters without a gradient; a scale that starts at zero hides others in the first."""
    part = case.build(seed).train().requires_grad_(True)
    dead = dict(part.named_parameters())
    if not dead:
        raise DoesNotApplyError("it has no parameters")
    optimiser = torch.optim.SGD(part.parameters(), RATE)
    for _ in range(N_STEPS):
        optimiser.zero_grad()
        for value in _losses(case, part):
            if value.requires_grad:
                value.sum().backward()  # type: ignore[no-untyped-call]
        dead = {name: value for name, value in dead.items() if value.grad is None or not value.grad.any()}
        if not dead:
            break
        optimiser.step()
    return set(dead)


def _losses(case: Case, part: Any) -> list[Tensor]:
    batch, found = case.batch(), []
    if case.learns == "self_supervised":
        found.append(case.loss(part, batch))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # dropout draws
        out = case.forward(part, batch)
        if case.kind == "head":
            return [*found, nn.functional.cross_entropy(out, case.targets)]
        outs = [out, part.pretraining_features(batch)] if hasattr(part, "pretraining_features") else [out]
        outs += case.tokens(part, batch)[:1] if case.gives_tokens else ()
        return [*found, *((value - torch.randn_like(value)).square().mean() for value in outs)]
