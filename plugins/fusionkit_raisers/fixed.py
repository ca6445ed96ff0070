"""Raisers with nothing to learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fusionkit import RecipeError


def _fill_up(features: Tensor, width: int) -> Tensor:
    """Repeats the columns until there are `width` of them."""
    repeats = -(-width // features.shape[1])
    return features.repeat(1, repeats)[:, :width]


class Copy(nn.Module):
    """Repeats the vector, perhaps multiplied: (n, input_dim) -> (n, output_dim)."""

    def __init__(self, input_dim: int, output_dim: int, factor: float = 1.0) -> None:
        super().__init__()
        if output_dim < input_dim:
            raise RecipeError(
                f"copy: output is narrower than the input ({output_dim} < {input_dim}). Widen it."
            )
        self.input_dim, self.output_dim = input_dim, output_dim
        self.factor = factor

    def forward(self, features: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        return _fill_up(features, self.output_dim) * self.factor


class Polynomial(nn.Module):
    """One, all fields, products of pairs, squares, filled up by copying: 29 -> 465 -> output_dim."""

    def __init__(self, input_dim: int, output_dim: int | None) -> None:
        super().__init__()
        natural = 1 + 2 * input_dim + input_dim * (input_dim - 1) // 2
        if output_dim is not None and output_dim < natural:
            raise RecipeError(
                f"polynomial: output is narrower than the terms ({output_dim} < {natural} for {input_dim} "
                "fields). Widen it, or set it to null."
            )
        self.input_dim, self.output_dim = input_dim, output_dim or natural

    def forward(self, features: Tensor) -> Tensor:
        """Returns (n, output_dim)."""
        first, second = torch.triu_indices(self.input_dim, self.input_dim, 1, device=features.device)
        terms = [features.new_ones(len(features), 1), features]
        terms += [features[:, first] * features[:, second], features.square()]
        return _fill_up(torch.cat(terms, 1), self.output_dim)
