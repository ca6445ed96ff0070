"""The head: it fits a classifier, keeps numbers and text of it only, and answers from those."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save
from torch import Tensor, nn

from fusionkit import DataError, IntegrityError, PluginError
from fusionkit_sklearn import SklearnConfig
from fusionkit_sklearn.forests import FloatArray
from fusionkit_sklearn.models import MODELS, Training

FLOOR = 1e-7
"""The least probability that has a logarithm: a forest may say 0, and logits are finite."""

Joined = tuple[Mapping[str, Tensor], Mapping[str, Tensor]]


class SklearnHead(nn.Module):
    """Joins (n, d) per modality, in recipe order, and maps them to log probabilities (n, output_dim).

    All that is learned is one uint8 tensor, a safetensors file of arrays: `fit` writes it, and answers come
    from what is read back, so that they are the same before and after the store.
    """

    def __init__(self, config: SklearnConfig, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.config, self.output_dim = config, output_dim
        self.input_dims = dict(input_dims)
        self.arrays: dict[str, NDArray[Any]] = {}
        # with the versions in it, even before a fit: the initial state determines the address
        self.learned = self._pack({})

    def fit(
        self, inputs: Joined, targets: Tensor | None = None, *, seed: int, samples: Tensor | None = None
    ) -> Self:
        """Learns from features, absent rows zero, and class codes (n,); forgets an earlier fit.

        `samples` (n,) are equal where two rows are views or draws of one; without them every row is its own.
        """
        if targets is None:
            raise PluginError("sklearn: learns from outcomes only (none given).")
        rows, codes = self._join(*inputs), targets.cpu().numpy()
        counts = np.bincount(codes, minlength=self.output_dim)
        if counts.min() < 2:
            given = ", ".join(map(str, counts))
            raise DataError(
                f"head: sklearn needs two training rows of every class (there are {given}). Use more data "
                "or fewer folds; where only one class has a modality, set evaluation.modalities_alone: false."
            )
        arrays: dict[str, NDArray[Any]] = {}
        if self.config.pca is not None:
            arrays |= fit_pca(rows, self.config.pca)
            rows = project(arrays, rows)
        training = Training(
            rows,
            codes,
            self.output_dim,
            seed % 2**31,
            tuple(self.input_dims.values()),
            None if samples is None else samples.cpu().numpy(),
        )
        found = MODELS[self.config.model].fit(self.config, training)
        arrays |= {f"model.{name}": np.ascontiguousarray(values) for name, values in found.items()}
        self._take(self._pack(arrays))
        return self

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Returns the logarithms of the classes' probabilities, (n, output_dim)."""
        if not self.arrays:
            raise PluginError("sklearn: not fitted yet. Name the head in a fit or train stage.")
        device = next(iter(features.values())).device
        rows = project(self.arrays, self._join(features, present))
        if not len(rows):
            return torch.zeros(0, self.output_dim, device=device)
        prefix = "model."
        own = {name[len(prefix) :]: v for name, v in self.arrays.items() if name.startswith(prefix)}
        probabilities = MODELS[self.config.model].probabilities(own, rows, self.output_dim)
        logits = np.log(np.maximum(probabilities, FLOOR))
        return torch.from_numpy(logits.astype(np.float32)).to(device)

    def get_extra_state(self) -> Tensor:
        """Returns all that was learned, as bytes."""
        return torch.from_numpy(np.frombuffer(self.learned, dtype=np.uint8).copy())

    def set_extra_state(self, state: Tensor) -> None:
        """Takes what `get_extra_state` gave; raises IntegrityError if it is anything else."""
        self._take(state.cpu().numpy().tobytes())

    def _pack(self, arrays: dict[str, NDArray[Any]]) -> bytes:
        # one entry: safetensors writes several in an order that is drawn anew each time
        described = {"identity": self._identity(), "made_with": self._libraries()}
        return save(arrays, {"head": json.dumps(described, sort_keys=True)})

    def _take(self, data: bytes) -> None:
        try:
            header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
            identity = json.loads(header["__metadata__"]["head"])["identity"]
            arrays = load(data)
        except (SafetensorError, ValueError, LookupError, TypeError) as error:
            raise IntegrityError(
                f"head: what sklearn learned cannot be read ({error}). Run the recipe again."
            ) from None
        if identity != self._identity():
            raise IntegrityError(
                f"head: what sklearn learned is another model's ({identity}). Run the recipe again."
            )
        self.learned, self.arrays = data, arrays

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.config.model,
            "widths": list(self.input_dims.values()),
            "classes": self.output_dim,
        }

    def _libraries(self) -> dict[str, str]:
        """Returns the versions of what a fit computes with; another one may learn other numbers."""
        fits = "lightgbm" if self.config.model == "boosted_trees" else "scikit-learn"
        names = {fits} if self.config.pca is None else {fits, "scikit-learn"}
        return {name: version(name) for name in sorted(names)}

    def _join(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> FloatArray:
        """Returns (n, sum of widths), zero wherever a row lacks a modality, whatever stood there."""
        there = [
            features[name].detach().masked_fill(~present[name][:, None], 0.0) for name in self.input_dims
        ]
        joined = torch.cat(there, 1)
        return joined.cpu().double().numpy()


def fit_pca(rows: FloatArray, n_components: int) -> dict[str, NDArray[Any]]:
    """Returns mean and components of rows (n, d), no more than the rows have."""
    from sklearn.decomposition import PCA

    pca = PCA(min(n_components, *rows.shape), svd_solver="full").fit(rows)
    return {"pca.mean": pca.mean_, "pca.components": np.ascontiguousarray(pca.components_)}


def project(arrays: Mapping[str, NDArray[Any]], rows: FloatArray) -> FloatArray:
    """Returns rows (n, d) as principal components, if there are any."""
    if "pca.mean" not in arrays:
        return rows
    projected: FloatArray = (rows - arrays["pca.mean"]) @ arrays["pca.components"].T
    return projected
