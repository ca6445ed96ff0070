"""Figure 8, open choices, split: every variant of their files is a recipe, and shares what it should."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from fusionkit.evaluation.figures import MOST_BANDS
from fusionkit.recipe.load import LoadedRecipe, load_recipe
from fusionkit.recipe.sweep import LoadedSweep, load_sweep
from fusionkit.registry import Registry

FOLDER = Path(__file__).parent.parent / "recipes" / "paper"
FILES = ("figure8", "open_choices", "split", "real/figure8_usg", "real/open_choices_usg")


BASE = FOLDER.parent / "breast_rfn.yaml"


@cache
def sweep(name: str) -> LoadedSweep:
    return load_sweep(FOLDER / f"{name}.yaml", Registry.discover())


def recipes(name: str) -> dict[str, LoadedRecipe]:
    return {one.variant.name: one.loaded for one in sweep(name).experiments}


def image_side(loaded: LoadedRecipe) -> Any:
    """Returns what determines the encoder of images."""
    resolved = loaded.resolved
    stages = [stage for stage in resolved["stages"] if "pretrain" in stage]
    return [resolved["seed"], resolved["source"], resolved["split"], resolved["modalities"]["image"], stages]


@pytest.mark.parametrize("name", FILES)
def test_every_variant_is_a_recipe_of_its_own(name):
    asked = {json.dumps([one.loaded.resolved, one.variant.model]) for one in sweep(name).experiments}
    assert len(asked) == len(sweep(name).sweep.variants)


def test_figure_8_trains_no_encoder_of_its_own():
    own = image_side(load_recipe(BASE, Registry.discover()))
    assert all(image_side(one) == own for one in recipes("figure8").values())


def test_the_open_choices_train_three_encoders_of_their_own():
    own = image_side(load_recipe(BASE, Registry.discover(), ["evaluation.modalities_alone=false"]))
    others = [name for name, one in recipes("open_choices").items() if image_side(one) != own]
    assert others == ["phase 2 by the VGG classifier", "phase 2 twice as long", "phase 2 by sgd"]


def test_each_corruption_is_tested_at_each_rate():
    loaded = list(recipes("figure8").values())[:10]
    corruptions = [one.resolved["modalities"]["emr"]["raiser"]["corruption"] for one in loaded]
    assert corruptions == [number / 10 for number in range(10)]
    assert all(one.recipe.evaluation.missing == {"emr": tuple(corruptions)} for one in loaded)


def test_the_curves_of_figure_6_have_their_bands():
    figure6 = sweep("figure6").sweep
    assert figure6.roc
    assert len(figure6.variants) <= MOST_BANDS
