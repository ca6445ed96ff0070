"""Writes simulated patients for recipe.yaml: an X-ray, a record, and mostly an electrocardiogram."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
from PIL import Image

N_PATIENTS = 48
STEPS_A_BEAT = 40


def beats(rng: np.random.Generator, n_steps: int, *, is_ill: bool) -> np.ndarray:
    """Returns two leads (n_steps, 2): a spike a beat, and a wave after it that is upside down in the ill."""
    phase = (np.arange(n_steps) + rng.integers(STEPS_A_BEAT)) % STEPS_A_BEAT / STEPS_A_BEAT
    spike = np.exp(-(((phase - 0.3) / 0.02) ** 2))
    wave = 0.3 * np.exp(-(((phase - 0.6) / 0.06) ** 2)) * (-1 if is_ill else 1)
    lead = spike + wave
    return np.stack([lead, -0.5 * lead], 1) + rng.normal(0, 0.1, (n_steps, 2))


def write_rows(folder: Path) -> None:
    """Writes simulated_rows.csv and the files that it names."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    rows = [["patient", "ecg", "image", "age", "smoker", "diagnosis"]]
    for patient in range(N_PATIENTS):
        is_ill, name = patient % 2 == 1, f"simulated_{patient}"
        np.save(folder / f"{name}.npy", beats(rng, 200 + 4 * patient, is_ill=is_ill))
        pixels = rng.integers(0, 200, (16, 16, 3)) + 8 * is_ill
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{name}.png")
        ecg = "" if patient % 6 == 0 else f"{name}.npy"
        smoker = ("no", "yes", "unknown")[patient // 2 % 3]
        diagnosis = "ill" if is_ill else "healthy"
        rows.append([name, ecg, f"{name}.png", str(40 + patient), smoker, diagnosis])
    with open(folder / "simulated_rows.csv", "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(rows)


if __name__ == "__main__":
    write_rows(Path(sys.argv[1]))
