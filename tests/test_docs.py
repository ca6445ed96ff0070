"""The documents name all that there is: recipe keys with their defaults, commands, public names, files."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

import fusionkit
from fusionkit.cli import COMMANDS
from fusionkit.recipe import schema, task_nodes
from fusionkit.recipe.load import load_recipe, load_text
from fusionkit.recipe.sweep import Sweep, VariantNode
from fusionkit.registry import Registry
from fusionkit.specs import ComponentConfig, Spec, describe
from fusionkit_manifest import ManifestOptions

ROOT = Path(__file__).parent.parent
DOCS = {
    path: path.read_text(encoding="utf-8") for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
}
PLUGINS_PAGE = ROOT / "docs" / "plugins.md"
PAGES = [
    *DOCS,
    *(ROOT / name for name in ("ARCHITECTURE.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md")),
]
NODES = [
    value
    for value in {**vars(schema), **vars(task_nodes)}.values()
    if isinstance(value, type) and issubclass(value, schema.Node) and value is not schema.Node
]
for config in (fusionkit.ColumnSpec, ManifestOptions):
    describe(config)
DESCRIBED = [*NODES, Sweep, VariantNode, schema.Use, fusionkit.ColumnSpec, ManifestOptions]


def default_of(field):
    if field.default_factory is not None or field.default is PydanticUndefined:
        return "required"
    if isinstance(field.default, BaseModel):
        return "see below"
    return "`" + json.dumps(field.default, separators=(", ", ": ")) + "`"


def row_of(name, field):
    return f"| `{name}` | {default_of(field)} | {' '.join(field.description.split())} |"


@pytest.mark.parametrize("node", DESCRIBED, ids=lambda node: node.__name__)
def test_every_recipe_key_is_described_with_its_default(node):
    page = DOCS[ROOT / "docs" / "recipes.md"]
    rows = [row_of(name, field) for name, field in node.model_fields.items()]
    assert [row for row in rows if row not in page] == []


def test_the_page_on_recipes_describes_no_key_that_is_not_there():
    rows = {row_of(name, field) for node in DESCRIBED for name, field in node.model_fields.items()}
    page = DOCS[ROOT / "docs" / "recipes.md"]
    assert [
        line for line in page.splitlines() if re.match(r"\| `[a-z_]+` \| ", line) and line not in rows
    ] == []


def test_the_readme_names_every_command_and_no_other():
    named = set(re.findall(r"^\| `fusionkit ([a-z]+)", DOCS[ROOT / "README.md"], re.MULTILINE))
    assert named == set(COMMANDS)


@pytest.mark.parametrize("name", fusionkit.__all__)
def test_the_page_on_plugins_explains_every_public_name(name):
    assert f"`{name}`" in DOCS[PLUGINS_PAGE]


def tree_of_architecture():
    """Returns the paths of the files below fusionkit/, plugins/ and docs/ in the drawn tree."""
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
        for folder in ("fusionkit", "plugins", "docs")
        for path in (ROOT / folder).rglob("*.py")
        if "template" not in path.parts
    }
    drawn = tree_of_architecture()
    assert (drawn - there, {path for path in there - drawn if not path.endswith("__init__.py")}) == (
        set(),
        set(),
    )


def test_the_layers_of_the_architecture_are_those_that_are_held():
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    told = re.search(r"From the top: (.*?)\. The core", text, re.DOTALL)
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (held,) = [contract["layers"] for contract in contracts if contract["type"] == "layers"]
    names = [set(re.findall(r"`(\w+)`", layer)) for layer in told[1].split(";")]
    assert names == [set(re.findall(r"\w+", layer)) for layer in held]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if not (page.parent / link).exists()] == []


def blocks_of(language, page=ROOT / "README.md"):
    return re.findall(rf"^```{language}\n(.*?)^```", DOCS[page], re.DOTALL | re.MULTILINE)


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


def test_the_readmes_encoder_with_weights_from_a_file_fits_into_its_recipe(tmp_path):
    recipe, encoder = blocks_of("yaml")
    override = f"modalities.image.encoder={json.dumps(yaml.safe_load(encoder))}"
    loaded = load_text(recipe, Registry.discover(), overrides=[override], data_root=tmp_path)
    assert loaded.parts["image.encoder"].config.weights == "weights/vgg16_imagenet_features.safetensors"


def test_the_readmes_recipe_without_weights_needs_the_stage_that_the_readme_gives():
    tree = yaml.safe_load(blocks_of("yaml")[0])
    tree["modalities"]["image"]["encoder"]["weights"] = "none"
    with pytest.raises(fusionkit.RecipeError, match="vgg16_multilevel learns, and no stage names it"):
        load_text(json.dumps(tree), Registry.discover())
    stage = re.search(r"`- (\{name: learn_image.*?\})`", DOCS[ROOT / "README.md"])
    tree["stages"].insert(0, yaml.safe_load(stage[1]))
    load_text(json.dumps(tree), Registry.discover())


def test_predictions_have_the_columns_that_the_readme_lists():
    from fusionkit.predict import Answers

    header = Answers(("<class>",), False, [], columns=("probability_<class>",)).to_csv().strip().split(",")
    assert (
        re.findall(r"^\| `([a-z_<>]+)` \| ", section_of("README.md", "| column | what |"), re.MULTILINE)
        == header
    )


def test_the_source_that_the_page_on_recipes_shows_reads_its_table(tmp_path):
    options = yaml.safe_load(blocks_of("yaml", ROOT / "docs" / "recipes.md")[0])
    use, config = options.pop("use"), ManifestOptions.model_validate(options)
    folder = tmp_path / "my_study"
    folder.mkdir()
    (folder / "rows.csv").write_text(
        "file,diagnosis,age,grade,side,smoker,signs\n"
        "p1_left.png,cyst,54,low,left,?,warmth;scar\n"
        "p1_right.png,malignant,,high,both,no,\n"
        "p2_left.png,unclear,37,low,left,yes,scar\n",
        encoding="utf-8",
    )
    source = Registry.discover().card(fusionkit.SourceSpec, use).build(config)
    manifest = source.read(fusionkit.SourceContext(tmp_path, tmp_path))
    assert (list(manifest.subjects), list(manifest.outcomes)) == (["p1", "p1"], ["benign", "malignant"])
    assert manifest.dropped == {"diagnosis=unclear": 1, "diagnosis=": 0}
    assert manifest.cells_of(0, ["file", "smoker"]) == {
        "file": folder / "files" / "p1_left.png",
        "smoker": None,
    }
    kinds = {spec.kind for spec in source.schema.values()}
    assert kinds == {"file", "numeric", "ordinal", "category", "binary", "multi"}


CARDS = [fusionkit.SourceSpec, fusionkit.EncoderSpec, fusionkit.RaiserSpec, fusionkit.HeadSpec]


def section_of(page, start):
    """Returns a page's table that starts with a line."""
    return DOCS[ROOT / page].split(start + "\n", 1)[1].split("\n\n", 1)[0]


def fields_of(card):
    """Returns each field with its default, as the page writes it; those of all cards come once."""
    inherited = {field.name for field in dataclasses.fields(Spec)} if card is not Spec else set()
    rows = {}
    for field in dataclasses.fields(card):
        default = field.default
        if default is dataclasses.MISSING:
            shown = "required"
        elif default is ComponentConfig:
            shown = "`ComponentConfig`"
        elif callable(default):
            assert default(None) is False
            shown = "never"
        else:
            shown = "`" + (json.dumps(default) if isinstance(default, str) else repr(default)) + "`"
        if field.name not in inherited:
            rows[field.name] = shown
    return rows


@pytest.mark.parametrize("card", [Spec, *CARDS], ids=lambda card: card.__name__)
def test_every_field_of_a_card_stands_in_its_table_with_its_default(card):
    title = "field" if card is Spec else f"`{card.__name__}`"
    table = section_of("docs/plugins.md", f"| {title} | default | meaning |")
    assert dict(re.findall(r"^\| `([a-z_]+)` \| (.+?) \| ", table, re.MULTILINE)) == fields_of(card)


def signature_of(name, function):
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    return name + str(signature.replace(parameters=parameters)).replace("'", "")


def test_every_member_of_an_input_spec_stands_in_the_table_with_its_signature():
    protocol = fusionkit.InputSpec
    members = [f"{name}: {annotation}" for name, annotation in protocol.__annotations__.items()]
    members += [
        signature_of(name, value)
        for name, value in vars(protocol).items()
        if inspect.isfunction(value) and not name.startswith("_")
    ]
    table = section_of("docs/plugins.md", "| member | meaning | example |")
    written = re.findall(r"^\| `(.+?)` \| ", table.replace("\\|", "|"), re.MULTILINE)
    assert written == members


@pytest.mark.parametrize("protocol", [fusionkit.Fittable, fusionkit.SelfSupervised])
def test_the_method_by_which_a_part_learns_has_the_parameters_that_the_page_gives(protocol):
    name, method = next((name, value) for name, value in vars(protocol).items() if name in ("fit", "loss"))
    written = re.search(rf"`{name}\((.+?)\) -> (\w+)`", section_of("docs/plugins.md", LEARNS))
    parameters = inspect.signature(method).parameters
    bare = [text.split("=")[0] for text in written[1].split(", ") if text != "*"]
    assert (["self", *bare], written[2]) == (list(parameters), inspect.signature(method).return_annotation)


LEARNS = "| `learns` | what the module must have | stages that may name it |"


def test_every_way_to_learn_is_explained():
    from typing import get_args

    from fusionkit.specs import Learns

    table = section_of("docs/plugins.md", LEARNS)
    assert re.findall(r"^\| `([a-z_]+)` \| ", table, re.MULTILINE) == list(get_args(Learns))


def test_the_pyproject_of_a_plugin_has_the_entry_point_that_is_looked_for():
    from fusionkit.hookspecs import GROUP

    project = tomllib.loads(blocks_of("toml", PLUGINS_PAGE)[0])["project"]
    assert project["entry-points"] == {GROUP: {"my_signals": "my_signals"}}


def test_the_recipe_of_the_example_is_the_one_that_the_page_shows():
    whole = (ROOT / "examples" / "fusionkit-ecg" / "recipe.yaml").read_text(encoding="utf-8")
    assert blocks_of("yaml", PLUGINS_PAGE) == [re.sub(r"^#.*\n", "", whole, flags=re.MULTILINE)]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.__name__)
def test_the_page_on_components_names_all_that_are_bundled_and_no_other(card):
    kind = card.__name__.removesuffix("Spec").lower()
    table = section_of("docs/components.md", f"| {kind} | when to use it |")
    named = re.findall(r"^\| `([a-z0-9_]+)` \| \S", table, re.MULTILINE)
    assert sorted(named) == Registry.discover().names(kind)
