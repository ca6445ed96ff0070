"""Modality dropout: train stages take modalities away from samples, as if they had never been there."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fusionkit.data.batches import Kept, Units, draw_seed
from fusionkit.training.experiment import Experiment

_BITS = 63
"""Of a draw's seed."""


class ModalityDropout:
    """Draws, for each sample and draw, which of its modalities are taken away; its views share the answer.

    A modality's number in [0, 1) is hash(seed, content keys of all the sample's modalities, modality, draw),
    and below its share it goes. So nothing depends on the order of rows, on batches or on workers. A sample
    that would lose all that it has keeps the one whose number is the largest part of its share. (That rule,
    and that modalities go independently, is ours; taking whole modalities away is Neverova et al. 2016's.)

    Source: Neverova et al. 2016, ModDrop: adaptive multi-modal gesture recognition,
        doi:10.1109/TPAMI.2015.2461544
    """

    def __init__(self, experiment: Experiment) -> None:
        recipe = experiment.factory.loaded.recipe
        self.seed, self.shares = recipe.seed, recipe.dropouts
        self.readers = {name: experiment.reader(name) for name in experiment.modalities}

    def keep(self, units: Units) -> Kept:
        """Returns by modality which units (n,) have it, and keep it."""
        here = np.stack([reader.present(units.rows) for reader in self.readers.values()])
        if self.shares:
            here = here & ~self._taken(units, here)
        return dict(zip(self.readers, here, strict=True))

    def _taken(self, units: Units, here: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Returns which of the present modalities (k, n) are taken away."""
        scores = np.full(here.shape, np.inf)
        contents = self._contents(units)
        for index, name in enumerate(self.readers):
            if name in self.shares:
                numbers = [
                    draw_seed(self.seed, content, f"dropout {name}", draw) / 2**_BITS
                    for content, draw in zip(contents, units.draws.tolist(), strict=True)
                ]
                scores[index] = np.array(numbers) / self.shares[name]
        taken = here & (scores < 1)
        emptied = np.flatnonzero((taken == here).all(0))
        taken[np.where(here, scores, -1.0).argmax(0)[emptied], emptied] = False
        return taken

    def _contents(self, units: Units) -> list[bytes]:
        """Returns what tells samples apart: the content keys of all modalities, whatever their order."""
        keys = [self.readers[name].keys(units.rows) for name in sorted(self.readers)]
        return [b"".join(key.tobytes() for key in of_row) for of_row in zip(*keys, strict=True)]
