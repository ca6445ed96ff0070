"""A few small files, for the conformance kit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from fusionkit import Cells, ColumnSpec
from fusionkit_bags import VectorBagConfig


def write_vectors(config: VectorBagConfig, folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    """Writes six bags of one to six vectors; returns columns and rows."""
    rows: list[Cells] = []
    for number in range(6):
        path = folder / f"{number}.npy"
        vectors = np.sin(np.arange((number + 1) * config.width) + number)
        np.save(path, vectors.reshape(number + 1, config.width).astype(np.float32))
        rows.append({"bag": path})
    return {"bag": ColumnSpec(kind="file")}, rows


def write_images(folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    """Writes six bags of two pictures; returns columns and rows."""
    rows: list[Cells] = []
    for number in range(6):
        row: dict[str, Path] = {}
        for tile in ("one", "other"):
            row[tile] = folder / f"{number}_{tile}.png"
            pixels = np.random.default_rng([number, len(tile)]).integers(0, 255, (40, 40, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(row[tile])
        rows.append(dict(row))
    return {tile: ColumnSpec(kind="file") for tile in ("one", "other")}, rows
