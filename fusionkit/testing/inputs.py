"""Small inputs that the kit makes itself: records, texts, pictures; features, of which rows lack some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fusionkit.interfaces import Cells
from fusionkit.specs import ColumnKind, ColumnSpec

N_ROWS = 24
N_PICTURES = 8
MODALITIES: Mapping[str, int] = {"image": 5, "record": 3, "text": 1}
"""The width of each modality that heads are given."""
TOKENS_OF = ("image",)
"""Of which of them a head that takes tokens is given some."""
N_TOKENS = 4
LEVELS = ("low", "middle", "high")
WORDS = ("a", "the", "mass", "node", "left", "right", "no", "small", "dense", "benign", "with", "margin")


def make_columns(kinds: Sequence[ColumnKind]) -> dict[str, ColumnSpec]:
    """Returns one column of each kind, called by its kind."""
    values: dict[str, tuple[str, ...]] = {
        "ordinal": LEVELS,
        "category": LEVELS,
        "binary": LEVELS[:2],
        "multi": LEVELS,
    }
    return {kind: ColumnSpec(kind=kind, values=values.get(kind, ())) for kind in kinds}


def make_cells(columns: Mapping[str, ColumnSpec], folder: Path) -> list[Cells]:
    """Returns different rows of cells; writes the pictures of file columns into the folder."""
    n_rows = N_PICTURES if any(spec.kind == "file" for spec in columns.values()) else N_ROWS
    rng = np.random.default_rng(0)
    return [
        {name: _make_cell(spec, name, row, rng, folder) for name, spec in columns.items()}
        for row in range(n_rows)
    ]


def _make_cell(
    spec: ColumnSpec, name: str, row: int, rng: np.random.Generator, folder: Path
) -> str | Path | None:
    if spec.kind == "file":
        path = folder / f"{name}{row}.png"
        _make_picture(row, rng).save(path)
        return path
    if spec.kind == "text":
        return " ".join(rng.choice(WORDS, 3 + row % 7))
    if spec.kind == "numeric":
        return f"{rng.normal(50, 10):.3f}"
    if spec.kind == "multi":
        return spec.separator.join(value for value in spec.values[1:] if rng.random() < 0.5) or spec.values[0]
    return str(rng.choice(spec.values))


def _make_picture(row: int, rng: np.random.Generator) -> Image.Image:
    """Returns 48 x 40 pixels: a colour of its own, a disc of its own size, noise."""
    y, x = np.mgrid[:40, :48]
    is_disc = (x - 24) ** 2 + (y - 20) ** 2 < (4 + 2 * row) ** 2
    pixels = rng.integers(30, 200, 3) + np.where(is_disc, 40, -30)[:, :, None] + rng.normal(0, 8, (40, 48, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def blank(rows: Sequence[Cells]) -> list[Cells]:
    """Returns the rows with one cell missing in each, another in the next."""
    return [
        {
            name: None if index == number % len(cells) else cell
            for index, (name, cell) in enumerate(cells.items())
        }
        for number, cells in enumerate(rows)
    ]


def make_targets(n_rows: int, n_classes: int) -> Tensor:
    """Returns class codes (n,), each class as often as the others."""
    return torch.arange(n_rows) % n_classes


def make_features(dim: int) -> Tensor:
    """Returns features (n, dim) that follow three classes."""
    generator = torch.Generator().manual_seed(dim)
    return torch.randn(N_ROWS, dim, generator=generator) + make_targets(N_ROWS, 3)[:, None]


def make_joined(
    dims: Mapping[str, int], tokens_of: Sequence[str] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Returns what a head gets: features by modality, zero where a row lacks it; what is present.

    Shape:
        (n, d) and (n,); of modalities in `tokens_of` tokens (n, k, d) and (n, k), from one to all of them.
    """
    features, present = {}, {}
    for index, (name, dim) in enumerate(dims.items()):
        rows = torch.arange(N_ROWS)
        lacks = rows % (2 * len(dims) + 1) == index
        present[name] = ~lacks if len(dims) > 1 else torch.ones(N_ROWS, dtype=torch.bool)
        features[name] = make_features(dim)
        if name in tokens_of:
            steps = torch.linspace(-1, 1, N_TOKENS)[:, None]
            features[name] = features[name][:, None] + steps
            present[name] = present[name][:, None] & (torch.arange(N_TOKENS) <= rows[:, None] % N_TOKENS)
        features[name] = features[name] * present[name][..., None]
    return features, present
