"""The typed recipe, and the JSON Schema that editors read."""

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import jsonschema
import pytest
import toys

from fusionkit import ComponentConfig, HeadSpec, RecipeError, hookimpl
from fusionkit.recipe import dialect
from fusionkit.recipe.json_schema import recipe_schema
from fusionkit.recipe.load import load_text
from fusionkit.recipe.schema import FitStage, PretrainStage, Recipe, TrainStage
from fusionkit.registry import Registry

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))


@pytest.fixture(scope="module")
def validator(toy_registry):
    schema = recipe_schema(toy_registry)
    jsonschema.Draft7Validator.check_schema(schema)
    return jsonschema.Draft7Validator(schema)


def tree(text=toys.RECIPE):
    return dialect.parse(text, str)


def test_a_stage_is_known_by_its_verb(toy_registry):
    stages = load_text(toys.RECIPE, toy_registry).recipe.stages
    assert [type(stage) for stage in stages] == [PretrainStage, FitStage, TrainStage]


def test_every_key_is_described():
    def describe(schema):
        for name, node in {"": schema, **schema["$defs"]}.items():
            for key, value in node.get("properties", {}).items():
                own = schema["$defs"].get(value.get("$ref", "").rpartition("/")[2], {})
                assert value.get("description") or own.get("description"), f"{name}.{key}"

    describe(Recipe.model_json_schema())


def test_a_recipe_never_changes(toy_registry):
    recipe = load_text(toys.RECIPE, toy_registry).recipe
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 3


def test_the_schema_accepts_the_toy_recipe_and_what_it_resolves_to(validator, toy_registry):
    validator.validate(tree())
    validator.validate(load_text(toys.RECIPE, toy_registry).resolved)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["head", "bais"], True),
        (["head", "use"], "os.system"),
        (["head", "use"], "toy_mean"),
        (["modalities", "words", "encoder", "width"], "3"),
        (["modalities", "words", "raiser", "use"], "toy_linear"),
        (["modalities", "words", "colums"], []),
        (["modalities", "Words"], {"encoder": {"use": "toy_mean"}}),
        (["stages", 0, "fit"], ["words.encoder"]),
        (["stages", 0, "epocs"], 3),
        (["stages", 1], {"name": "nothing"}),
        (["split", "scheme"], "kfold"),
        (["seeds"], 0),
        (["tarining"], {}),
    ],
)
def test_the_schema_refuses_what_the_loader_refuses(path, value, validator, toy_registry):
    changed = json.loads(json.dumps(tree()))
    node = changed
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    assert not validator.is_valid(changed)
    with pytest.raises(RecipeError):
        load_text(json.dumps(changed), toy_registry)


def test_the_schema_is_draft_7_throughout(toy_registry):
    text = json.dumps(recipe_schema(toy_registry))
    assert not [word for word in ("prefixItems", "discriminator", "#/$defs/Use") if f'"{word}' in text]


def test_a_component_whose_options_have_no_schema_takes_any(toy_registry):
    class Config(ComponentConfig):
        check: Callable[[], int] | None = None

    module = ModuleType("extra")
    card = HeadSpec(name="odd", summary="Odd.", source="", config=Config, build=lambda *_: None)
    module.fusionkit_components = hookimpl(lambda: [card])
    registry = Registry()
    registry.add("toys", toys)
    registry.add("extra", module)
    schema = recipe_schema(registry)
    reason = "Odd. Its options cannot be described (PydanticInvalidForJsonSchema)."
    assert schema["$defs"]["head.odd"] == {"type": "object", "title": "odd", "description": reason}
    assert schema["$defs"]["head.toy_linear"] == recipe_schema(toy_registry)["$defs"]["head.toy_linear"]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_schema_accepts_every_recipe_that_comes_along(path):
    schema = recipe_schema(Registry.discover())
    node = dialect.parse(path.read_text(encoding="utf-8"), str)
    if "base" in node:
        pytest.skip("a sweep, which has its own schema")
    jsonschema.Draft7Validator(schema).validate(node)


@pytest.mark.parametrize("name", ["head", "fused", "none", "words_pretrained"])
def test_a_modality_has_no_name_that_means_something_else(name, toy_registry):
    text = toys.RECIPE.replace("  numbers:", f"  {name}:").replace("numbers.encoder", f"{name}.encoder")
    with pytest.raises(RecipeError) as error:
        load_text(text, toy_registry)
    (problem,) = error.value.problems
    assert (
        f"a modality cannot be called {name}: head, fused, none, what ends in _pretrained and what "
        "contains _missing_ mean something else"
    ) in problem
