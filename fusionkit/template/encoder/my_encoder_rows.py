"""Writes simulated rows for recipe.yaml: 24 patients with an image, an age and mostly a signal."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

N_PATIENTS = 24


def write_rows(folder: Path) -> None:
    """Writes rows.csv and the files that it names; the ill: faster signal, brighter image, older."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = [["patient", "signal", "image", "age", "diagnosis"]]
    for patient in range(N_PATIENTS):
        is_ill = patient % 2
        time = np.arange(100 + 4 * patient) / 10
        np.save(folder / f"{patient}.npy", np.sin(time * (1 + is_ill)) + rng.normal(0, 1, len(time)))
        pixels = rng.integers(0, 200, (16, 16, 3)) + 20 * is_ill
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{patient}.png")
        signal = "" if patient % 6 == 0 else f"{patient}.npy"
        age = 40 + patient + 12 * is_ill
        rows.append([f"p{patient}", signal, f"{patient}.png", str(age), ["healthy", "ill"][is_ill]])
    with open(folder / "rows.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]))
