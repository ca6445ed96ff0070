"""What an absent modality gives: zeros."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def blank_absent(
    features: Mapping[str, Tensor], present: Mapping[str, Tensor], modalities: Iterable[str]
) -> list[Tensor]:
    """Returns (n, d), or tokens (n, k, d), per modality, zero where it is absent: it reaches nothing then."""
    return [torch.where(present[name][..., None], features[name], 0.0) for name in modalities]


def stack_present(present: Mapping[str, Tensor], modalities: Iterable[str]) -> Tensor:
    """Returns (n, modalities), true where one counts; a row with nothing at all counts all.

    Weights of what counts can then always be normalised. What counts in an empty row is zero features.
    """
    here = torch.stack([present[name] for name in modalities], 1)
    return here | ~here.any(1, keepdim=True)
