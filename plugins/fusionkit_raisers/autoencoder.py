"""One autoencoder for three cards: plain, denoising, sparse and denoising."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import torch
from torch import Generator, Tensor, nn

if TYPE_CHECKING:
    from fusionkit_raisers import AutoencoderConfig

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class Autoencoder(nn.Module):
    """Maps (n, input_dim) to its code (n, output_dim); learns by restoring its input.

    A missing value (NaN) becomes zero, exactly what the corruption writes, and is left out of the loss.
    "Sparse" means sparse weights: the L1 norm of all learned parameters, not of the code.
    """

    def __init__(self, config: AutoencoderConfig, input_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, hidden[-1]
        self.corruption = getattr(config, "corruption", 0.0)
        self.rescale = getattr(config, "rescale", False)
        self.l1 = getattr(config, "l1", 0.0)
        self.reduction = config.reduction
        activation = ACTIVATIONS[config.activation]
        widths = [input_dim, *hidden]
        encoder: list[nn.Module] = []
        for before, after in pairwise(widths):
            encoder += [nn.Linear(before, after), activation()]
        decoder: list[nn.Module] = []
        for before, after in pairwise(widths[::-1]):
            decoder += [nn.Linear(before, after), activation()]
        self.encoder = nn.Sequential(*encoder)
        self.decoder = nn.Sequential(*decoder[:-1])

    def forward(self, features: Tensor) -> Tensor:
        """Returns the code, (n, output_dim)."""
        return cast(Tensor, self.encoder(features.nan_to_num(0.0)))

    def loss(self, inputs: Tensor, generator: Generator) -> Tensor:
        """Returns the squared error of restored observed fields, averaged over samples, plus l1 x L1 norm."""
        target = inputs.nan_to_num(0.0)
        kept = torch.rand(target.shape, generator=generator, device=target.device) >= self.corruption
        corrupted = target * kept / (1 - self.corruption if self.rescale else 1.0)
        observed = (~inputs.isnan()).float()
        errors: Tensor = (self.decoder(self.encoder(corrupted)) - target).square() * observed
        if self.reduction == "mean":
            error = (errors.sum(1) / observed.sum(1).clamp(min=1)).mean()
        else:
            error = errors.sum(1).mean()
        if self.l1 == 0:
            return error
        norm = torch.stack([parameter.abs().sum() for parameter in self.parameters()]).sum()
        return error + self.l1 * norm
