"""Simulated vectors, as of expression of genes: some numbers follow a latent, all are noisy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

import numpy as np

from fusionkit_pathoemr.fields import Array

if TYPE_CHECKING:
    from fusionkit_pathoemr.design import SimulatedFile


@dataclass(frozen=True)
class ProfileStyle:
    """One .npy file of `width` numbers, float32, each of standard deviation 1 over the cohort."""

    seed: int
    width: int
    signal: int
    slope: float
    suffix = ".npy"
    has_zoom = False

    def write(self, file: SimulatedFile, stream: IO[bytes]) -> None:
        """Writes one vector."""
        np.save(stream, self.draw(file).astype(np.float32), allow_pickle=False)

    def draw(self, file: SimulatedFile) -> Array:
        """Draws one vector (width,)."""
        loadings = self.loadings()
        noise = np.random.default_rng([*file.key, 7]).standard_normal(self.width)
        return (loadings * file.latent + noise) / np.sqrt(1 + loadings**2)

    def loadings(self) -> Array:
        """Returns how each number follows the latent (width,), the same for all subjects; mostly 0."""
        generator = np.random.default_rng([self.seed, 8])
        loadings = np.zeros(self.width)
        places = generator.permutation(self.width)[: self.signal]
        loadings[places] = np.where(np.arange(self.signal) % 2 == 0, self.slope, -self.slope)
        return loadings
