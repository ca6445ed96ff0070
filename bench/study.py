"""A folder of invented photographs with a table, and a recipe that reads them: what the timings work on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fusionkit.prepare import Places, Prepared, prepare
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry

RECIPE = """\
name: bench
source:
  use: manifest
  table: rows.csv
  subject: patient
  outcome: outcome
  classes: {benign: benign, malignant: malignant}
  columns: {image: {kind: file}}
modalities:
  image:
    encoder: {use: vgg16_multilevel, input: {size: 224}}
head: {use: concat_mlp}
stages:
  - {name: learn_image, pretrain: image.encoder, batch_size: 16}
  - {name: fuse, train: [head]}
split: {scheme: holdout, test: 0.2}
"""


def photograph(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """Returns soft shapes under a little noise, which compress about as photographs do."""
    coarse = rng.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = soft + rng.normal(0, 4, (height, width, 1))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def write_study(folder: Path, n: int, size: tuple[int, int], suffix: str) -> None:
    """Writes n photographs, one a patient, and the table that names them."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    lines = ["patient,image,outcome"]
    for number in range(n):
        name = f"images/{number:04}.{suffix}"
        photograph(rng, *size).save(folder / name, **({"quality": 90} if suffix == "jpg" else {}))
        lines.append(f"p{number},{name},{'malignant' if number % 2 else 'benign'}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")


def prepare_study(folder: Path, *overrides: str, tell: Any = lambda name, data: None) -> Prepared:
    loaded = load_text(RECIPE, Registry.discover(), overrides=overrides, data_root=folder)
    return prepare(loaded, Places(folder, folder / "store", folder / "runs"), tell)
