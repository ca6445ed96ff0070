"""How one field of a simulated record depends on a latent, and which of its cells are blanked."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Codes = NDArray[np.int64]

_NORMAL = NormalDist()


@dataclass(frozen=True)
class FieldModel:
    """How a field of few values depends on a latent r.

    Args:
        shares: Probability of each code at r = 0.
        slope: A number for a graded field: above 0, higher codes go with a higher r. One per code for an
            unordered field: what each adds to its log odds per unit of r.
    """

    shares: tuple[float, ...]
    slope: float | tuple[float, ...]

    def probabilities(self, r: Array) -> Array:
        """Returns p(code | r). Shape: (k,) -> (codes, k)."""
        if isinstance(self.slope, tuple):
            odds = np.log(self.shares)[:, None] + np.outer(self.slope, r)
            weights = np.exp(odds - odds.max(axis=0))
            return np.asarray(weights / weights.sum(axis=0))
        below = [[_NORMAL.cdf(cut - self.slope * float(x)) for x in r] for cut in self._cuts()]
        return np.diff(np.stack([np.zeros_like(r), *np.asarray(below), np.ones_like(r)]), axis=0)

    def draw(self, r: Array, generator: np.random.Generator) -> Codes:
        """Draws one code per value of r. Shape: (n,) -> (n,)."""
        if isinstance(self.slope, tuple):
            below = np.cumsum(self.probabilities(r), axis=0)[:-1]
            return np.asarray((generator.random(len(r)) > below).sum(axis=0))
        graded = self.slope * r + generator.standard_normal(len(r))
        return np.searchsorted(self._cuts(), graded)

    def _cuts(self) -> list[float]:
        return [_NORMAL.inv_cdf(share) for share in np.cumsum(self.shares)[:-1]]

    def draw_cell(self, r: float, generator: np.random.Generator) -> tuple[int, float]:
        """Draws one code, and where it lies among all codes, from -1 to 1."""
        code = int(self.draw(np.array([r]), generator)[0])
        return code, 2 * code / (len(self.shares) - 1) - 1


@dataclass(frozen=True)
class MeasureModel:
    """How a number depends on a latent r of mean 0 and standard deviation 1.

    Args:
        mean: Its mean.
        deviation: Its standard deviation.
        slope: Signal over noise: the number is mean + deviation * x; x is slope * r + Normal(0, 1), brought
            to a standard deviation of 1.
        limits: What lies beyond is drawn back to these.
        decimals: How many it is given with.
    """

    mean: float
    deviation: float
    slope: float
    limits: tuple[float, float]
    decimals: int

    def draw_cell(self, r: float, generator: np.random.Generator) -> tuple[float, float]:
        """Draws one number, and how many standard deviations it lies above its mean."""
        x = (self.slope * r + float(generator.standard_normal())) / (1 + self.slope**2) ** 0.5
        value = min(max(self.mean + self.deviation * x, self.limits[0]), self.limits[1])
        return round(value, self.decimals), x


@dataclass(frozen=True)
class Field:
    """One field of a record.

    Args:
        shows: The latent that it depends on; None for nothing.
        model: How.
        texts: What its codes are written as; empty for a number.
        missing: Share of cells that are blanked.
        missing_slope: Where it is not 0, `missing` is the share at a middling value, and larger values are
            blanked more often (above 0) or less often: probit, per position of `draw_cell`.
    """

    shows: str | None
    model: FieldModel | MeasureModel
    texts: tuple[str, ...] = ()
    missing: float = 0.0
    missing_slope: float = 0.0

    def draw(self, r: float, generator: np.random.Generator) -> tuple[str, float]:
        """Draws a cell's text and the probability that it is blanked."""
        value, position = self.model.draw_cell(r, generator)
        return self._text(value), self._share(position)

    def _text(self, value: float) -> str:
        if isinstance(self.model, MeasureModel):
            return f"{value:.{self.model.decimals}f}"
        return self.texts[int(value)]

    def _share(self, position: float) -> float:
        if self.missing == 0 or self.missing_slope == 0:
            return self.missing
        return _NORMAL.cdf(_NORMAL.inv_cdf(self.missing) + self.missing_slope * position)
