"""Paints a scene as an image that looks like tissue stained with haematoxylin and eosin; it is invented.

Two maps are painted, the amounts of haematoxylin and of eosin, and light is absorbed by them (Beer-Lambert):
that is why colours come out as on glass. Stain, brightness and focus are nuisance, drawn without regard to
the diagnosis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from fusionkit_pathoemr.scene import FIELD, Nuclei, Scene, lay_out

if TYPE_CHECKING:
    from fusionkit_pathoemr.design import SimulatedFile

Map = NDArray[np.floating[Any]]

HAEMATOXYLIN = np.array([0.66, 0.78, 0.38])
EOSIN = np.array([0.13, 0.90, 0.42])
"""Absorption of red, green and blue per amount of stain: ours, near the published vectors."""
DETAIL = 8.0
"""Pixels per tissue unit from which a nucleus has a membrane."""
LEVEL = 150
"""Grey level of an amount of 1 in a layer of shapes: amounts up to 1.7 fit into 8 bits."""
IMAGES_PER_SLIDE = 3


@dataclass(frozen=True)
class Stain:
    """How a slide was stained, lit and focused.

    Args:
        haematoxylin: Absorption of red, green, blue per amount.
        eosin: The same of the other stain.
        light: Brightness of the empty slide in red, green, blue, 0..1.
        blur: Standard deviation of the focus, in thousandths of the image's width.
    """

    haematoxylin: NDArray[np.float64]
    eosin: NDArray[np.float64]
    light: NDArray[np.float64]
    blur: float

    @classmethod
    def draw(cls, patient: np.random.Generator, slide: np.random.Generator) -> Stain:
        """Draws a stain: mostly the patient's (one block, one laboratory), in part the slide's."""

        def vary(spread: float, size: int) -> NDArray[np.float64]:
            return np.asarray(
                spread * patient.standard_normal(size) + 0.5 * spread * slide.standard_normal(size)
            )

        return cls(
            haematoxylin=HAEMATOXYLIN * np.exp(vary(0.05, 1) + vary(0.03, 3)),
            eosin=EOSIN * np.exp(vary(0.07, 1) + vary(0.05, 3)),
            light=np.clip(0.965 * np.exp(vary(0.012, 1) + vary(0.005, 3)), 0.85, 1.0),
            blur=float(0.2 + 0.35 * slide.random()),
        )


@dataclass(frozen=True)
class TissueStyle:
    """Images of invented tissue, of one size."""

    width: int
    height: int
    suffix = ".png"
    has_zoom = True

    def write(self, image: SimulatedFile, file: IO[bytes]) -> None:
        """Draws one image; it depends on its key, its latent and the size alone."""
        self.draw(image).save(file, format="PNG", compress_level=3)

    def draw(self, image: SimulatedFile) -> Image.Image:
        """Draws one image."""
        patient, i = image.key[:-1], image.key[-1]
        stain = Stain.draw(
            np.random.default_rng([*patient, 4]), np.random.default_rng([*patient, 5, i // IMAGES_PER_SLIDE])
        )
        generator = np.random.default_rng([*patient, 6, i])
        return draw_tissue(image.latent, image.zoom, self.width, self.height, stain, generator)


def atypia(latent: float) -> float:
    """Returns how malignant the tissue looks, 0..1, from the image's latent."""
    return float(0.5 + 0.5 * np.tanh(latent / 4.0))


def draw_tissue(
    latent: float, zoom: int, width: int, height: int, stain: Stain, generator: np.random.Generator
) -> Image.Image:
    """Draws one image.

    Args:
        latent: What the image says about the diagnosis; about 0 it says nothing, at +-3 it is plain.
        zoom: 1 for 100x; 2 for 200x, which doubles every size and halves the field.
        width: In pixels.
        height: In pixels.
        stain: The slide's stain.
        generator: Randomness of the layout.
    """
    extent = (FIELD / zoom, FIELD / zoom * height / width)
    scene = lay_out(atypia(latent), extent, generator)
    # painted larger and averaged down, for smooth edges; a large image has its focus for that
    factor = max(-(-256 // width), 2 if width < 1024 else 1)
    h, e = _paint(scene, width * factor, height * factor, generator)
    if factor > 1:
        h, e = _shrink(h, factor), _shrink(e, factor)
    return _develop(h, e, stain, generator)


def _paint(scene: Scene, width: int, height: int, generator: np.random.Generator) -> tuple[Map, Map]:
    """Returns the amounts of haematoxylin and eosin. Shape: (height, width) each."""
    scale = width / scene.extent[0]
    e, h = _stroma(scene, width, height, generator)
    mottle = _noise(width, height, 0.8 * scale, generator)
    tissue, hollow = _epithelium(scene, scale, width, height)
    e = e + tissue * (0.30 + 0.22 * mottle - e)
    h = h + tissue * (0.16 + 0.14 * scene.atypia + 0.10 * mottle - h)
    e = np.where(hollow < 1, hollow, e)
    h = np.where(hollow < 1, 0, h)
    nuclei = _nuclei_layer(scene, scale, width, height, generator)
    if scale > 6:
        nuclei = nuclei * (0.72 + 0.56 * _noise(width, height, 0.16 * scale, generator))
    return h + nuclei, e * (1 - 0.45 * np.minimum(nuclei, 1))


def _epithelium(scene: Scene, scale: float, width: int, height: int) -> tuple[Map, Map]:
    """Returns where epithelium is, 0 or 1, and how much eosin is in holes, 1 where there is no hole."""
    tissue, hollow = Image.new("L", (width, height), 0), Image.new("L", (width, height), 255)
    pen, hole = ImageDraw.Draw(tissue), ImageDraw.Draw(hollow)
    for outline in scene.fat:
        hole.polygon((outline * scale).ravel().tolist(), fill=2)
    for island in scene.islands:
        pen.polygon((island.outline(1 - 0.1 * scene.atypia) * scale).ravel().tolist(), fill=255)
        if island.hollow:
            hole.polygon(
                (island.outline(island.hollow) * scale).ravel().tolist(), fill=int(254 * island.secretion)
            )
    return _values(tissue) / 255, _values(hollow) / 255


def _nuclei_layer(scene: Scene, scale: float, width: int, height: int, generator: np.random.Generator) -> Map:
    """Returns the nuclei's amount of haematoxylin, each with a membrane where there is room."""
    layer = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(layer)
    for group in scene.nuclei:
        whole, inside = _polygons(group, scale, generator)
        levels = np.minimum(group.darkness * LEVEL, 255).astype(int).tolist()
        paler = (np.minimum(group.darkness * LEVEL, 255) * 0.80).astype(int).tolist()
        for i, level in enumerate(levels):
            pen.polygon(whole[i], fill=level)
            if inside:
                pen.polygon(inside[i], fill=paler[i])
    return _values(layer) / LEVEL


def _polygons(
    group: Nuclei, scale: float, generator: np.random.Generator
) -> tuple[list[list[float]], list[list[float]]]:
    """Returns each nucleus as a polygon in pixels, and the polygon inside its membrane."""
    corners = 6 if scale < 5 else 10 if scale < 12 else 18 if scale < 20 else 28
    theta = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    n = len(group.centres)
    waves = np.arange(2, 5)
    bends = group.ragged * generator.standard_normal((n, 3))
    phases = generator.uniform(0, 2 * np.pi, (n, 3, 1))
    radius = 1 + (bends[:, :, None] * np.cos(waves[:, None] * theta + phases)).sum(axis=1)
    # a filled polygon is about .4 pixels larger on all sides than its outline
    axes = np.maximum(group.axes * scale - 0.4, 0.2)
    x, y = axes[:, :1] * np.cos(theta) * radius, axes[:, 1:] * np.sin(theta) * radius
    cos, sin = np.cos(group.angles)[:, None], np.sin(group.angles)[:, None]
    offsets = np.stack([cos * x - sin * y, sin * x + cos * y], axis=2)
    centres = group.centres[:, None] * scale
    whole = (centres + offsets).reshape(n, 2 * corners).tolist()
    inside = (centres + 0.84 * offsets).reshape(n, 2 * corners).tolist() if scale > DETAIL else []
    return whole, inside


def _stroma(scene: Scene, width: int, height: int, generator: np.random.Generator) -> tuple[Map, Map]:
    """Returns the stroma's amounts of eosin and haematoxylin: wavy fibres with thin clefts between."""
    shrink = max(2 if width <= 512 else 1, width / 1024)
    small = (max(1, round(width / shrink)), max(1, round(height / shrink)))
    scale = small[0] / scene.extent[0]
    y, x = np.mgrid[: small[1], : small[0]].astype(np.float32) / np.float32(scale)
    cos, sin = np.float32(np.cos(scene.grain)), np.float32(np.sin(scene.grain))
    bend = 16 * _noise(*small, 22 * scale, generator) + 1.6 * _noise(*small, 5 * scale, generator)
    along, across = cos * x + sin * y, cos * y - sin * x + bend
    table = generator.random((256, 256), dtype=np.float32)
    bundles = _look_up(table, across * 0.40, along * 0.06)
    fibres = _look_up(table, across * 1.7 + 77, along * 0.15)
    e = 0.28 + 0.26 * bundles + 0.26 * fibres
    if scale > 8:
        e += 0.14 * (_look_up(table, across * 5.3 + 31, along * 0.5) - 0.5)
    # clefts between bundles, as the knife leaves them
    e *= np.clip((_look_up(table, across * 0.62 + 130, along * 0.05) - 0.13) * 16, 0.06, 1)
    return _resize(e, width, height), _resize(0.05 + 0.06 * bundles, width, height)


def _look_up(table: Map, row: Map, column: Map) -> Map:
    """Returns a table's values between its cells; it repeats at its borders."""
    i, j = np.floor(row).astype(np.int32), np.floor(column).astype(np.int32)
    a, b = row - i, column - j
    a, b = a * a * (3 - 2 * a), b * b * (3 - 2 * b)
    i0, i1, j0, j1 = i & 255, (i + 1) & 255, j & 255, (j + 1) & 255
    above = table[i0, j0] * (1 - b) + table[i0, j1] * b
    below = table[i1, j0] * (1 - b) + table[i1, j1] * b
    return np.asarray(above * (1 - a) + below * a)


def _noise(width: int, height: int, cell: float, generator: np.random.Generator) -> Map:
    """Returns smooth noise in 0..1 whose cells are `cell` pixels wide."""
    coarse = (max(2, round(height / cell) + 1), max(2, round(width / cell) + 1))
    return _resize(generator.random(coarse, dtype=np.float32), width, height)


def _resize(values: Map, width: int, height: int) -> Map:
    image = Image.fromarray(values)
    if image.size == (width, height):
        return values
    return np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))


def _shrink(values: Map, factor: int) -> Map:
    height, width = values.shape
    return np.asarray(values.reshape(height // factor, factor, width // factor, factor).mean(axis=(1, 3)))


def _values(image: Image.Image) -> Map:
    return np.asarray(image, dtype=np.float32)


def _develop(h: Map, e: Map, stain: Stain, generator: np.random.Generator) -> Image.Image:
    """Lets light through the stained tissue and onto a camera."""
    height, width = h.shape
    grain = generator.standard_normal((height, width), dtype=np.float32) * np.float32(3.0)
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for channel in range(3):
        a, b = np.float32(stain.haematoxylin[channel]), np.float32(stain.eosin[channel])
        light = np.float32(255 * stain.light[channel]) * np.exp(-(a * h + b * e))
        pixels[..., channel] = np.clip(light + grain, 0, 255)
    image = Image.fromarray(pixels)
    radius = stain.blur * width / 1000
    return image.filter(ImageFilter.GaussianBlur(radius)) if radius > 0.3 else image
