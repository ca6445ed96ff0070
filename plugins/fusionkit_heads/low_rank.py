"""Low-rank multimodal fusion of Liu et al. 2018: the outer product of all modalities, never computed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fusionkit_heads.concat import classifier
from fusionkit_heads.presence import blank_absent

if TYPE_CHECKING:
    from fusionkit_heads import LowRankConfig


class LowRank(nn.Module):
    """Maps (n, d) per modality to a low-rank map of their outer product (n, width), then to (n, output_dim).

    Each modality gets a one at its end, so that the outer product of all holds every product of some, too.
    An absent modality is that one alone: what stands without it remains.
    """

    def __init__(self, config: LowRankConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.modalities = tuple(input_dims)
        self.input_dropout = nn.Dropout(config.input_dropout)
        # a prefix: a modality may be called as a method of ParameterDict is
        self.factors = nn.ParameterDict(
            {
                f"of_{name}": nn.Parameter(torch.empty(config.rank, dim + 1, config.width))
                for name, dim in input_dims.items()
            }
        )
        # ours: the one weighs like all features together, or products would drown what each modality says
        # by itself; of standardised features, variance 1 after fusing for any rank and number of modalities
        for factor in self.factors.values():
            std = config.rank ** (-0.5 / len(input_dims)) * 0.5**0.5
            nn.init.normal_(factor[:, :-1], std=std * (factor.shape[1] - 1) ** -0.5)
            nn.init.normal_(factor[:, -1], std=std)
        self.bias = nn.Parameter(torch.zeros(config.width))
        self.classifier = classifier(
            [config.width, *config.hidden, output_dim], "relu", config.dropout, config.dropout
        )

    def fuse(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns the fused vector (n, width): per rank the product over modalities, then their sum."""
        products = self.bias.new_ones(())
        parts = blank_absent(features, present, self.modalities)
        for name, part in zip(self.modalities, parts, strict=True):
            with_one = torch.cat([self.input_dropout(part), part.new_ones(len(part), 1)], 1)
            products = products * torch.einsum("nd,rdw->nrw", with_one, self.factors[f"of_{name}"])
        return products.sum(1) + self.bias

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim)."""
        return cast(Tensor, self.classifier(self.fuse(features, present)))
