"""Figure 8, open choices, split: every variant of their files is a recipe, and shares what it should."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fusionkit.recipe.dialect import parse
from fusionkit.recipe.load import LoadedRecipe, load_recipe
from fusionkit.registry import Registry

FOLDER = Path(__file__).parent.parent / "recipes" / "paper"
FILES = ("figure8", "open_choices", "split", "real/figure8_usg", "real/open_choices_usg")


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


def read(name: str) -> Any:
    path = FOLDER / f"{name}.yaml"
    return parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}")


def load(name: str, variant: Any, registry: Registry) -> LoadedRecipe:
    sweep = read(name)
    given = {**sweep.get("overrides", {}), **variant.get("overrides", {})}
    overrides = [f"{path}={json.dumps(value)}" for path, value in given.items()]
    return load_recipe(base_of(name), registry, overrides)


def base_of(name: str) -> Path:
    return (FOLDER / f"{name}.yaml").parent / read(name)["base"]


def image_side(loaded: LoadedRecipe) -> Any:
    """Returns what determines the encoder of images."""
    resolved = loaded.resolved
    stages = [stage for stage in resolved["stages"] if "pretrain" in stage]
    return [resolved["seed"], resolved["source"], resolved["split"], resolved["modalities"]["image"], stages]


@pytest.mark.parametrize("name", FILES)
def test_every_variant_is_a_recipe_of_its_own(name, registry):
    variants = read(name)["variants"]
    names = [variant["name"] for variant in variants]
    assert len(set(names)) == len(names)
    assert read(name)["reference"] in names
    asked = {json.dumps([load(name, v, registry).resolved, v.get("model")]) for v in variants}
    assert len(asked) == len(variants)


def test_figure_8_trains_no_encoder_of_its_own(registry):
    own = image_side(load_recipe(base_of("figure8"), registry))
    assert all(image_side(load("figure8", v, registry)) == own for v in read("figure8")["variants"])


def test_the_open_choices_train_at_most_three_encoders_of_their_own(registry):
    own = image_side(load_recipe(base_of("open_choices"), registry))
    others = [
        v for v in read("open_choices")["variants"] if image_side(load("open_choices", v, registry)) != own
    ]
    assert [v["name"] for v in others] == ["phase 2 by the VGG classifier", "phase 2 by sgd"]


def test_each_corruption_is_tested_at_each_rate(registry):
    loaded = [load("figure8", v, registry) for v in read("figure8")["variants"][:10]]
    corruptions = [one.resolved["modalities"]["emr"]["raiser"]["corruption"] for one in loaded]
    assert corruptions == [number / 10 for number in range(10)]
    assert all(one.recipe.evaluation.missing == {"emr": tuple(corruptions)} for one in loaded)
