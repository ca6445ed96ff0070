"""sweep files: a base recipe and variants, checked whole before anything is computed."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import toys

from fusionkit.errors import RecipeError
from fusionkit.recipe.load import load_recipe
from fusionkit.recipe.sweep import load_sweep, models_of

SWEEP = """\
name: widths
base: toy.yaml
overrides: {stages.fuse.epochs: 1}
seeds: [3, 4]
reference: narrow
variants:
  - {name: narrow, paper: {accuracy: 0.9}}
  - name: wide
    overrides: {modalities.numbers.encoder.width: 9}
  - name: words only
    overrides: {modalities.numbers: null}
  - name: repeated
    overrides:
      modalities.words.raiser: {use: toy_repeat}
      stages.raise_words: null
    model: words_pretrained
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(toys.RECIPE)
    return tmp_path


def load(folder: Path, registry, text: str, *overrides: str):
    path = folder / "sweep.yaml"
    path.write_text(text)
    return load_sweep(path, registry, overrides)


def problems_of(folder: Path, registry, text: str, *overrides: str) -> list[str]:
    with pytest.raises(RecipeError) as error:
        load(folder, registry, text, *overrides)
    return [problem.replace(f"{folder}/", "") for problem in error.value.problems]


def test_each_variant_is_loaded_with_each_seed_in_the_files_order(folder, toy_registry):
    loaded = load(folder, toy_registry, SWEEP)
    names = [(one.variant.name, one.seed) for one in loaded.experiments]
    assert names == [(name, seed) for name in ("narrow", "wide", "words only", "repeated") for seed in (3, 4)]


def test_overrides_are_those_of_the_command_line(folder, toy_registry):
    """The sweep's first, then the variant's, then what is given: as one command would have them."""
    loaded = load(folder, toy_registry, SWEEP, "stages.fuse.batch_size=5")
    given = {
        "narrow": [],
        "wide": ["modalities.numbers.encoder.width=9"],
        "words only": ["modalities.numbers=null"],
        "repeated": ["modalities.words.raiser={use: toy_repeat}", "stages.raise_words=null"],
    }
    for one in loaded.experiments:
        words = ["stages.fuse.epochs=1", *given[one.variant.name], f"seed={one.seed}"]
        alone = load_recipe(folder / "toy.yaml", toy_registry, [*words, "stages.fuse.batch_size=5"])
        assert one.loaded == alone


def test_without_seeds_there_is_the_recipes_own(folder, toy_registry):
    loaded = load(folder, toy_registry, "{name: one, base: toy.yaml, variants: [{name: a}]}", "seed=7")
    assert [one.seed for one in loaded.experiments] == [7]


def test_a_variant_may_have_a_base_of_its_own(folder, toy_registry):
    (folder / "other").mkdir()
    (folder / "other" / "own.yaml").write_text(toys.RECIPE.replace("name: toy\n", "name: own\n"))
    text = "{name: one, base: toy.yaml, variants: [{name: a}, {name: b, base: other/own.yaml}]}"
    assert [one.loaded.recipe.name for one in load(folder, toy_registry, text).experiments] == ["toy", "own"]


def test_the_models_of_a_run_are_named_as_its_report_names_them(folder, toy_registry):
    loaded = load(folder, toy_registry, SWEEP)
    found = {one.variant.name: models_of(one.loaded) for one in loaded.experiments}
    assert found["narrow"] == ["fused", "numbers", "words", "words_pretrained"]
    assert found["words only"] == ["words", "words_pretrained"]


def test_all_of_a_files_mistakes_are_said_at_once(folder, toy_registry):
    text = (
        "name: Widths\nbase: toy.yaml\nmetrics: accuracy\nmetric: auc\nvariants:\n"
        "  - {name: a, paper: {accuracy: null}}\n"
    )
    assert problems_of(folder, toy_registry, text) == [
        "sweep.yaml:1: name: a name is lower-case letters, digits and _, and starts with a letter "
        "('Widths').",
        "sweep.yaml:3: metrics: no such key ('accuracy'). Did you mean 'metric'? Known: base, curve, "
        "description, metric, name, overrides, reference, roc, seeds, variants.",
        "sweep.yaml:4: metric: must be 'roc_auc', 'accuracy', 'sensitivity', 'specificity', "
        "'average_precision', 'concordance', 'quadratic_kappa', 'rank_error', 'r2', 'mae', 'rmse' or "
        "'spearman' ('auc').",
        "sweep.yaml:6: variants[0].paper.accuracy: must be a number (null).",
    ]


def test_what_a_paper_reports_is_from_0_to_1_where_the_metric_is(folder, toy_registry):
    text = (
        "name: widths\nbase: toy.yaml\nvariants:\n  - {name: a, paper: {accuracy: 92.9, mae: 12.5, r2: -1}}\n"
    )
    assert problems_of(folder, toy_registry, text)[0] == (
        "sweep.yaml:4: variants[0].paper.accuracy: must be from 0 to 1 (92.9)."
    )
    assert len(problems_of(folder, toy_registry, text)) == 3  # mae and r2 are no metrics of a classification


def test_names_seeds_and_references_are_checked(folder, toy_registry):
    text = (
        "name: widths\nseeds: [1, 1]\nreference: wode\nvariants:\n  - {name: wide, overrides: {seed: 3}}\n"
        "  - {name: wide, base: toy.yaml}\n  - {name: narrow, base: toy.yaml, against: narow}\n"
        "  - {name: self, base: toy.yaml, against: self}\n"
    )
    assert problems_of(folder, toy_registry, text) == [
        "sweep.yaml:2: seeds: a seed is named twice ([1, 1]). Name each once.",
        "sweep.yaml:3: reference: no such variant ('wode'). Did you mean 'wide'? Known: narrow, self, wide.",
        "sweep.yaml:5: variants[0]: there is no recipe to change. Give it, or the sweep, a `base`.",
        "sweep.yaml:5: variants[0].overrides.seed: the sweep's `seeds` set it. Leave one of them out.",
        "sweep.yaml:6: variants[1].name: there are two variants of this name ('wide').",
        "sweep.yaml:7: variants[2].against: no such variant ('narow'). Did you mean 'narrow'? Known: narrow, "
        "self, wide.",
        "sweep.yaml:8: variants[3].against: a variant is not compared with itself ('self'). Name another.",
    ]


def test_what_is_wrong_with_a_variant_names_it_and_what_is_wrong_in_all_is_said_once(folder, toy_registry):
    text = SWEEP.replace("numbers.encoder.width: 9", "numbers.encoder.with: 9")
    found = problems_of(folder, toy_registry, text)
    assert len(found) == 1
    assert found[0].startswith("sweep.yaml:8: wide: ")
    assert "Did you mean 'width'?" in found[0]
    (folder / "toy.yaml").write_text(toys.RECIPE.replace("folds: 2", "folds: 1"))
    [problem] = problems_of(folder, toy_registry, SWEEP)
    assert problem == "toy.yaml:22: split.folds: must be at least 2 (1)."


def test_a_row_reads_a_model_that_its_run_has(folder, toy_registry):
    [problem] = problems_of(folder, toy_registry, SWEEP.replace("words_pretrained", "word_pretrained"))
    assert problem.startswith(
        "sweep.yaml:16: variants[3].model: its run has no such model ('word_pretrained')."
    )


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "sweep.yaml: a sweep is a mapping of keys to values (null). Start with `name:`."),
        ("- 1", "sweep.yaml: a sweep is a mapping of keys to values ([1]). Start with `name:`."),
        ("{name: a, base: toy.yaml}", "sweep.yaml:1: variants: is required. The rows, in order."),
        (
            "{name: a, base: gone.yaml, variants: [{name: a}]}",
            "sweep.yaml:1: a: gone.yaml: there is no such recipe file. Did you mean 'toy.yaml'? "
            "Known: sweep.yaml, toy.yaml.",
        ),
        (toys.RECIPE, "sweep.yaml:1: a recipe, not a sweep. Say `fusionkit run`."),
    ],
)
def test_files_that_are_no_sweeps(folder, toy_registry, text, sentence):
    assert problems_of(folder, toy_registry, text) == [sentence]


def test_a_curve_is_of_a_modality_that_every_variant_tests_with_cells_blanked(folder, toy_registry):
    text = (
        "name: curves\nbase: toy.yaml\ncurve: numbers\nvariants:\n"
        "  - {name: with rates, overrides: {evaluation.missing: {numbers: [0.5]}}}\n"
        "  - {name: without}\n"
        "  - {name: another, overrides: {evaluation.missing: {numbers: [0.5]}}, model: words}\n"
    )
    assert problems_of(folder, toy_registry, text) == [
        "sweep.yaml:6: variants[1]: `evaluation.missing` has no rates of the sweep's `curve` (numbers). Give "
        "some, such as evaluation.missing: {numbers: [0, 0.5]}.",
        "sweep.yaml:7: variants[2].model: it does not read the sweep's `curve` ('words').",
    ]


@pytest.mark.parametrize("name", ['"a\\nb"', '"a\\e[31m"', '" a"', '"a "', '"   "', '"a\\u202eb"', '"a\\0b"'])
@pytest.mark.parametrize("key", ["name", "base"])
def test_names_and_bases_are_one_line_each(folder, toy_registry, name, key):
    variant = {"name": "a", "base": "toy.yaml"} | {key: name}
    text = f"name: s\nvariants:\n  - {{name: {variant['name']}, base: {variant['base']}}}\n"
    (problem,) = problems_of(folder, toy_registry, text)
    assert problem.startswith(f"sweep.yaml:3: variants[0].{key}: ")
    assert "must be one line without control characters, and without blanks at its ends" in problem


def test_what_is_wrong_with_the_sweep_and_with_its_recipes_is_said_at_once(folder, toy_registry):
    text = (
        "name: s\nbase: toy.yaml\nreference: nobody\ncurve: pet\nvariants:\n  - {name: a}\n"
        "  - {name: b, overrides: {split.folds: 1}}\n"
    )
    assert problems_of(folder, toy_registry, text) == [
        "sweep.yaml:3: reference: no such variant ('nobody'). Known: a, b.",
        "sweep.yaml:6: variants[0]: has no modality of that name ('pet'). Known: numbers, words.",
        "sweep.yaml:7: b: override 'split.folds=1': split.folds: must be at least 2 (1).",
    ]


def test_a_wrong_shape_hides_nothing_else(folder, toy_registry):
    text = (
        "name: S\nbase: toy.yaml\nseeds: [1, 1]\nmetrics: x\nreference: nobody\nvariants:\n"
        "  - {name: a, paper: {accuracy: much}, overrides: {split.folds: 1}}\n"
        "  - {name: b, overrides: [split.folds], against: gone}\n"
        "  - {name: c, base: 3}\n"
        "  - {name: d, seed: 4, overrides: {seed: 4}}\n"
    )
    found = problems_of(folder, toy_registry, text)
    assert [re.match(r"sweep\.yaml:(\d+): (\S+?): ", problem).groups() for problem in found] == [
        ("1", "name"),
        ("3", "seeds"),
        ("4", "metrics"),
        ("5", "reference"),
        ("7", "variants[0].paper.accuracy"),
        ("8", "variants[1].overrides"),
        ("8", "variants[1].against"),
        ("9", "variants[2].base"),
        ("10", "variants[3].seed"),
        ("10", "variants[3].overrides.seed"),
        ("7", "a"),
    ]
    assert found[-1] == "sweep.yaml:7: a: override 'split.folds=1': split.folds: must be at least 2 (1)."


def test_a_variant_that_is_no_mapping_hides_nothing_else(folder, toy_registry):
    text = (
        "name: s\nbase: toy.yaml\nreference: nobody\nvariants:\n  - plain\n"
        "  - {name: b, overrides: {split.folds: 1}, against: zz}\n"
    )
    found = problems_of(folder, toy_registry, text)
    assert [problem.split(": ")[1] for problem in found] == [
        "reference",
        "variants[0]",
        "variants[1].against",
        "b",
    ]


def test_where_a_name_is_wrong_nobody_is_said_to_be_missing(folder, toy_registry):
    text = "name: s\nbase: 3\nreference: a\nvariants:\n  - {nam: a}\n  - {name: b, against: a}\n"
    assert [problem.split(": ")[1] for problem in problems_of(folder, toy_registry, text)] == [
        "base",
        "variants[0].name",
        "variants[0].nam",
    ]


def test_what_is_wrong_in_every_variant_alike_names_the_sweep(folder, toy_registry):
    text = "name: s\nbase: gone.yaml\nvariants:\n  - {name: a}\n  - {name: b}\n"
    (problem,) = problems_of(folder, toy_registry, text)
    assert problem.startswith("sweep.yaml: gone.yaml: there is no such recipe file.")
