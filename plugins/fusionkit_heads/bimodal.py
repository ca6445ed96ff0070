"""The bimodal deep autoencoder of Ngiam et al. 2011, for any number of modalities, with a classifier."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

import torch
from torch import Generator, Tensor, nn

from fusionkit import PluginError
from fusionkit_heads.concat import classifier
from fusionkit_heads.presence import blank_absent

if TYPE_CHECKING:
    from fusionkit_heads import BimodalAutoencoderConfig

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}
Joined = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


class BimodalAutoencoder(nn.Module):
    """Maps (n, d) per modality to a shared code, from that to (n, output_dim).

    `loss` teaches the code: all modalities are restored from all of them, and from each one alone while the
    others are zero. A `train` stage teaches the classifier, and what gives the code only with `finetune`.
    """

    is_fitted: Tensor

    def __init__(
        self, config: BimodalAutoencoderConfig, input_dims: Mapping[str, int], output_dim: int
    ) -> None:
        super().__init__()
        self.modalities, self.finetune = tuple(input_dims), config.finetune
        width = config.hidden

        def activation() -> nn.Module:
            return ACTIVATIONS[config.activation]()

        # prefixes: a modality may be called as a method of ModuleDict is
        self.encoders = nn.ModuleDict(
            {
                f"of_{name}": nn.Sequential(nn.Linear(dim, width), activation())
                for name, dim in input_dims.items()
            }
        )
        self.joint = nn.Sequential(nn.Linear(width * len(input_dims), config.code), activation())
        self.decoders = nn.ModuleDict(
            {
                f"of_{name}": nn.Sequential(
                    nn.Linear(config.code, width), activation(), nn.Linear(width, dim)
                )
                for name, dim in input_dims.items()
            }
        )
        self.classifier = classifier(
            [config.code, *config.classifier, output_dim], "relu", config.dropout, config.dropout
        )
        self.register_buffer("is_fitted", torch.tensor(False))

    def code(self, features: Mapping[str, Tensor]) -> Tensor:
        """Returns the shared code (n, code) of features (n, d) by modality, zero where one is absent."""
        parts = [self.encoders[f"of_{name}"](features[name]) for name in self.modalities]
        return cast(Tensor, self.joint(torch.cat(parts, 1)))

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns (n, output_dim); raises PluginError where the code was never learned, and never will be."""
        if not self.finetune and not self.is_fitted:
            raise PluginError(
                "bimodal_autoencoder: its code was never learned. Name the head in a fit stage before the "
                "train stage, or set finetune: true."
            )
        there = blank_absent(features, present, self.modalities)
        code = self.code(dict(zip(self.modalities, there, strict=True)))
        return cast(Tensor, self.classifier(code if self.finetune else code.detach()))

    def loss(self, inputs: Joined, generator: Generator) -> Tensor:
        """Returns the squared error of restored features, the mean over modalities and over what was given.

        Each modality counts as a mean over its features, so that a wide one does not outweigh a narrow one.
        Rows that lack a modality are not asked to restore it, nor to restore others from it alone.
        """
        self.is_fitted.fill_(True)
        features, present = inputs
        whole = dict(features)
        given = [(whole, torch.stack(list(present.values()), 1).any(1))]
        if len(self.modalities) > 1:
            given += [(self._alone(whole, name), present[name]) for name in self.modalities]
        return torch.stack([self._error(some, whole, present, rows) for some, rows in given]).mean()

    @staticmethod
    def _alone(features: Mapping[str, Tensor], kept: str) -> dict[str, Tensor]:
        return {
            name: values if name == kept else torch.zeros_like(values) for name, values in features.items()
        }

    def _error(
        self,
        given: Mapping[str, Tensor],
        whole: Mapping[str, Tensor],
        present: Mapping[str, Tensor],
        rows: Tensor,
    ) -> Tensor:
        code = self.code(given)
        errors = []
        for name in self.modalities:
            counts = (present[name] & rows).float()
            error = (self.decoders[f"of_{name}"](code) - whole[name]).square().mean(1)
            errors.append((error * counts).sum() / counts.sum().clamp(min=1))
        return torch.stack(errors).mean()
