"""The recipes that come along: each loads with the installed plugins, and fits the schema for editors."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import pytest

from fusionkit.recipe.dialect import parse
from fusionkit.recipe.json_schema import recipe_schema
from fusionkit.recipe.load import load_recipe
from fusionkit.recipe.sweep import load_sweep
from fusionkit.registry import Registry

FOLDER = Path(__file__).parent.parent / "recipes"


def read(path):
    return parse(path.read_text(encoding="utf-8"), lambda line: f"{path}:{line}")


# a sweep names a base recipe and variants; it is no recipe by itself
PATHS = [path for path in sorted(FOLDER.rglob("*.yaml")) if "base" not in read(path)]


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


@pytest.fixture(scope="module")
def schema(registry):
    # through JSON, as `fusionkit schema` prints it
    return json.loads(json.dumps(recipe_schema(registry)))


def test_there_are_recipes():
    assert PATHS


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_recipe_loads_and_is_named_like_its_file(path, registry):
    assert load_recipe(path, registry).recipe.name == path.stem


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_recipe_fits_the_json_schema(path, schema):
    jsonschema.Draft7Validator.check_schema(schema)
    errors = jsonschema.Draft7Validator(schema).iter_errors(read(path))
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_what_a_recipe_resolves_to_fits_the_json_schema(path, registry, schema):
    resolved = load_recipe(path, registry).resolved
    errors = jsonschema.Draft7Validator(schema).iter_errors(resolved)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: str(path.relative_to(FOLDER)))
def test_a_recipe_says_what_it_is(path, registry):
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert load_recipe(path, registry).recipe.description


def test_the_sweep_on_missing_modalities_tests_every_row_without_any_image(registry):
    sweep = load_sweep(FOLDER / "compare" / "missing_modality.yaml", registry)
    recipes = {one.variant.name: one.loaded.recipe for one in sweep.experiments}
    assert all(recipe.evaluation.missing == {"image": (1,)} for recipe in recipes.values())
    assert recipes[sweep.sweep.reference].dropouts == {}
    assert recipes["dropout 0.5 of either"].dropouts == {"image": 0.5, "emr": 0.5}
    assert recipes["dropout 0.3, learned vector"].stood_in == ["image"]
