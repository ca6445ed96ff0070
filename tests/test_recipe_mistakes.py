"""The mistakes that people make in recipes: each is a sentence that says what to do, and none runs silently."""

# ruff: noqa: E501 (a message is one line)

import pytest
import strategies
import toy_images
import toys

from fusionkit import RecipeError
from fusionkit.recipe.load import load_text

REGISTRY = strategies.make_registry()


def problems(text, *overrides):
    with pytest.raises(RecipeError) as caught:
        load_text(text, REGISTRY, name="r.yaml", overrides=overrides)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        # a stage that trains what was never fitted
        (
            "stages.raise_record={fit: [record.encoder, signs.encoder]}",
            "override 'stages.raise_record={fit: [record.encoder, signs.encoder]}': modalities.record.raiser: dae_l1 learns, and no stage names it. Add it to a stage, such as `fit: [record.raiser]`.",
        ),
        # an override of a key that is not there
        (
            "head.dropot=0.3",
            "override 'head.dropot=0.3': head.dropot: no such option of concat_mlp (0.3). Did you mean 'dropout'? Known: activation, dropout, hidden, input_dropout.",
        ),
        (
            "trainig.threads=2",
            "override 'trainig.threads=2': trainig: no such key ({\"threads\": 2}). Did you mean 'training'? Known: description, evaluation, head, modalities, name, seed, seeds, source, split, stages, task, training.",
        ),
        (
            "stages.fues.epochs=2",
            "override 'stages.fues.epochs=2': there is no stage 'fues'. Did you mean 'fuse'? Known: fuse, raise_record.",
        ),
        (
            "modalities.recrod.encoder.flags=true",
            "override 'modalities.recrod.encoder.flags=true': there is no modality 'recrod'. Did you mean 'record'? Known: record, signs.",
        ),
        # a negative size
        ("stages.fuse.batch_size=-8", "override 'stages.fuse.batch_size=-8': stages.fuse.batch_size: must be at least 1 (-8)."),
        ("head.hidden=[8, -4]", "override 'head.hidden=[8, -4]': head.hidden[1]: must be at least 1 (-4)."),
        (
            "modalities.record.raiser.hidden=[-29]",
            "override 'modalities.record.raiser.hidden=[-29]': modalities.record.raiser.hidden[0]: a width is a number, or a multiple of the input such as 20x (-29).",
        ),
        # folds for a given split
        (
            "split={scheme: column, column: side, folds: 5}",
            "override 'split={scheme: column, column: side, folds: 5}': split.folds: no such key (5). Known: column, scheme, test, train, validation.",
        ),
        # a split by sample, which is leakage
        (
            "split={scheme: folds, unit: sample, validation: 0.2}",
            "override 'split={scheme: folds, unit: sample, validation: 0.2}': split.unit: by sample, one subject's samples fall on both sides, which is leakage. Write `unit: subject`, or also `accept_leakage: true`; the report will say so.",
        ),
        # a value of its column that stands for two sets
        (
            "split={scheme: column, column: side, train: [a, b], validation: [c], test: [b]}",
            "override 'split={scheme: column, column: side, train: [a, b], validation: [c], test: [b]}': split: the value 'b' stands for train and test. Name it once.",
        ),
        # validation subjects where there are none
        (
            "split={scheme: folds}",
            "override 'split={scheme: folds}': evaluation.threshold: needs validation subjects, and the split keeps none. Set split.validation: 0.2, or a number here.",
        ),
        (
            "split={scheme: column, column: side}",
            "override 'split={scheme: column, column: side}': evaluation.threshold: needs validation subjects, and the split keeps none. Name its values in split.validation, or a number here.",
        ),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(override, sentence):
    assert problems(strategies.SMALL, override) == [sentence]


def test_early_stopping_needs_validation_subjects():
    assert problems(toys.RECIPE, "stages.fuse.early_stopping=3") == [
        "override 'stages.fuse.early_stopping=3': stages.fuse.early_stopping: needs validation subjects, and the split keeps none. Set split.validation: 0.2, or null here."
    ]


def test_two_stages_of_one_name():
    text = toys.RECIPE.replace("name: fuse", "name: raise_words")
    assert problems(text) == [
        "r.yaml:19: stages.raise_words.name: another stage has this name ('raise_words'). Rename one."
    ]


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        (
            ["head.use=toy_sum", "modalities.image.absent=learned"],
            [
                "override 'modalities.image.absent=learned': modalities.image.absent: the vector learns by gradient through the head, and toy_sum passes none on (learned). Use another head, or write zero."
            ],
        ),
        (
            ["head.use=toy_sum", "modalities.record.dropout=0.3"],
            [
                "override 'modalities.record.dropout=0.3': modalities.record.dropout: train stages that learn by gradient take a modality away, and there is none (0.3). Train a head that learns by gradient, or write 0."
            ],
        ),
        (["modalities.image.dropout=1"], ["override 'modalities.image.dropout=1': modalities.image.dropout: must be less than 1 (1)."]),
        (["modalities.image.dropout=-0.1"], ["override 'modalities.image.dropout=-0.1': modalities.image.dropout: must be at least 0 (-0.1)."]),
        (["modalities.image.absent=mean"], ["override 'modalities.image.absent=mean': modalities.image.absent: must be 'zero' or 'learned' ('mean')."]),
        (
            ["stages.fuse.train=[head, image.absent]"],
            [
                "override 'stages.fuse.train=[head, image.absent]': stages.fuse.train[1]: no such part ('image.absent'). Did you mean 'image.encoder'? Known: head, image.encoder, record.encoder, record.raiser."
            ],
        ),
    ],
)  # fmt: skip
def test_what_absent_modalities_cannot_have(overrides, sentences):
    with pytest.raises(RecipeError) as caught:
        load_text(toy_images.RECIPE, toy_images.make_registry(), name="r.yaml", overrides=overrides)
    assert list(caught.value.problems) == sentences


def test_a_head_in_closed_form_learns_no_vector_and_knows_no_dropout():
    asked = ["modalities.record.absent=learned", "modalities.signs.dropout=0.2"]
    assert problems(strategies.SMALL, "head={use: sklearn, model: svm}", *asked) == [
        "override 'modalities.record.absent=learned': modalities.record.absent: the vector learns by gradient through the head, and sklearn passes none on (learned). Use another head, or write zero.",
        "override 'modalities.signs.dropout=0.2': modalities.signs.dropout: train stages that learn by gradient take a modality away, and there is none (0.2). Train a head that learns by gradient, or write 0.",
    ]


def test_a_head_with_nothing_to_learn_may_have_dropout_where_an_encoder_learns_through_it():
    overrides = ["head.use=toy_sum", "modalities.record.raiser=null", "modalities.image.dropout=0.3"]
    text = toy_images.RECIPE.replace("train: [head]", "train: [head, image.encoder]")
    assert load_text(text, toy_images.make_registry(), overrides=overrides).recipe.dropouts == {"image": 0.3}


def test_a_stage_that_uses_what_is_fitted_only_later():
    text = strategies.SMALL.replace(
        "  - name: raise_record\n    fit: [record.encoder, ", "  - name: early\n    fit: ["
    )
    text = text.replace("split: {", "  - name: late\n    fit: [record.encoder]\nsplit: {")
    assert problems(text) == [
        "r.yaml:23: stages.early: uses record.encoder, which learns only later, in 'late'. Move 'late' up."
    ]


ABSURD = 10**9


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("seeds", 100),
        ("split.folds", 1000),
        ("split.repeats", 1000),
        ("evaluation.resamples", 100_000),
        ("training.threads", 1024),
        ("training.workers", 256),
        ("stages.fuse.epochs", 100_000),
        ("stages.fuse.batch_size", 1_000_000),
        ("stages.fuse.warmup_epochs", 100_000),
        ("stages.fuse.early_stopping", 100_000),
        ("stages.raise_record.epochs", 100_000),
        ("stages.raise_record.batch_size", 1_000_000),
        ("modalities.record.raiser.l1", 1000),
    ],
)
def test_an_absurd_number_is_refused_with_its_bound(path, most):
    override = f"{path}={ABSURD}"
    assert problems(strategies.SMALL, override) == [
        f"override '{override}': {path}: must be at most {most} ({ABSURD})."
    ]


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("seed=9007199254740992", "seed: must be at most 9007199254740991 (9007199254740992)."),
        ("head.hidden=[1000000000]", "head.hidden[0]: must be at most 100000 (1000000000)."),
        ("head.hidden=" + str([8] * 21), f"head.hidden: must have at most 20 entries ({str([8] * 21)[:57]}...)."),
        ("modalities.record.raiser.hidden=[1000000001]", "modalities.record.raiser.hidden[0]: a width is at most 1000000 (1000000001)."),
        ("modalities.signs.raiser.output=1000001x", "modalities.signs.raiser.output: a width is at most 1000000 ('1000001x')."),
        ("stages.fuse.learning_rate=1e39", "stages.fuse.learning_rate: must be at most 1e+38 (1e+39)."),
        ("stages.raise_record.weight_decay=1e39", "stages.raise_record.weight_decay: must be at most 1e+38 (1e+39)."),
        ("stages.fuse.gradient_clip=1e300", "stages.fuse.gradient_clip: must be at most 1e+09 (1e+300)."),
        ("name=" + "a" * 81, f"name: a name has at most 80 characters ('{'a' * 56}...)."),
    ],
)  # fmt: skip
def test_other_absurd_sizes(override, sentence):
    assert problems(strategies.SMALL, override) == [f"override '{override}': {sentence}"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ("views: {patches: {224: 1000000000}}", "views: `patches` are at most 10000 of an image ({\"patches\": {\"224\": 1000000000}})."),
        ("draws: 1000000000", "draws: must be at most 1000 (1000000000)."),
        ("max_pixels: 1000000000000", "max_pixels: must be at most 2000000000 (1000000000000)."),
        ("std: [0.2, 0, 0.2]", "std[1]: must be more than 0 (0)."),
        ("mean: [123.675, 0.4, 0.4]", "mean[0]: must be at most 1 (123.675)."),
    ],
)  # fmt: skip
def test_absurd_images(options, sentence):
    text = strategies.SMALL.replace(
        "  signs:\n    columns: [signs]\n    encoder: {use: structured}\n    raiser: {use: copy, output: 4x}",
        f"  signs: {{encoder: {{use: vgg16_fc, input: {{{options}}}}}}}",
    ).replace("age: {", "picture: {kind: file}\n    age: {")
    found = problems(text)
    assert f"r.yaml:18: modalities.signs.encoder.input.{sentence}" in found


def test_folds_repeats_and_seeds_make_no_absurd_number_together():
    text = strategies.SMALL
    assert problems(text, "split.folds=100", "split.repeats=100", "seeds=2") == [
        "overrides 'split.folds=100', 'split.repeats=100', 'seeds=2': split: too many trainings of one model (100 folds x 100 repeats x 2 seeds = 20000). At most 10000 are run."
    ]
    load_text(text, REGISTRY, overrides=["split.folds=100", "split.repeats=100"])


def test_a_message_is_one_line_whatever_the_file_says():
    text = toys.RECIPE + '"a\\x1b[31m\\u202eb\\nc": 1\n'
    (problem,) = problems(text)
    assert problem.startswith("r.yaml:23: a\\x1b[31m\\u202eb\\nc: no such key (1). Known: ")


def test_a_long_message_loses_its_middle():
    (problem,) = problems(toys.RECIPE + "k" * 1000 + ": 1\n")
    assert len(problem) == 600
    assert problem.startswith("r.yaml:23: kkk")
    assert problem.endswith(
        "no such key (1). Known: description, evaluation, head, modalities, name, seed, seeds, source, split, stages, task, training."
    )


def test_many_problems_are_counted():
    found = problems(toys.RECIPE + "".join(f"key{i}: 1\n" for i in range(5000)))
    assert len(found) == 101
    assert found[-1] == "and 4900 more problems."


def test_an_override_has_no_endless_path():
    override = "seed" + ".a" * 5000 + "=1"
    (problem,) = problems(toys.RECIPE, override)
    assert problem.endswith("the path is more than 50 deep. Write full.path=value.")


def test_what_stands_for_two_classes_is_named_in_short():
    text = strategies.SMALL.replace("[bad]", str([f"v{i // 2}" for i in range(5000)]))
    (problem,) = problems(text)
    assert problem.startswith(
        "r.yaml:2: source: `classes` gives 'v0', 'v1', 'v10', 'v100', 'v1000' and 2495 more to more than one class."
    )


# a second task of a pretrain stage


def image_problems(*overrides):
    with pytest.raises(RecipeError) as caught:
        toy_images.load(*overrides)
    assert caught.value.exit_code == 3
    return [problem.partition("': ")[2] for problem in caught.value.problems]


def test_a_weight_needs_a_second_task_and_is_a_sensible_number():
    assert image_problems("stages.learn_image.auxiliary_weight=0.5") == [
        "stages.learn_image.auxiliary_weight: there is no second task to weigh (0.5). Name its column in `auxiliary`, or leave the weight out."
    ]
    both = ("stages.learn_image.auxiliary=word",)
    toy_images.load(*both, "stages.learn_image.auxiliary_weight=0")
    key = "stages.learn_image.auxiliary_weight"
    assert image_problems(*both, f"{key}=-0.1") == [f"{key}: must be at least 0 (-0.1)."]
    assert image_problems(*both, f"{key}=1e7") == [f"{key}: must be at most 1e+06 (10000000.0)."]
    for value in (".inf", ".nan"):
        (problem,) = image_problems(*both, f"{key}={value}")
        assert problem == f"a number is finite ({value}). Put it in quotes if it is text."


def test_a_second_task_is_reported_with_all_other_problems():
    found = image_problems("stages.learn_image.auxiliary_weight=2", "head.bias=3", "stages.fuse.epochs=0")
    assert len(found) == 3


# a problem is said of the override that makes it, not of the file


def test_of_several_overrides_the_one_that_makes_the_problem_is_named():
    (problem,) = problems(strategies.SMALL, "seed=3", "stages.fuse=null", "seeds=2")
    assert problem == (
        "override 'stages.fuse=null': head: concat_mlp learns, and no stage names it. Add a stage with `train: [head]`."
    )


def test_what_the_file_has_wrong_by_itself_keeps_its_line():
    of_override, at_line = problems(strategies.SMALL.rstrip() + "\nsede: 3\n", "stages.fuse=null")
    assert of_override.startswith("override 'stages.fuse=null': head: concat_mlp learns")
    n_lines = len(strategies.SMALL.rstrip().splitlines()) + 1
    assert at_line.startswith(f"r.yaml:{n_lines}: sede: no such key (3). Did you mean 'seed'?")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        (
            "stages.fuse.pretrain=signs.encoder",
            "stages.fuse: a stage has exactly one verb: fit, pretrain or train (",
        ),
        ("modalities.fused={encoder: {use: structured}}", "a modality cannot be called fused: "),
        ("source.classes={good: good}", "source: `classes` names at least two classes."),
    ],
)
def test_what_is_wrong_with_a_whole_mapping_shows_no_cut_json(override, said):
    (problem,) = problems(strategies.SMALL, override)
    assert problem.startswith(f"override '{override}': {said}")
    assert "..." not in problem
