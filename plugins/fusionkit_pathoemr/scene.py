"""Lays out invented breast tissue in tissue units, so that one scene can be drawn at any number of pixels.

Islands of epithelium lie in fibrous stroma. Each has its nuclei in rings around a lumen, or packed without
order; between the islands lie spindle cells, lymphocytes and fat. `atypia` in 0..1 drives all that means
something: how much of the field is epithelium, how far glands are filled and how ragged they are, and the
nuclei's size, variation and darkness. Everything else is drawn without regard to it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

FIELD = 100.0
"""Width of the field at 100x, in tissue units; at 200x it is half of that."""
CORNERS = 40
"""Corners of an island's outline."""
THETA = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
"""Their directions from its centre."""


@dataclass(frozen=True)
class Nuclei:
    """Ellipses. Shape: centres and axes (n, 2), angles and darkness (n,).

    Args:
        centres: Middle, in tissue units.
        axes: Half-axes, the long one first.
        angles: Direction of the long axis, radians.
        darkness: Amount of haematoxylin.
        ragged: How far the outlines leave the ellipse, as a share of the radius.
    """

    centres: Array
    axes: Array
    angles: Array
    darkness: Array
    ragged: float


@dataclass(frozen=True)
class Island:
    """A gland or a nest of tumour.

    Args:
        centre: Its middle, in tissue units.
        radius: Its mean radius.
        shape: Radius over mean radius at CORNERS directions, the first at angle 0.
        hollow: Radius of the lumen as a share of its own; 0 if it is filled.
        secretion: Amount of eosin in the lumen.
    """

    centre: Array
    radius: float
    shape: Array
    hollow: float
    secretion: float

    def outline(self, share: float = 1.0) -> Array:
        """Returns the outline's corners, shrunk to a share. Shape: (CORNERS, 2)."""
        rays = np.stack([np.cos(THETA), np.sin(THETA)], axis=1)
        return np.asarray(self.centre + share * self.radius * self.shape[:, None] * rays)


@dataclass(frozen=True)
class Scene:
    """What lies in the field.

    Args:
        extent: Width and height in tissue units.
        atypia: 0 for normal glands, 1 for high-grade tumour.
        grain: Direction of the stroma's fibres, radians.
        islands: Epithelium.
        fat: Outlines of fat cells.
        nuclei: Groups of nuclei, in the order in which they are painted.
    """

    extent: tuple[float, float]
    atypia: float
    grain: float
    islands: list[Island]
    fat: list[Array]
    nuclei: list[Nuclei]


def lay_out(atypia: float, extent: tuple[float, float], generator: np.random.Generator) -> Scene:
    """Draws a scene."""
    grain = generator.uniform(0, np.pi)
    islands = _islands(atypia, extent, grain, generator)
    fat = _fat(islands, extent, generator) if generator.random() < 0.35 else []
    stroma = [
        _spindles(grain, extent, generator),
        _lymphocytes(generator),
        _scattered(atypia, extent, generator),
    ]
    epithelium = _epithelium(islands, atypia, generator)
    return Scene(
        extent,
        atypia,
        grain,
        islands,
        fat,
        [*(_outside(group, islands, fat) for group in stroma), epithelium],
    )


def _islands(
    atypia: float, extent: tuple[float, float], grain: float, generator: np.random.Generator
) -> list[Island]:
    """Throws islands into the field and its margin, so that some are cut, until enough is covered."""
    size = np.asarray(extent)
    wanted = (0.24 + 0.54 * atypia) * float(np.prod(size + 8)) / np.pi
    throws = 400
    radii = (3.6 + 4.4 * atypia) * np.exp(generator.normal(0, 0.30, throws))
    centres = generator.uniform(-4, size + 4, (throws, 2))
    # normal glands lie together in lobules
    lobules = generator.uniform(0, FIELD, (6, 2))[generator.integers(6, size=throws)]
    near = lobules + generator.normal(0, 9, (throws, 2))
    clustered = (generator.random(throws) < 0.85 * (1 - atypia)) & ((near > -4) & (near < size + 4)).all(
        axis=1
    )
    centres[clustered] = near[clustered]
    placed: list[int] = []
    for i in range(throws):
        gaps = np.hypot(*(centres[placed] - centres[i]).T) - radii[placed] - radii[i]
        if gaps.min(initial=np.inf) < 0.35 - 2.2 * atypia:
            continue
        placed.append(i)
        wanted -= radii[i] ** 2
        if wanted < 0:
            break
    return [_island(centres[i], float(radii[i]), atypia, grain, generator) for i in placed]


def _island(
    centre: Array, radius: float, atypia: float, grain: float, generator: np.random.Generator
) -> Island:
    waves = np.arange(2, 8)
    height = (0.13 + 0.34 * atypia) / waves * generator.standard_normal(6)
    phase = generator.uniform(0, 2 * np.pi, 6)
    # nests are drawn out along the fibres that they grow between
    height[0], phase[0] = 0.06 + 0.20 * atypia * generator.random(), -2 * grain
    shape = 1 + height @ np.cos(np.outer(waves, THETA) + phase[:, None])
    hollow = 0.62 - 0.85 * atypia + generator.normal(0, 0.07)
    secretion = 0.3 * generator.random() if generator.random() < 0.4 else 0.02
    return Island(
        centre, radius, np.clip(shape, 0.45, 1.7), float(hollow) if hollow > 0.1 else 0.0, secretion
    )


def _fat(islands: list[Island], extent: tuple[float, float], generator: np.random.Generator) -> list[Array]:
    """Puts fat cells around one point at the border, where no island is."""
    focus = generator.uniform(0, 1, 2) * extent
    focus[generator.integers(2)] = 0.0
    radii = 4.2 * np.exp(generator.normal(0, 0.2, 60))
    centres = focus + generator.normal(0, 10, (60, 2))
    taken = [(*island.centre, island.radius * 1.15) for island in islands]
    cells: list[Array] = []
    for centre, radius in zip(centres, radii, strict=True):
        x, y, reach = np.asarray(taken or [(-1e3, -1e3, 0.0)]).T
        if (np.hypot(x - centre[0], y - centre[1]) < reach + radius + 0.25).any():
            continue
        taken.append((*centre, radius))
        cells.append(_island(centre, float(radius), 0.0, 0.0, generator).outline())
    return cells


def _epithelium(islands: list[Island], atypia: float, generator: np.random.Generator) -> Nuclei:
    """Fills the islands' walls with rings of nuclei: neat in a normal gland, disordered in tumour."""
    size = 0.56 + 0.42 * atypia
    rings = [_rings(island, size * (1.75 + 0.15 * atypia), generator) for island in islands]
    centres = np.concatenate([np.empty((0, 2)), *(centres for centres, _ in rings)])
    theta = np.concatenate([np.empty(0), *(theta for _, theta in rings)])
    n = len(theta)
    centres += generator.normal(0, size * (0.12 + 0.33 * atypia), (n, 2))
    return _nuclei(
        centres, size, 1.30, theta + generator.normal(0, 0.25 + 1.6 * atypia, n), atypia, generator
    )


def _rings(island: Island, step: float, generator: np.random.Generator) -> tuple[Array, Array]:
    """Returns places in an island's wall, `step` apart, and their directions from its centre."""
    inner = island.hollow * island.radius
    radii = np.arange(island.radius - 0.55 * step, inner + 0.5 * step, -step)
    if island.hollow == 0 or not len(radii):
        radii = np.append(radii, inner + 0.5 * step)
    counts = np.maximum(1, (2 * np.pi * radii / step).astype(int))
    ring = np.repeat(radii, counts)
    place = np.arange(len(ring)) - np.repeat(np.cumsum(counts) - counts, counts)
    turn = np.repeat(generator.uniform(0, 2 * np.pi, len(counts)), counts)
    theta = (2 * np.pi * place / np.repeat(counts, counts) + turn) % (2 * np.pi)
    ring = ring * np.interp(theta, THETA, island.shape, period=2 * np.pi)
    return island.centre + ring[:, None] * np.stack([np.cos(theta), np.sin(theta)], axis=1), theta


def _nuclei(
    centres: Array, size: float, aspect: float, angles: Array, atypia: float, generator: np.random.Generator
) -> Nuclei:
    n = len(centres)
    radius = size * np.exp(generator.normal(0, 0.07 + 0.25 * atypia, n))
    stretch = np.sqrt(aspect * np.exp(generator.normal(0, 0.10 + 0.12 * atypia, n)))
    darkness = (0.60 + 0.50 * atypia) * np.exp(generator.normal(0, 0.10 + 0.18 * atypia, n))
    axes = np.stack([radius * stretch, radius / stretch], axis=1)
    return Nuclei(centres, axes, angles, darkness, 0.02 + 0.06 * atypia)


def _outside(nuclei: Nuclei, islands: list[Island], fat: list[Array]) -> Nuclei:
    """Leaves out nuclei that lie in an island or a fat cell."""
    keep = np.ones(len(nuclei.centres), dtype=bool)
    for island in islands:
        keep &= np.hypot(*(nuclei.centres - island.centre).T) > 1.05 * island.radius
    for outline in fat:
        middle = outline.mean(axis=0)
        keep &= np.hypot(*(nuclei.centres - middle).T) > np.hypot(*(outline - middle).T).max()
    return Nuclei(
        nuclei.centres[keep], nuclei.axes[keep], nuclei.angles[keep], nuclei.darkness[keep], nuclei.ragged
    )


def _scattered(atypia: float, extent: tuple[float, float], generator: np.random.Generator) -> Nuclei:
    """Tumour cells that have left their nest."""
    n = generator.poisson(0.06 * atypia**2 * extent[0] * extent[1])
    centres = generator.uniform(0, 1, (n, 2)) * extent
    return _nuclei(centres, 0.5 + 0.35 * atypia, 1.5, generator.uniform(0, np.pi, n), atypia, generator)


def _spindles(grain: float, extent: tuple[float, float], generator: np.random.Generator) -> Nuclei:
    n = generator.poisson(0.035 * extent[0] * extent[1])
    centres = generator.uniform(0, 1, (n, 2)) * extent
    axes = np.array([1.25, 0.26]) * np.exp(generator.normal(0, 0.2, (n, 2)))
    angles = grain + generator.normal(0, 0.3, n)
    return Nuclei(centres, axes, angles, 0.75 * np.exp(generator.normal(0, 0.15, n)), 0.04)


def _lymphocytes(generator: np.random.Generator) -> Nuclei:
    n = generator.poisson(30)
    focus = generator.uniform(0, FIELD, (3, 2))[generator.integers(3, size=n)]
    centres = focus + generator.normal(0, 6, (n, 2))
    axes = 0.40 * np.exp(generator.normal(0, 0.08, (n, 2)))
    return Nuclei(centres, axes, np.zeros(n), np.full(n, 1.15), 0.02)
