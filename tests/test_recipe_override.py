"""Overrides: every `use` first, then the rest; null removes a part and the stage entries that name it."""

# ruff: noqa: E501 (a message is one line)

import pytest
import toys

from fusionkit import RecipeError
from fusionkit.recipe import dialect
from fusionkit.recipe.load import load_text
from fusionkit.recipe.override import apply_overrides


def tree():
    return dialect.parse(toys.RECIPE, str)


def at(node, path):
    for key in path.split("."):
        node = node[int(key)] if isinstance(node, list) else node[key]
    return node


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["seed=3"], "seed", 3),
        (["split.folds=4", "split.folds=5"], "split.folds", 5),
        (["description='a: b'"], "description", "a: b"),
        (["description='a=b'"], "description", "a=b"),
        (["evaluation.threshold=validation"], "evaluation", {"threshold": "validation"}),
        (["stages.fuse.learning_rate=1e-4"], "stages.2.learning_rate", 1e-4),
        (["stages.fuse.train=[head]"], "stages.2.train", ["head"]),
        (["stages.fuse={train: [head]}"], "stages.2", {"train": ["head"], "name": "fuse"}),
        (["modalities.words.encoder.width=7"], "modalities.words.encoder", {"use": "toy_mean", "width": 7}),
        (["modalities.words.encoder={use: other}"], "modalities.words.encoder", {"use": "other"}),
        # a new component discards the old one's options, the same one keeps them
        (["modalities.words.raiser.use=toy_repeat"], "modalities.words.raiser", {"use": "toy_repeat"}),
        (["modalities.words.raiser.use=toy_denoise"], "modalities.words.raiser", {"use": "toy_denoise", "width": 5}),
        # every `use` comes first
        (
            ["modalities.words.raiser.times=3", "modalities.words.raiser.use=toy_repeat"],
            "modalities.words.raiser",
            {"use": "toy_repeat", "times": 3},
        ),
        (["modalities.numbers.raiser.use=toy_repeat"], "modalities.numbers.raiser", {"use": "toy_repeat"}),
        (["modalities.more={encoder: {use: toy_mean}}"], "modalities.more", {"encoder": {"use": "toy_mean"}}),
        (["stages.fuse.gradient_clip=null"], "stages.2.gradient_clip", None),
    ],
)  # fmt: skip
def test_an_override_changes_its_node(overrides, path, value):
    changed, problems = apply_overrides(tree(), overrides)
    assert problems == []
    assert at(changed, path) == value


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("modalities.words.raiser=null", ["words.encoder", ["head", "numbers.encoder"]]),
        ("modalities.words=null", [["head", "numbers.encoder"]]),
        ("modalities.numbers=null", ["words.encoder", ["words.raiser"], ["head"]]),
        ("stages.raise_words=null", ["words.encoder", ["head", "numbers.encoder"]]),
    ],
)
def test_null_removes_a_part_and_the_stage_entries_that_name_it(override, named):
    stages = apply_overrides(tree(), [override])[0]["stages"]
    assert [stage.get("fit") or stage.get("train") or stage["pretrain"] for stage in stages] == named


def test_a_removed_stage_may_still_be_overridden():
    changed, _ = apply_overrides(tree(), ["modalities.words=null", "stages.raise_words.epochs=9"])
    assert [stage["name"] for stage in changed["stages"]] == ["fuse"]


def test_the_tree_that_was_given_stays():
    given = tree()
    apply_overrides(given, ["seed=3", "modalities.words=null", "stages.fuse.epochs=9"])
    assert given == tree()


def test_a_plain_tree_is_fine():
    given = {"head": {"use": "a", "x": 1}}
    assert apply_overrides(given, ["head.use=b", "seed=2"]) == ({"head": {"use": "b"}, "seed": 2}, [])


def test_all_that_cannot_be_applied_is_named_at_once():
    _, problems = apply_overrides(
        tree(),
        [
            "seed",
            "head..use=x",
            "seed=",
            "seed=[1",
            "head.bias=!!str x",
            "stages.fus.epochs=3",
            "stages.fuse=3",
            "modalities.wrods.encoder.width=3",
            "modalities.wrods=null",
            "words.encoder.width=3",
            "name.first=x",
            "modalities.words.columns.0=x",
        ],
    )
    modalities = "Did you mean 'words'? Known: numbers, words."
    assert problems == [
        "override 'seed': there is no '='. Write full.path=value.",
        "override 'head..use=x': the path has an empty part (head..use). Write full.path=value.",
        "override 'seed=': there is no value. Write null to remove, or '' for an empty text.",
        "override 'seed=[1': not valid YAML (did not find expected ',' or ']').",
        "override 'head.bias=!!str x': YAML tags are not read (!!str). A recipe holds plain values; `use:` names code.",
        "override 'stages.fus.epochs=3': there is no stage 'fus'. Did you mean 'fuse'? Known: fuse, learn_words, raise_words.",
        "override 'stages.fuse=3': a stage is a mapping or null (3).",
        f"override 'modalities.wrods.encoder.width=3': there is no modality 'wrods'. {modalities}",
        f"override 'modalities.wrods=null': there is no modality 'wrods'. {modalities}",
        "override 'words.encoder.width=3': a path is full. Write modalities.words.encoder.width=3.",
        "override 'name.first=x': 'name' has no keys ('toy'). Override it as a whole.",
        "override 'modalities.words.columns.0=x': 'modalities.words.columns' is a list. Override it as a whole.",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        ("sede=3", "sede: no such key (3). Did you mean 'seed'? Known: description, evaluation, head, modalities, name, seed, seeds, source, split, stages, task, training."),
        ("seed=-1", "seed: must be at least 0 (-1)."),
        ("head.baiss=true", "head.baiss: no such option of toy_linear (true). Did you mean 'bias'? Known: bias."),
        ("stages.fuse.epochs=0", "stages.fuse.epochs: must be at least 1 (0)."),
        ("stages.fuse.train=[head, numbers.encodr]", "stages.fuse.train[1]: no such part ('numbers.encodr'). Did you mean 'numbers.encoder'? Known: head, numbers.encoder, words.encoder, words.raiser."),
        ("modalities.words.encoder={use: toy_mean, widht: 3}", "modalities.words.encoder.widht: no such option of toy_mean (3). Did you mean 'width'? Known: missing, width."),
        ("modalities.numbers.raiser.times=3", "modalities.numbers.raiser.use: is required. The component's name, as `fusionkit list` shows it."),
        ("evaluation.treshold=0.4", "evaluation.treshold: no such key (0.4). Did you mean 'threshold'? Known: interval, missing, missing_draws, modalities_alone, resamples, samples, subject_outcome, threshold, views."),
    ],
)  # fmt: skip
def test_a_mistake_in_a_value_is_found_at_the_override(override, problem, toy_registry):
    with pytest.raises(RecipeError) as caught:
        load_text(toys.RECIPE, toy_registry, overrides=[override])
    assert caught.value.problems[0] == f"override '{override}': {problem}"


def test_what_is_wrong_with_overrides_and_with_the_file_is_said_at_once(toy_registry):
    text = toys.RECIPE.replace("width: 3", "widht: 3").replace("folds: 2", "folds: 1")
    overrides = ["stages.fus.epochs=3", "seed", "seed=-1", "stages.fuse.epochs=9"]
    with pytest.raises(RecipeError) as caught:
        load_text(text, toy_registry, name="toy.yaml", overrides=overrides)
    assert list(caught.value.problems) == [
        "override 'seed': there is no '='. Write full.path=value.",
        "override 'stages.fus.epochs=3': there is no stage 'fus'. Did you mean 'fuse'? Known: fuse, learn_words, raise_words.",
        "override 'seed=-1': seed: must be at least 0 (-1).",
        "toy.yaml:9: modalities.words.encoder.widht: no such option of toy_mean (3). Did you mean 'width'? Known: missing, width.",
        "toy.yaml:22: split.folds: must be at least 2 (1).",
    ]  # fmt: skip


def test_where_the_file_is_no_yaml_overrides_are_read_all_the_same(toy_registry):
    with pytest.raises(RecipeError) as caught:
        load_text("name: [", toy_registry, name="toy.yaml", overrides=["seed", "head.use=x"])
    assert len(caught.value.problems) == 2
    assert caught.value.problems[0] == "override 'seed': there is no '='. Write full.path=value."
    assert caught.value.problems[1].startswith("toy.yaml:")
