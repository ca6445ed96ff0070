"""Which rows an epoch has where classes are balanced."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def balanced_rows(classes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Returns n places of rows, as many of each class as of any other, or one more.

    Within a class every row comes as often as any other, or once more.
    """
    present = rng.permutation(np.unique(classes))  # who gets one more is drawn anew
    shares = np.arange(len(classes) + len(present) - 1, len(classes) - 1, -1) // len(present)
    chosen = []
    for name, share in zip(present, shares, strict=True):
        members = np.flatnonzero(classes == name)
        times, rest = divmod(int(share), len(members))
        chosen += [np.tile(members, times), rng.permutation(members)[:rest]]
    return np.concatenate(chosen)
