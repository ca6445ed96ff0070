"""What must hold of every head."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch

from fusionkit.specs import HeadSpec
from fusionkit.testing.case import Case, check, is_same, require
from fusionkit.testing.inputs import MODALITIES

LARGE = 1000.0
BREACH = "what stands in an absent modality's row, or in a token that is none, reaches the output."


@check("head")
def check_presence(case: Case) -> None:
    """Whatever numbers stand in an absent modality's row, or in a token that is none, never reach the output.

    The core puts zeros there; a head that is used otherwise must not answer otherwise.
    """
    head = case.learned()
    features, present = case.batch()
    expected = case.run(head, (features, present))
    generator = torch.Generator().manual_seed(0)
    for name, values in features.items():
        other = values + LARGE * torch.randn(values.shape, generator=generator) * ~present[name][..., None]
        again = case.run(head, ({**features, name: other}, present))
        require(case, is_same(expected, again), BREACH)


@check("head")
def check_modalities(case: Case) -> None:
    """A head takes one modality or more, whatever order their features come in, and any number of outputs.

    One output is a number or a hazard, where the card's `tasks` have such. Every run tries each modality
    alone, with the same head. One that takes tokens also takes vectors, from modalities without any.
    """
    card = cast(HeadSpec, case.card)
    one = (1,) if card.can_do("regression") or card.can_do("survival") else ()
    for names in (["image"], ["image", "record"], [*MODALITIES]):
        for n_classes in (*one, 2, 4):
            few = replace(case, dims={name: MODALITIES[name] for name in names}, n_classes=n_classes)
            _try(few)
            if card.takes_tokens(case.config):
                _try(replace(few, tokens_of=()))


def _try(case: Case) -> None:
    head, (features, present) = case.learned(), case.batch()
    out = case.run(head, (features, present))
    said = f"for {len(features)} modalities and {case.n_classes} outputs"
    require(case, out.shape == (case.n_rows, case.n_classes), f"gives {tuple(out.shape)} {said}.")
    require(case, bool(torch.isfinite(out).all()), f"gives values that are not finite {said}.")
    again = case.run(head, ({name: features[name] for name in reversed(features)}, present))
    require(case, is_same(out, again), "answers otherwise where features come in another order.")
