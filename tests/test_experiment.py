from __future__ import annotations

import pytest
import toy_images
import toys
from toy_images import FOLD, make_experiment

from fusionkit import EncoderSpec, hookimpl
from fusionkit.training.stages import plan_steps


class TextInputConfig(toys.ToyMeanConfig):
    """Options of toy_text_input: `input` is a word of its own, and no image options."""

    input: str = "raw"
    """What the encoder does with its numbers."""


class TextInputPlugin:
    """A plugin whose encoder has an option `input` that is read by `forward`."""

    __file__ = __file__

    @staticmethod
    @hookimpl
    def fusionkit_components():
        return [
            EncoderSpec(
                name="toy_text_input",
                summary="Has an option called input.",
                source="ours",
                config=TextInputConfig,
                build=toys.build_toy_mean,
                reads=("numeric", "category"),
            )
        ]


@pytest.fixture
def with_text_input(monkeypatch):
    registry = toy_images.make_registry()
    registry.add("text_input", TextInputPlugin)
    monkeypatch.setattr(toy_images, "make_registry", lambda: registry)


def described(experiment, path):
    return experiment.describe_part(path, experiment.initial(path, 0))["options"]


def addresses(experiment):
    return {" ".join((s.verb, *s.learned)): s.address for s in plan_steps(experiment, FOLD, 0).steps}


def test_image_options_are_left_out_of_a_part_because_the_input_spec_speaks_for_them(tmp_path):
    experiment = make_experiment(tmp_path, "modalities.image.encoder.input.eval_views={patches: {6: 2}}")
    assert described(experiment, "image.encoder") == {"width": 4}


def test_any_other_option_called_input_is_hashed_like_the_rest(tmp_path, with_text_input):
    use = "modalities.record.encoder={use: toy_text_input, input: raw}"
    experiment = make_experiment(tmp_path, use)
    assert described(experiment, "record.encoder") == {"width": 4, "missing": "zero", "input": "raw"}
    before = addresses(experiment)
    after = addresses(make_experiment(tmp_path, use.replace("raw", "log")))
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"pretrain record.encoder", "fit record.raiser", "fit record.scale", "train head"}
