from __future__ import annotations

import dataclasses
import hashlib
import os
from typing import ClassVar

import pytest
import toy_images
import toys
from toy_images import FOLD, make_experiment

from fusionkit import DataFile, EncoderSpec, hookimpl
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


class FileConfig(toys.ToyMeanConfig):
    """Options of toy_file: weights that it reads."""

    not_files: ClassVar[tuple[str, ...]] = ("none",)
    weights: DataFile = "none"
    """none, a file or a folder."""


class FilePlugin:
    """A plugin whose encoder names a file."""

    __file__ = __file__

    @staticmethod
    @hookimpl
    def fusionkit_components():
        return [
            EncoderSpec(
                name="toy_file",
                summary="Has an option that names a file.",
                source="ours",
                config=FileConfig,
                build=toys.build_toy_mean,
                reads=("numeric", "category"),
            )
        ]


@pytest.fixture
def with_file(monkeypatch):
    registry = toy_images.make_registry()
    registry.add("file", FilePlugin)
    monkeypatch.setattr(toy_images, "make_registry", lambda: registry)


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


def test_a_file_counts_by_what_is_in_it_wherever_it_lies(tmp_path, with_file):
    def experiment(weights):
        return make_experiment(tmp_path, f"modalities.record.encoder={{use: toy_file, weights: {weights}}}")

    (tmp_path / "moved").mkdir()
    (tmp_path / "one.bin").write_bytes(b"abc")
    (tmp_path / "moved" / "two.bin").write_bytes(b"abc")
    one = experiment("one.bin")
    digest = {"sha256": hashlib.sha256(b"abc").hexdigest()}
    assert described(one, "record.encoder") == {"width": 4, "missing": "zero", "weights": digest}
    before = addresses(one)
    assert addresses(experiment("moved/two.bin")) == before
    assert addresses(experiment(tmp_path / "moved" / "two.bin")) == before
    (tmp_path / "one.bin").write_bytes(b"abd")
    os.utime(tmp_path / "one.bin", ns=(1, 1))
    changed = {name for name, address in addresses(experiment("one.bin")).items() if before[name] != address}
    assert changed == {"pretrain record.encoder", "fit record.raiser", "fit record.scale", "train head"}


@pytest.mark.parametrize("text", ["none", "moved"])
def test_words_and_folders_count_as_they_are_written(tmp_path, with_file, text):
    (tmp_path / "moved").mkdir()
    (tmp_path / "none").write_bytes(b"the word is meant")
    one = make_experiment(tmp_path, f"modalities.record.encoder={{use: toy_file, weights: {text}}}")
    assert described(one, "record.encoder")["weights"] == text


def test_what_variants_share_speaks_in_the_name_of_the_one_that_uses_it(tmp_path):
    said = []

    def teller(name):
        return lambda event, data: said.append((name, event))

    fused = make_experiment(tmp_path, tell=teller("fused"))
    modality = fused.modalities[0]
    alone = dataclasses.replace(toy_images.variant(fused, modality), tell=teller(modality))
    for experiment in (fused, alone, fused):
        reader, portions = experiment.reader(modality), experiment.portions("prediction")
        reader.tell("still_reading", {})
        portions.tell("memory_full", {})
    assert alone.reader(modality) is fused.reader(modality)
    assert alone.portions("prediction") is fused.portions("prediction")
    names = ["fused", "fused", modality, modality, "fused", "fused"]
    assert [name for name, _ in said] == names
