"""Generated recipes and overrides: a recipe and its plan, or a clear error; the schema says the same."""

import contextlib
import io
import json

import jsonschema
import pytest
import strategies
from hypothesis import given
from pydantic import ValidationError
from strategies import answer, bounded, bounded_memory, flaws

from fusionkit import cli
from fusionkit.dry_run import plan_work
from fusionkit.errors import FusionkitError
from fusionkit.prepare import Places
from fusionkit.recipe.components import _use_nodes
from fusionkit.recipe.load import LoadedRecipe, dump_yaml, load_recipe, load_text
from fusionkit.recipe.schema import Recipe
from fusionkit.recipe.shape import validate_strictly

REGISTRY = strategies.make_registry()
VALIDATOR = jsonschema.Draft7Validator(strategies.SCHEMA)
SECONDS = 3
RECIPE, DATA, RESOURCES = 3, 4, 8
planned = strategies.mutated_trees(strategies.PLANNED_TREES, most=2)
overridden = strategies.override_lists()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "rows.csv").write_text(strategies.SMALL_TABLE)
    return folder


def check_bytes(data, folder):
    """What loads resolves to a recipe that loads as an equal one; what does not says where."""
    path = folder / "r.yaml"
    path.write_bytes(data)
    found = answer(lambda: load_recipe(path, REGISTRY, data_root=folder), RECIPE)
    if isinstance(found, LoadedRecipe):
        assert load_text(dump_yaml(found.resolved), REGISTRY, data_root=folder) == found
    else:
        assert all(problem.startswith((str(path), "and ")) for problem in found.problems)


def check_overrides(text, overrides, folder):
    answer(lambda: load_text(text, REGISTRY, overrides=overrides, data_root=folder), RECIPE)


def check_plan(tree, folder):
    """What loads has a plan, or its data say why not."""
    text = dump_yaml(tree)
    loaded = answer(lambda: load_text(text, REGISTRY, data_root=folder), RECIPE)
    if isinstance(loaded, FusionkitError) or n_trainings(loaded) > 40:
        return  # a plan takes its time for every training that is asked for
    places = Places(folder, folder / "store", folder / "runs")
    with bounded_memory():
        work = answer(lambda: plan_work(loaded, places, lambda name, data: None), RECIPE, DATA, RESOURCES)
    assert isinstance(work, FusionkitError) or json.loads(json.dumps(work))["steps"]


def n_trainings(loaded):
    split = loaded.recipe.split
    return loaded.recipe.seeds * getattr(split, "repeats", 1) * getattr(split, "folds", 1)


def check_command(data, folder):
    """The command prints sentences, and ends with the recipe's exit code or with 0."""
    path = folder / "c.yaml"
    path.write_bytes(data)
    with contextlib.redirect_stderr(io.StringIO()) as errors, contextlib.redirect_stdout(io.StringIO()):
        code = cli._call(["validate", str(path), "--data-root", str(folder)])
    lines = errors.getvalue().splitlines()
    assert code in (0, RECIPE)
    assert bool(lines) == bool(code)
    assert [line for line in lines if not line.startswith("error: ") or flaws(line)] == []


def shape_errors(tree):
    """Returns pydantic's error types for the recipe's own keys and for every component's options."""
    found = []
    for model, node in [(Recipe, tree), *components(tree)]:
        try:
            validate_strictly(model, node)
        except ValidationError as error:
            found += [details for details in error.errors(include_url=False) if is_real(details)]
    return found


def is_real(details):
    """Whether an entry is wrong by itself: pydantic counts only a list's right entries."""
    return details["type"] != "too_short" or len(details["input"]) < details["ctx"]["min_length"]


def components(tree):
    for _, kind, _, node in _use_nodes(tree):
        use = node.get("use") if isinstance(node, dict) else None
        for card, _ in REGISTRY.cards(kind):
            if card.name == use:
                yield card.config, {key: value for key, value in node.items() if key != "use"}


def without_whole_floats(node):
    """Returns a tree in which 1.0 is 1: JSON Schema calls both whole numbers, YAML 1.2 and we do not."""
    if isinstance(node, dict):
        return {key: without_whole_floats(value) for key, value in node.items()}
    if isinstance(node, list):
        return [without_whole_floats(value) for value in node]
    return int(node) if isinstance(node, float) and node.is_integer() else node


def check_agreement(tree):
    """What the loader's first passes accept, the schema accepts, and what they refuse, it refuses."""
    tree = without_whole_floats(tree)
    errors = shape_errors(tree)
    if errors and all(error["type"] == "value_error" or "[key]" in error["loc"] for error in errors):
        return  # a check between values, or of a mapping's keys
    problem = next(iter(VALIDATOR.iter_errors(tree)), None)
    # names of components and of stages are what later passes look at
    is_later = problem is not None and list(problem.path)[-1:] in (["use"], ["name"])
    assert bool(errors) == (problem is not None) or is_later, (errors, problem)


@bounded(150)
@given(data=strategies.recipe_bytes)
def test_any_file_is_a_recipe_or_an_error(data, folder):
    check_bytes(data, folder)


@bounded(60)
@given(both=overridden)
def test_any_overrides_apply_or_are_an_error(both, folder):
    check_overrides(*both, folder)


@bounded(60)
@given(tree=planned)
def test_any_recipe_that_loads_has_a_plan_or_an_error(tree, folder):
    check_plan(tree, folder)


@bounded(60)
@given(tree=strategies.mutated_trees(strategies.TREES))
def test_the_schema_agrees_with_the_loader(tree):
    check_agreement(tree)


@bounded(20)
@given(data=strategies.recipe_bytes)
def test_the_command_prints_sentences(data, folder):
    check_command(data, folder)


@pytest.mark.slow
@bounded(2000, SECONDS)
@given(data=strategies.recipe_bytes)
def test_two_thousand_files_are_recipes_or_errors(data, folder):
    check_bytes(data, folder)


@pytest.mark.slow
@bounded(800, SECONDS)
@given(both=overridden)
def test_eight_hundred_overrides_apply_or_are_errors(both, folder):
    check_overrides(*both, folder)


@pytest.mark.slow
@bounded(500, SECONDS)
@given(tree=planned)
def test_five_hundred_recipes_have_a_plan_or_an_error(tree, folder):
    check_plan(tree, folder)


@pytest.mark.slow
@bounded(1000, SECONDS)
@given(tree=strategies.mutated_trees(strategies.TREES))
def test_the_schema_agrees_with_the_loader_a_thousand_times(tree):
    check_agreement(tree)


@pytest.mark.slow
@bounded(100, SECONDS)
@given(data=strategies.recipe_bytes)
def test_the_command_prints_sentences_a_hundred_times(data, folder):
    check_command(data, folder)
