"""Tokens on their way from an encoder to a head: as one vector per row, since stores hold vectors."""

from __future__ import annotations

import torch
from torch import Tensor

PACKED_VERSION = 1
"""Part of the addresses of what has tokens: raised when the same ones would be packed otherwise."""


def pack_tokens(values: Tensor, mask: Tensor, n_tokens: int) -> Tensor:
    """Joins tokens and what says which of them are there, filled up with zeros that are not.

    Shape:
        values (n, k, d), mask (n, k), k at most n_tokens -> (n, n_tokens * (d + 1))
    """
    n_rows, n_given, dim = values.shape
    packed = values.new_zeros(n_rows, n_tokens, dim + 1)
    packed[:, :n_given, :-1] = torch.where(mask[..., None], values, 0.0)
    packed[:, :n_given, -1] = mask
    return packed.flatten(1)


def unpack_tokens(packed: Tensor, n_tokens: int) -> tuple[Tensor, Tensor]:
    """Returns tokens (n, n_tokens, d), zero where there is none, and which are there, (n, n_tokens)."""
    values = packed.reshape(len(packed), n_tokens, packed.shape[1] // n_tokens)
    return values[..., :-1], values[..., -1] > 0


def has_same_tokens(packed: Tensor, other: Tensor, n_tokens: int) -> bool:
    """Says whether the same tokens are there, whatever they hold; so where nothing is packed (0)."""
    if not n_tokens:
        return True
    return torch.equal(unpack_tokens(packed, n_tokens)[1], unpack_tokens(other, n_tokens)[1])
