"""The documents name all that there is: recipe keys with their defaults, commands, public names, files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import fusionkit
from fusionkit.cli import COMMANDS
from fusionkit.recipe import schema
from fusionkit.recipe.load import load_recipe, load_text
from fusionkit.registry import Registry

ROOT = Path(__file__).parent.parent
DOCS = {
    path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}
EVERYWHERE = "\n".join(DOCS.values())
PAGES = [
    *DOCS,
    *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md")),
]
NODES = [
    value
    for value in vars(schema).values()
    if isinstance(value, type) and issubclass(value, schema.Node) and value is not schema.Node
]


def default_of(field):
    if field.default_factory is not None or field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    return "`" + json.dumps(field.default, separators=(", ", ": ")) + "`"


def row_of(name, field):
    return f"| `{name}` | {default_of(field)} | {' '.join(field.description.split())} |"


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_recipe_key_is_described_with_its_default(node):
    page = DOCS[ROOT / "docs" / "recipes.md"]
    rows = [row_of(name, field) for name, field in node.model_fields.items()]
    assert [row for row in rows if row not in page] == []


def test_the_page_on_recipes_describes_no_key_that_is_not_there():
    rows = {row_of(name, field) for node in NODES for name, field in node.model_fields.items()}
    rows |= {row_of(name, field) for name, field in schema.Use.model_fields.items()}
    page = DOCS[ROOT / "docs" / "recipes.md"]
    assert [
        line for line in page.splitlines() if re.match(r"\| `[a-z_]+` \| ", line) and line not in rows
    ] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_mentioned(command):
    assert f"fusionkit {command}" in EVERYWHERE


def test_the_readme_names_no_command_that_is_not_there():
    named = set(re.findall(r"^\| `fusionkit ([a-z]+)", DOCS[ROOT / "README.md"], re.MULTILINE))
    assert named == set(COMMANDS)


@pytest.mark.parametrize("name", fusionkit.__all__)
def test_every_public_name_is_mentioned(name):
    assert f"`{name}`" in EVERYWHERE


def tree_of_architecture():
    """Returns the paths of the files below fusionkit/ and plugins/ in the drawn tree."""
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    drawn = re.search(r"<!-- tree -->\n(.*)<!-- /tree -->", text, re.DOTALL)
    assert drawn is not None
    folders, files = [], set()
    for line in drawn[1].splitlines():
        name = line.split()[0] if line.strip() else ""
        depth = (len(line) - len(line.lstrip())) // 4 - 1
        if name.endswith("/"):
            folders = [*folders[:depth], name]
        elif name.endswith(".py") and depth > 0:
            files.add("".join(folders[:depth]) + name)
    return files


def test_the_tree_of_the_architecture_is_the_tree():
    there = {
        path.relative_to(ROOT).as_posix()
        for folder in ("fusionkit", "plugins")
        for path in (ROOT / folder).rglob("*.py")
        if "template" not in path.parts
    }
    drawn = tree_of_architecture()
    assert (drawn - there, {path for path in there - drawn if not path.endswith("__init__.py")}) == (
        set(),
        set(),
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def blocks_of(language):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS[ROOT / "README.md"], re.DOTALL | re.MULTILINE)


def test_the_first_plugin_of_the_readme_is_the_file_and_works():
    file = ROOT / "examples" / "first_plugin.py"
    assert blocks_of("python") == [file.read_text(encoding="utf-8")]
    registry = Registry.discover([str(file)])
    assert registry.broken == {}
    card = registry.card(fusionkit.RaiserSpec, "fourier")
    raiser = card.build(card.examples[0], 5)
    assert raiser(torch.randn(3, 5)).shape == (3, raiser.output_dim) == (3, 8)


def test_the_readmes_recipe_for_real_data_loads_and_reads_its_table(tmp_path):
    (tmp_path / "my_study").mkdir()
    (tmp_path / "my_study" / "rows.csv").write_text(blocks_of("csv")[0], encoding="utf-8")
    loaded = load_text(blocks_of("yaml")[0], Registry.discover(), data_root=tmp_path)
    manifest = loaded.source.read(fusionkit.SourceContext(tmp_path, tmp_path))
    assert loaded.columns == {"image": ("image",), "record": ("age", "smoker")}
    assert list(manifest.subjects) == ["p1", "p1", "p2"]
    assert list(manifest.outcomes) == ["malignant", "malignant", "benign"]
    assert manifest.cells_of(2, ["age", "smoker"]) == {"age": "37", "smoker": None}


OVERRIDES = re.findall(r"^\| `([a-z_.]+=[^`]*)` \|", DOCS[ROOT / "docs" / "recipes.md"], re.MULTILINE)


def test_there_are_overrides_to_try():
    assert len(OVERRIDES) >= 6


@pytest.mark.parametrize("override", OVERRIDES)
def test_the_overrides_that_the_page_shows_can_be_applied(override):
    loaded = load_recipe(ROOT / "recipes" / "breast_rfn.yaml", Registry.discover(), [override])
    assert loaded.recipe.name == "breast_rfn"


def test_the_first_plugin_fits_into_the_papers_recipe_as_the_readme_says():
    command = "-p examples/first_plugin.py run recipes/breast_rfn.yaml modalities.emr.raiser.use=fourier"
    assert command in DOCS[ROOT / "README.md"]
    registry = Registry.discover([str(ROOT / "examples" / "first_plugin.py")])
    loaded = load_recipe(ROOT / "recipes" / "breast_rfn.yaml", registry, [command.split()[-1]])
    assert loaded.parts["emr.raiser"].use == "fourier"


@pytest.mark.parametrize("code", range(2, 9))
def test_every_exit_code_stands_in_the_readme(code):
    from fusionkit import errors

    known = {cls.exit_code for cls in errors.FusionkitError.__subclasses__()}
    assert code in known
    assert re.search(rf"^\| {code} \| ", DOCS[ROOT / "README.md"], re.MULTILINE)
