"""Every mistake of a recipe is named, with its line, what was given and what to do; all of them at once."""

# ruff: noqa: E501 (a message is one line)

import os
import time
from pathlib import Path
from types import ModuleType

import pytest
import toys
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fusionkit import (
    ComponentConfig,
    DataError,
    DataFile,
    EncoderSpec,
    HeadSpec,
    PluginError,
    RaiserSpec,
    RecipeError,
    SourceSpec,
    hookimpl,
)
from fusionkit.recipe import dialect
from fusionkit.recipe.load import LoadedRecipe, dump_yaml, load_recipe, load_text
from fusionkit.registry import Registry

BAD = sorted((Path(__file__).parent / "bad_recipes").glob("*.yaml"))


def loaded_or_problems(load):
    """Any other exception is a bug."""
    try:
        return load()
    except RecipeError as error:
        return error.problems or pytest.fail("an error without a problem")


def problems(text, registry, overrides=(), error=RecipeError):
    with pytest.raises(error) as caught:
        load_text(text, registry, name="r.yaml", overrides=overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_a_bad_recipe_says_exactly_what_is_wrong(path, toy_registry, monkeypatch):
    monkeypatch.chdir(path.parent)
    expected = path.read_text(encoding="utf-8").split("# expected:\n")[1].splitlines()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path.name, toy_registry)
    assert list(caught.value.problems) == [
        line.removeprefix("# ").replace("FILE", path.name) for line in expected
    ]
    assert not Path("owned").exists()


def test_a_loaded_recipe_knows_its_parts_in_data_flow_order(toy_registry):
    loaded = load_text(toys.RECIPE, toy_registry, name="toy.yaml")
    assert list(loaded.parts) == ["numbers.encoder", "words.encoder", "words.raiser", "head"]
    raiser = loaded.parts["words.raiser"]
    assert (raiser.path, raiser.modality, raiser.use, raiser.options) == (
        "words.raiser",
        "words",
        "toy_denoise",
        {"width": 5},
    )
    assert (raiser.config.width, raiser.card.name, raiser.plugin.name) == (5, "toy_denoise", "toys")
    assert loaded.parts["head"].modality is None
    assert loaded.parts["head"].options == {"bias": True}
    assert loaded.source_plan.options == {"blanks": False}
    assert loaded.source.classes == ("no", "yes")
    assert loaded.columns == {"numbers": ("number",), "words": ("word",)}
    assert loaded.text == toys.RECIPE


def test_columns_default_to_those_that_the_encoder_reads(toy_registry):
    loaded = load_text(toys.RECIPE, toy_registry, overrides=["modalities.words.columns=null"])
    assert loaded.columns["words"] == ("number", "word")


def test_what_it_resolves_to_loads_as_an_equal_recipe(toy_registry):
    loaded = load_text(toys.RECIPE, toy_registry)
    again = load_text(dump_yaml(loaded.resolved), toy_registry)
    assert again == loaded
    assert again.resolved == loaded.resolved
    assert again != load_text(toys.RECIPE, toy_registry, overrides=["seed=1"])


@pytest.mark.parametrize(
    ("modality", "stages", "parts"),
    [
        ("numbers", {"fuse": ["head", "numbers.encoder"]}, ["numbers.encoder", "head"]),
        (
            "words",
            {"learn_words": "words.encoder", "raise_words": ["words.raiser"], "fuse": ["head"]},
            ["words.encoder", "words.raiser", "head"],
        ),
    ],
)
def test_a_modality_alone_keeps_its_own_stage_entries(modality, stages, parts, toy_registry):
    loaded = load_text(toys.RECIPE, toy_registry)
    alone = loaded.alone(modality)
    named = {
        stage["name"]: stage.get("fit") or stage.get("train") or stage["pretrain"]
        for stage in alone.resolved["stages"]
    }
    assert named == stages
    assert list(alone.parts) == parts
    assert list(alone.recipe.modalities) == list(alone.columns) == [modality]
    others = [f"modalities.{other}=null" for other in loaded.columns if other != modality]
    assert alone == load_text(toys.RECIPE, toy_registry, overrides=others)
    assert loaded == load_text(toys.RECIPE, toy_registry)


def test_a_file_that_is_not_there_is_suggested(tmp_path, toy_registry):
    (tmp_path / "breast_rfn.yaml").write_text(toys.RECIPE)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "brest_rfn.yaml", toy_registry)
    hint = "Did you mean 'breast_rfn.yaml'? Known: breast_rfn.yaml."
    assert caught.value.problems == (f"{tmp_path}/brest_rfn.yaml: there is no such recipe file. {hint}",)
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path, toy_registry)
    assert caught.value.problems == (f"{tmp_path}: a folder, not a recipe file. Known: breast_rfn.yaml.",)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"name: \xff", "not UTF-8 text (byte 6). Save it as UTF-8."),
        (b"PK\x03\x04\x00\x00", "a binary file, not a recipe (byte 4 is zero)."),
        (b"# " + b"x" * (1 << 20), "larger than 1 MiB. This is no recipe."),
        ("name: x".encode("utf-16"), "not UTF-8 text (byte 0). Save it as UTF-8."),
        (b"", "the recipe is empty. A recipe needs name, source, modalities, head, stages, split."),
    ],
)
def test_a_file_that_is_no_recipe(data, sentence, tmp_path, toy_registry):
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, toy_registry)
    assert caught.value.problems == (f"{path}: {sentence}",)


def test_a_byte_order_mark_is_no_mistake(tmp_path, toy_registry):
    path = tmp_path / "r.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + toys.RECIPE.encode())
    assert load_recipe(path, toy_registry).path == path


@pytest.mark.parametrize(
    ("text", "last"),
    [
        ("[" * 10_000, "r.yaml:1: nested more than 50 deep. A recipe needs about 6 levels."),
        ("a: " + "{b: " * 10_000, "r.yaml:1: nested more than 50 deep. A recipe needs about 6 levels."),
        ("\n".join(" " * depth + "a:" for depth in range(1000)), "r.yaml:51: nested more than 50 deep. A recipe needs about 6 levels."),
        ("- " * 10_000, "r.yaml:1: nested more than 50 deep. A recipe needs about 6 levels."),
        ("x: [" + "1, " * 30_000 + "]", "r.yaml:1: more than 20000 values. This is no recipe."),
        ("x: " + "9" * 500_000, f"r.yaml:1: a whole number has at most 18 digits ({'9' * 40}). Put it in quotes if it is text."),
        ("x: " + "y" * 1_000_000, None),
        ("# " + "x" * 1_000_000, "r.yaml: the recipe is empty. A recipe needs name, source, modalities, head, stages, split."),
    ],
    ids=["lists", "mappings", "indents", "dashes", "wide", "digits", "long", "comment"],
)  # fmt: skip
def test_a_hostile_file_is_answered_at_once(text, last, toy_registry):
    started = time.perf_counter()
    found = problems(text, toy_registry)
    assert time.perf_counter() - started < 1
    assert last is None or found[-1] == last


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-3", 0.001), ("1.5", 1.5), (".5", 0.5), ("1.", 1.0), ("+3", 3), ("-0", 0), ("1E3", 1000.0),
        ("true", True), ("false", False), ("null", None), ("~", None), ("", None),
        ("yes", "yes"), ("no", "no"), ("on", "on"), ("True", "True"), ("Null", "Null"),
        ("010", "010"), ("0x10", "0x10"), ("0o7", "0o7"), ("1_000", "1_000"), ("190:20:30", "190:20:30"),
        ("2024-01-01", "2024-01-01"), ("'1'", "1"), ('"true"', "true"), ("<<", "<<"), ("=", "="),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(written, value):
    parsed = dialect.parse(f"a: {written}", str)["a"]
    assert (parsed, type(parsed)) == (value, type(value))


def test_keys_are_text():
    assert dialect.parse("{224: 1, true: 2, null: 3}", str) == {"224": 1, "true": 2, "null": 3}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**17), 10**17)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(["1e-3", "010", "yes", "null", "~", "1_0", "2024-01-01", ".5", ".inf", "a: b", "- a", "1e999", "<<", "9" * 30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(tree=st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_what_is_dumped_parses_back_unchanged(tree):
    parsed = dialect.parse(dump_yaml(tree), str)
    assert (parsed or {}) == tree


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    data=st.binary(max_size=200)
    | st.text(max_size=200).map(str.encode)
    | st.lists(st.sampled_from(toys.RECIPE.split(" ")), max_size=40).map(" ".join).map(str.encode)
)
@example(data=b"a: &a [*a]")
@example(data=b"? [a]\n: b")
@example(data=b"a: *b")
@example(data=b"%YAML 1.1\n---\na: b")
@example(data=b"\x00")
@example(
    data=b"stages: [3, {fit: 3}, {name: [a], train: [[]]}]\nmodalities: {a: 3, b: {encoder: [x]}, c: {encoder: {use: [1]}}}"
)
def test_any_bytes_load_or_are_a_recipe_error(data, toy_registry, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    found = loaded_or_problems(lambda: load_recipe(path, toy_registry))
    assert isinstance(found, LoadedRecipe) or all(problem.startswith(str(path)) for problem in found)


def tree_paths(node, path=()):
    yield path
    if isinstance(node, dict | list):
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            yield from tree_paths(node[key], (*path, key))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=200)
@given(data=st.data(), value=json_values)
def test_any_value_at_any_place_loads_or_is_a_recipe_error(data, value, toy_registry):
    tree = load_text(toys.RECIPE, toy_registry).resolved
    path = data.draw(st.sampled_from(list(tree_paths(tree))[1:]))
    node = tree
    for step in path[:-1]:
        node = node[step]
    node[path[-1]] = value
    found = loaded_or_problems(lambda: load_text(dump_yaml(tree), toy_registry, name="r.yaml"))
    if isinstance(found, LoadedRecipe):
        assert load_text(dump_yaml(found.resolved), toy_registry) == found
    else:
        assert all(problem.startswith("r.yaml") for problem in found)


def plugin_of(*cards):
    module = ModuleType("extra")
    module.fusionkit_components = hookimpl(lambda: cards)
    return module


def test_a_clash_is_the_plugins_mistake():
    registry = Registry()
    registry.add("toys", toys)
    registry.add(
        "extra", plugin_of(HeadSpec(name="toy_linear", summary="", source="", build=lambda *_: None))
    )
    assert problems(toys.RECIPE, registry, error=PluginError) == [
        "r.yaml:11: head.use: head 'toy_linear' is claimed by toys and extra. Uninstall one of them."
    ]
    mixed = problems(toys.RECIPE.replace("folds: 2", "folds: 1"), registry)
    assert [problem.split(":")[1] for problem in mixed] == ["11", "22"]


def test_a_source_that_cannot_be_built_is_the_plugins_mistake():
    def build(config):
        raise OSError("no")

    registry = Registry()
    registry.add("toys", toys)
    registry.add("extra", plugin_of(SourceSpec(name="bad", summary="", source="", build=build)))
    assert problems(toys.RECIPE, registry, ["source.use=bad"], error=PluginError) == [
        "override 'source.use=bad': source.use: plugin extra fails to build bad (OSError: no)."
    ]


def test_a_source_finds_its_files_under_the_data_root(tmp_path, monkeypatch):
    given = []

    class Config(ComponentConfig):
        table: DataFile
        schema_file: DataFile = ""
        folder: str = "stays"

    def build(config):
        given.append(config)
        if "missing" in Path(config.table).name:
            raise DataError(f"{config.table}: not there.")
        if "wrong" in config.table:
            raise RecipeError("table: cannot be wrong.csv.")
        return toys.ToySource(toys.ToySourceConfig())

    registry = Registry()
    registry.add("toys", toys)
    registry.add(
        "extra", plugin_of(SourceSpec(name="files", summary="", source="", config=Config, build=build))
    )
    overrides = ["source.use=files", "source.table=rows.csv"]
    loaded = load_text(toys.RECIPE, registry, overrides=overrides, data_root=tmp_path)
    assert given[-1] == Config(table=f"{tmp_path}/rows.csv")
    assert loaded.source_plan.options == {"table": "rows.csv", "schema_file": "", "folder": "stays"}
    monkeypatch.setenv("FUSIONKIT_DATA", str(tmp_path / "other"))
    load_text(toys.RECIPE, registry, overrides=overrides)
    assert given[-1].table == f"{tmp_path}/other/rows.csv"
    monkeypatch.delenv("FUSIONKIT_DATA")
    load_text(toys.RECIPE, registry, overrides=["source.use=files", "source.table=/rows.csv"])
    assert given[-1].table == "/rows.csv"
    missing = ["source.use=files", "source.table=/missing.csv"]
    assert problems(toys.RECIPE, registry, missing, error=DataError) == ["/missing.csv: not there."]
    assert problems(toys.RECIPE, registry, [*missing, "seed=-1"]) == [
        "override 'seed=-1': seed: must be at least 0 (-1).",
        "/missing.csv: not there.",
    ]
    wrong = ["source.use=files", "source.table=wrong.csv"]
    assert problems(toys.RECIPE, registry, wrong) == [
        "overrides 'source.use=files', 'source.table=wrong.csv': source: table: cannot be wrong.csv."
    ]


def test_every_installed_broken_plugin_is_mentioned_once():
    registry = Registry(broken={"other": "ImportError: x"})
    registry.add("toys", toys)
    assert problems(toys.RECIPE, registry, ["head.use=concat"]) == [
        "override 'head.use=concat': head.use: there is no head of that name ('concat'). Known: toy_linear. "
        "Broken plugins may offer it: other. `fusionkit list` says why."
    ]


def test_a_component_of_another_kind_is_named():
    registry = Registry()
    registry.add("toys", toys)
    assert problems(toys.RECIPE, registry, ["modalities.words.raiser.use=toy_linear"]) == [
        "override 'modalities.words.raiser.use=toy_linear': modalities.words.raiser.use: there is no raiser of that "
        "name ('toy_linear'). It is a head. Did you mean 'toy_repeat'? Known: toy_denoise, toy_repeat."
    ]
    (found,) = problems(toys.RECIPE, registry, ["modalities.words.raiser.use=toy_mean"])
    assert " It is an encoder. " in found


def with_extra(*cards):
    registry = Registry()
    registry.add("toys", toys)
    registry.add("extra", plugin_of(*cards))
    return registry


RULE = HeadSpec(name="rule", summary="", source="", build=lambda *_: None, learns="nothing")
HEADLESS = toys.RECIPE.replace("train: [head, numbers.encoder]", "train: [numbers.encoder]")
RAW = ["modalities.numbers.standardize=false", "modalities.words.standardize=false"]


def test_a_head_that_learns_nothing_is_named_where_its_features_are_standardised():
    registry = with_extra(RULE)
    load_text(toys.RECIPE, registry, overrides=["head.use=rule"])
    sentence = (
        "r.yaml:11: head: rule needs standardised features, and no stage names it. "
        "Add a stage with `train: [head]`, or set standardize: false in every modality."
    )
    text = HEADLESS.replace("use: toy_linear", "use: rule")
    assert problems(text, registry) == [sentence]
    assert problems(text, registry, RAW[:1]) == [sentence]
    load_text(text, registry, overrides=RAW)


def test_no_stage_uses_such_a_head_before_its_features_are_standardised():
    registry = with_extra(RULE)
    text = HEADLESS.replace("use: toy_linear", "use: rule").replace(
        "split:", "  - name: scale\n    train: [head]\nsplit:"
    )
    assert problems(text, registry) == [
        "r.yaml:19: stages.fuse: uses head, which gets standardised features only later, in 'scale'. "
        "Move 'scale' up."
    ]
    load_text(text, registry, overrides=RAW)


def test_no_fit_stage_names_a_head():
    text = toys.RECIPE.replace("use: toy_linear", "use: rule").replace(
        "[words.raiser]", "[words.raiser, head]"
    )
    assert problems(text, with_extra(RULE)) == [
        "r.yaml:17: stages.raise_words.fit[1]: rule is a head, which no fit stage reaches. Name it in a train stage."
    ]


@pytest.mark.parametrize("learns", ["gradient", "self_supervised", "closed_form"])
def test_a_raiser_that_brings_learned_weights_needs_no_stage(learns):
    text = toys.RECIPE.replace("use: toy_denoise, width: 5", "use: weighted, times: 2").replace(
        "  - name: raise_words\n    fit: [words.raiser]\n    epochs: 2\n", ""
    )
    card = RaiserSpec(
        name="weighted", summary="", source="", config=toys.ToyRepeatConfig, build=toys.build_toy_repeat,
        learns=learns, is_pretrained=lambda config: config.times == 2,
    )  # fmt: skip
    load_text(text, with_extra(card))
    (problem,) = problems(text.replace("times: 2", "times: 3"), with_extra(card))
    assert problem.startswith("r.yaml:10: modalities.words.raiser: weighted learns, and no stage names it.")


@pytest.mark.parametrize(
    ("learns", "cure"),
    [
        ("nothing", "Remove the stage."),
        ("closed_form", "Name it in a fit stage."),
        ("self_supervised", "Name it in a fit stage."),
    ],
)
def test_only_an_encoder_that_learns_by_gradient_is_pretrained(learns, cure):
    fixed = EncoderSpec(
        name="fixed", summary="", source="", config=toys.ToyMeanConfig, build=toys.build_toy_mean,
        reads=("numeric", "category"), learns=learns,
    )  # fmt: skip
    text = toys.RECIPE.replace("use: toy_mean, width: 3", "use: fixed, width: 3")
    assert problems(text, with_extra(fixed)) == [
        f"r.yaml:14: stages.learn_words.pretrain: fixed does not learn by gradient from outcomes. {cure}"
    ]


def test_a_pipe_is_no_recipe_and_is_not_waited_for(toy_registry, tmp_path):
    os.mkfifo(tmp_path / "toy.yaml")
    with pytest.raises(RecipeError) as error:
        load_recipe(tmp_path / "toy.yaml", toy_registry)
    assert error.value.problems == (
        f"{tmp_path}/toy.yaml: a pipe or a device, not a recipe file. Give a file.",
    )
