"""recipes/compare: every bundled head and raiser has a row, and all rows share what they do not compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusionkit.recipe.sweep import load_sweep
from fusionkit.registry import Registry

FOLDER = Path(__file__).parent.parent / "recipes" / "compare"
PARTS = {"heads": ("head", "head", "concat_mlp"), "raisers": ("raiser", "emr.raiser", "dae_l1")}


@pytest.fixture(scope="module")
def registry():
    return Registry.discover()


def load(name, registry):
    return load_sweep(FOLDER / f"{name}.yaml", registry)


@pytest.mark.parametrize("name", PARTS)
def test_every_bundled_component_has_a_row_and_the_papers_is_the_reference(name, registry):
    kind, path, paper = PARTS[name]
    loaded = load(name, registry)
    rows = {one.variant.name: one.loaded.parts.get(path) for one in loaded.experiments}
    used = {part.use for part in rows.values() if part is not None}
    assert used == set(registry.names(kind))
    assert all(part is None or row.startswith(part.use) for row, part in rows.items())
    assert (loaded.sweep.reference, rows[paper].use) == (paper, paper)
    assert rows[paper].options == registry_options(registry, path)


def registry_options(registry, path):
    """Returns the part's options in the recipe that the sweeps change."""
    from fusionkit.recipe.load import load_recipe

    return load_recipe(FOLDER.parent / "breast_rfn.yaml", registry).parts[path].options


@pytest.mark.parametrize("name", PARTS)
def test_all_rows_share_the_encoders_and_every_stage_but_those_of_what_is_compared(name, registry):
    kind, _, paper = PARTS[name]
    trees = {one.variant.name: one.loaded.resolved for one in load(name, registry).experiments}
    shared = {row: shared_of(tree, kind) for row, tree in trees.items()}
    assert {row for row, tree in shared.items() if tree != shared[paper]} == set()
    assert len({json.dumps(tree) for tree in trees.values()}) == len(trees)


def shared_of(resolved, kind):
    tree = json.loads(json.dumps({key: resolved[key] for key in ("seed", "source", "split", "task")}))
    modalities = json.loads(json.dumps(resolved["modalities"]))
    head = resolved["head"]
    if kind == "raiser":
        modalities["emr"].pop("raiser")
    else:
        head = None
    # a code that is learned first is a stage of its own; a record that is not raised has its encoder's left
    stages = [
        {**stage, "fit": [part for part in stage.get("fit") or () if not part.endswith(".raiser")]}
        for stage in resolved["stages"]
        if stage.get("fit") != ["head"]
    ]
    return [tree, modalities, head, stages]


@pytest.mark.parametrize("name", PARTS)
def test_the_header_says_that_nothing_is_chosen_and_that_the_data_are_simulated(name):
    header = " ".join(
        line.removeprefix("#").strip()
        for line in (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    assert "chooses nothing" in header
    assert "the data are simulated" in header
