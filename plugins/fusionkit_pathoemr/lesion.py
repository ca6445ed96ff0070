"""Paints a round pale surface with a lesion, roughly as a colposcope shows one; it is invented.

The lesion lies beside the opening in the middle. With a rising latent it grows, turns whiter, gets a sharper
outline and a coarse mosaic. Hue, light, place, reflections and focus are nuisance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

if TYPE_CHECKING:
    from fusionkit_pathoemr.design import SimulatedFile

Map = NDArray[np.floating[Any]]
SURFACE = np.array([0.82, 0.52, 0.50])
"""Red, green and blue of the surface; all colours are ours."""
WHITE = np.array([0.96, 0.90, 0.87])
OPENING = np.array([0.35, 0.13, 0.14])


def severity(latent: float) -> float:
    """Returns how severe a lesion looks, 0..1, from a latent of standard deviation 1."""
    return float(0.5 + 0.5 * np.tanh(latent / 1.5))


@dataclass(frozen=True)
class LesionStyle:
    """Images of one size."""

    width: int
    height: int
    suffix = ".png"
    has_zoom = False

    def write(self, file: SimulatedFile, stream: IO[bytes]) -> None:
        """Draws one image; it depends on its key, its latent and the size alone."""
        self.draw(file).save(stream, format="PNG", compress_level=3)

    def draw(self, file: SimulatedFile) -> Image.Image:
        """Draws one image."""
        subject, i = file.key[:-1], file.key[-1]
        return _paint(
            severity(file.latent),
            self.width,
            self.height,
            np.random.default_rng([*subject, 5]),
            np.random.default_rng([*subject, 6, i]),
        )


def _paint(
    grade: float, width: int, height: int, subject: np.random.Generator, view: np.random.Generator
) -> Image.Image:
    """Paints with what is the subject's (hue, place of the lesion) and what is the view's (light, focus)."""
    scale = min(width, height) / 2
    y, x = np.mgrid[:height, :width]
    shift = view.normal(0, 0.06, 2)
    x = (x - width / 2) / scale - shift[0]
    y = (y - height / 2) / scale - shift[1]
    radius, angle = np.hypot(x, y), np.arctan2(y, x)
    hue = SURFACE * np.exp(subject.normal(0, 0.05, 3))
    pixels = np.ones((height, width, 1)) * hue
    pixels *= (1 + 0.10 * _noise(width, height, 0.30 * scale, subject))[..., None]
    lesion = _lesion(grade, x, y, scale, subject)
    pixels += lesion[..., None] * (WHITE - pixels)
    opening = _edge(0.16 * np.exp(subject.normal(0, 0.2)) - np.hypot(x, 2.2 * y), 0.03)
    pixels += opening[..., None] * (OPENING - pixels)
    rim = _edge(0.93 + 0.03 * np.cos(3 * angle + subject.uniform(0, 6)) - radius, 0.05)
    pixels *= (0.25 + 0.75 * rim)[..., None]
    for _ in range(int(view.integers(2, 7))):  # wet spots that reflect the lamp
        spot = view.uniform(-0.7, 0.7, 2)
        glare = _edge(view.uniform(0.02, 0.05) - np.hypot(x - spot[0], y - spot[1]), 0.015)
        pixels += glare[..., None] * (1 - pixels)
    pixels *= np.exp(view.normal(0, 0.08)) * (1 - 0.15 * radius[..., None] ** 2)
    pixels += view.normal(0, 0.012, pixels.shape)
    image = Image.fromarray((255 * np.clip(pixels, 0, 1)).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(float(view.uniform(0, 0.008)) * width))


def _lesion(grade: float, x: Map, y: Map, scale: float, generator: np.random.Generator) -> Map:
    """Returns how white the lesion is at each pixel, 0..1."""
    direction = generator.uniform(0, 2 * np.pi)
    centre = 0.42 * np.array([np.cos(direction), np.sin(direction)])
    dx, dy = x - centre[0], y - centre[1]
    angle = np.arctan2(dy, dx)
    waves, phases = generator.normal(0, 0.10, 4), generator.uniform(0, 2 * np.pi, 4)
    outline = 1 + sum(waves[k] * np.cos((k + 2) * angle + phases[k]) for k in range(4))
    size = (0.14 + 0.30 * grade) * np.exp(generator.normal(0, 0.12))
    inside = _edge(size * outline - np.hypot(dx, dy), 0.12 - 0.10 * grade)
    height, width = x.shape
    mosaic = _noise(width, height, 0.07 * scale, generator)
    return np.asarray(inside * np.clip(0.12 + 0.55 * grade + 0.35 * grade * mosaic, 0, 0.9))


def _edge(distance: Map, softness: float) -> Map:
    """Returns 1 inside, 0 outside, and what is between near the outline, by the distance to it."""
    return np.asarray(1 / (1 + np.exp(np.clip(-4 * distance / softness, -50, 50))))


def _noise(width: int, height: int, cell: float, generator: np.random.Generator) -> Map:
    """Returns smooth noise around 0, mostly within 1, whose cells are `cell` pixels wide."""
    coarse = (max(2, round(height / cell) + 1), max(2, round(width / cell) + 1))
    values = generator.uniform(-1, 1, coarse).astype(np.float32)
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC))
