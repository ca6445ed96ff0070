"""A whole small recipe on a CUDA device beside the same on the CPU; skipped where there is none.

Tolerances are ours: in fp32 the two add up in another order, and training carries the last digits on; bf16
keeps 8 bits.
"""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
import toy_images
from torch import nn

from fusionkit.learned import open_run
from fusionkit.predict import predict, read_rows
from fusionkit.recipe.schema import TrainingNode
from fusionkit.run import Places, run
from fusionkit.training.device import choose_device

pytestmark = pytest.mark.gpu
FP32, BF16 = 1e-3, 0.05
"""Largest difference of a probability after a whole small recipe."""


def quiet(name: str, data: object) -> None:
    pass


def run_on(folder: Path, *training: str) -> Path:
    registry = toy_images.make_registry()
    # no dropout: its random numbers are another device's
    overrides = [f"training.{option}" for option in training]
    loaded = toy_images.load_text(toy_images.RECIPE, registry, overrides=overrides)
    return run(loaded, registry, Places(folder / "data", folder / "store", folder / "runs"), quiet).folder


def probabilities(folder: Path) -> np.ndarray:
    with open(folder / "predictions.csv", newline="") as file:
        return np.array(
            [
                [float(row[name]) for name in row if name.startswith("probability")]
                for row in csv.DictReader(file)
            ]
        )


@pytest.fixture(autouse=True)
def without_dropout(monkeypatch):
    monkeypatch.setattr(nn.Dropout, "forward", lambda self, inputs: inputs)


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", FP32), ("bf16", BF16)])
def test_cpu_and_gpu_agree_on_a_whole_recipe(tmp_path, precision, tolerance):
    on_cpu = probabilities(run_on(tmp_path / "cpu", "device=cpu", "precision=fp32"))
    on_gpu = probabilities(run_on(tmp_path / "gpu", "device=cuda", f"precision={precision}"))
    assert on_cpu.shape == on_gpu.shape
    assert np.abs(on_cpu - on_gpu).max() <= tolerance


def test_the_same_run_twice_on_a_gpu_gives_the_same_bytes(tmp_path):
    one, two = (run_on(tmp_path / name, "device=cuda") / "predictions.csv" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_a_run_of_a_gpu_predicts_on_a_cpu(tmp_path, monkeypatch):
    folder = run_on(tmp_path, "device=auto", "precision=fp32")
    table = tmp_path / "rows.csv"
    manifest = toy_images.make_manifest(tmp_path)
    manifest.cells.write_csv(table)
    images = tmp_path / "store" / "sources" / "toy_pictures"
    found = []
    for is_there in (True, False):
        monkeypatch.setattr(torch.cuda, "is_available", lambda is_there=is_there: is_there)
        learned = open_run(folder, toy_images.make_registry(), tmp_path / "data")
        places = Places(tmp_path / "data", tmp_path / f"store {is_there}", tmp_path / "runs")
        answers = predict(learned, read_rows(learned, table, images, None), places, quiet)
        found.append(np.array([row.predictions for row in answers.rows]))
    assert np.abs(found[0] - found[1]).max() <= FP32


def test_batches_are_copied_from_pinned_memory_and_convolutions_are_channels_last():
    device = choose_device(TrainingNode(device="cuda"))
    raw = {"a": torch.arange(6.0), "b": [torch.ones(2, dtype=torch.uint8)]}
    pinned = device.pin(raw)
    assert pinned["a"].is_pinned()
    assert pinned["b"][0].is_pinned()
    moved = device.move(pinned)
    assert moved["a"].is_cuda
    assert torch.equal(moved["a"].cpu(), raw["a"])
    assert device.pin(moved)["a"] is moved["a"]
    placed = device.place(nn.Conv2d(3, 4, 3))
    assert placed.weight.is_cuda
    assert placed.weight.is_contiguous(memory_format=torch.channels_last)


def test_fp32_means_fp32_in_convolutions():
    device = choose_device(TrainingNode(device="cuda", precision="fp32"))
    torch.manual_seed(0)
    layer, images = nn.Conv2d(64, 64, 3), torch.randn(4, 64, 32, 32)
    expected = layer.double()(images.double())
    found = device.place(layer.float())(device.move(images)).double().cpu()
    assert (found - expected).abs().max() < 1e-4  # tf32 is off by about 1e-3
