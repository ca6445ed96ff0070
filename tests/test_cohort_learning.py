"""The whole engine against a truth that is known: how near it comes to what no method can beat."""

from __future__ import annotations

from pathlib import Path

import pytest

from fusionkit.prepare import Places
from fusionkit.recipe.load import load_recipe
from fusionkit.registry import Registry
from fusionkit.run import run

RECIPE = Path(__file__).parents[1] / "recipes" / "breast_rfn.yaml"
LARGE = (
    "source.patients=1000",
    "source.fresh_patients=2000",
    "source.images_per_patient=2",
    "stages.learn_image.epochs=6",
)
POINTS = 0.05


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_1000_patients_come_near_the_ceilings_on_2000_fresh_ones(tmp_path):
    from fusionkit_pathoemr.cohort import bayes_ceilings

    registry = Registry.discover()
    places = Places(tmp_path / "data", tmp_path / "store", tmp_path / "runs")
    report = run(load_recipe(RECIPE, registry, LARGE), registry, places, lambda name, data: None).report
    best = {name: ceiling["accuracy"] for name, ceiling in bayes_ceilings(200_000, seed=1).items()}
    reached = {name: model["subject"]["accuracy"]["value"] for name, model in report["models"].items()}
    print("ceilings", best, "reached", reached)
    assert reached["emr"] == pytest.approx(best["record"], abs=POINTS)
    assert reached["image"] == pytest.approx(best["image"], abs=POINTS)
    assert reached["fused"] == pytest.approx(best["both"], abs=POINTS)
    gains = {gain["b"]: gain for gain in report["differences"] if gain["metric"] == "accuracy"}
    for other in ("image", "emr"):
        assert gains[other]["low"] > 0, gains[other]
