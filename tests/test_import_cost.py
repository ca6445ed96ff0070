"""What describes a recipe or a plugin imports nothing heavy, and answers at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import toys

from fusionkit.testing.cards import HEAVY

RECIPES = sorted((Path(__file__).parent.parent / "recipes").rglob("*.yaml"))

# runs one command in a fresh process and then says which heavy packages it has pulled in
PROBE = f"""
import sys
from fusionkit.cli import main
try:
    main(sys.argv[1:])
finally:
    print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)
"""


def probe(*arguments):
    command = [sys.executable, "-c", PROBE, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONUNBUFFERED": ""})


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(toys.RECIPE)
    return path


COMMANDS = {
    "help": ["--help"],
    "list": ["list"],
    "show": ["show", "toy_mean"],
    "schema": ["schema"],
    "validate": ["validate", "RECIPE"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_heavy_is_imported(name, recipe):
    arguments = [recipe if argument == "RECIPE" else argument for argument in COMMANDS[name]]
    done = probe("-p", toys.TOY_PATH, *arguments)
    assert (done.returncode, done.stderr) == (0, "[]\n")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_nothing_heavy_is_imported_for_the_recipes_that_come_along(path):
    done = probe("validate", path)
    assert (done.returncode, done.stderr) == (0, "[]\n")


def test_building_a_source_imports_nothing_heavy():
    script = f"""
import sys
from fusionkit.registry import Registry
for card, _ in Registry.discover().cards("source"):
    for example in card.examples[:1]:
        card.build(example)
        print(card.name, [name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
    assert [line for line in done.stdout.splitlines() if not line.endswith(" []")] == []
