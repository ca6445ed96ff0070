"""Weights come from safetensors files, and from nothing else."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import QUICK, call, write_recipe
from safetensors.torch import save, save_file
from torch import nn

from fusionkit import load_weights
from fusionkit.errors import DataError, IntegrityError

LAYERS = {"0.weight": torch.ones(4, 3, 1, 1), "0.bias": torch.zeros(4)}


def write(folder: Path, prefix: str = "", **more: torch.Tensor) -> Path:
    path = folder / "weights.safetensors"
    save_file({**{prefix + name: tensor for name, tensor in LAYERS.items()}, **more}, path)
    return path


def expected() -> dict[str, torch.Tensor]:
    return nn.Sequential(nn.Conv2d(3, 4, 1)).state_dict()


def test_the_tensors_of_a_prefix_are_read_and_others_left_out(tmp_path):
    path = write(tmp_path, "features.", **{"classifier.bias": torch.ones(2)})
    found = load_weights(path, "features.", expected=expected())
    assert set(found) == set(LAYERS)
    assert all(torch.equal(found[name], tensor) for name, tensor in LAYERS.items())
    assert len(load_weights(str(path))) == 3


def test_names_that_may_be_beyond_what_is_expected_are_left_out_and_no_others(tmp_path):
    path = write(tmp_path, "", **{"fc.bias": torch.ones(2)})
    found = load_weights(path, expected=expected(), beyond={"fc.bias", "fc.weight"})
    assert set(found) == set(LAYERS)
    with pytest.raises(IntegrityError, match=r"\(1 are unknown, such as fc\.bias\)"):
        load_weights(path, expected=expected(), beyond={"fc.weight"})


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {"conv1.weight": torch.ones(4), "fc.bias": torch.ones(2)},
            "2 of 2 tensors are absent, such as 0.weight; 2 are unknown, such as conv1.weight",
        ),
        (
            {**LAYERS, "0.weight": torch.ones(4, 1, 1, 1)},
            "0.weight is (4, 1, 1, 1), and (4, 3, 1, 1) is due",
        ),
        ({"0.weight": LAYERS["0.weight"]}, "1 of 2 tensors are absent, such as 0.bias"),
        ({**LAYERS, "1.bias": torch.ones(1)}, "1 are unknown, such as 1.bias"),
    ],
    ids=["another architecture", "another shape", "absent", "unknown"],
)
def test_weights_of_another_architecture_are_one_sentence(tmp_path, tensors, said):
    path = tmp_path / "x.safetensors"
    save_file(tensors, path)
    with pytest.raises(IntegrityError) as error:
        load_weights(path, expected=expected())
    assert str(error.value) == (
        f"{path}: weights of another architecture ({said}). Name the file of this one."
    )
    assert error.value.exit_code == 6


class Bomb:
    """A pickle that says so when it is opened."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("opened"),)


@pytest.mark.parametrize("name", ["vgg.pt", "vgg.pth", "vgg.bin", "vgg.pkl", "vgg.ckpt"])
def test_a_pickle_is_refused_unread(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(IntegrityError) as error:
        load_weights(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name}: only .safetensors weights are read, never a pickle. Convert the file first."
    )
    assert not (tmp_path / "opened").exists()


def whole() -> bytes:
    return save(LAYERS)


BROKEN = {
    "empty": b"",
    "half a header": whole()[:20],
    "half its tensors": whole()[:-8],
    "a pickle under that name": pickle.dumps(Bomb()),
    "text": b"<html>not found</html>",
    "zeros": bytes(100),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_whole_file_is_one_sentence(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x.safetensors"
    path.write_bytes(BROKEN[name])
    with pytest.raises(IntegrityError) as error:
        load_weights(path)
    first, last = str(error.value).split(" (", 1)
    assert first == f"{path}: not a whole safetensors file"
    assert last.endswith("). Fetch it again.")
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("name", ["not_there.safetensors", "folder.safetensors"])
def test_a_file_that_is_not_there_is_an_error_of_the_data(tmp_path, name):
    (tmp_path / "folder.safetensors").mkdir()
    with pytest.raises(DataError) as error:
        load_weights(tmp_path / name)
    assert str(error.value) == (
        f"{tmp_path / name}: there is no such weights file. Set --data-root or $FUSIONKIT_DATA, or fetch it."
    )


VGG = "modalities.image.encoder={use: vgg16_multilevel, input: {size: 32}, weights: %s}"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "w.pt",
            b"not opened",
            "only .safetensors weights are read, never a pickle. Convert the file first.",
        ),
        (
            "w.safetensors",
            save({"conv1.weight": torch.ones(4)}),
            "weights of another architecture (26 of 26 tensors are absent, such as features.0.weight). "
            "Name the file of this one.",
        ),
        (
            "w.safetensors",
            whole()[:-8],
            "not a whole safetensors file (Error while deserializing header: incomplete metadata, file not "
            "fully covered). Fetch it again.",
        ),
    ],
    ids=["pickle", "another architecture", "truncated"],
)
def test_a_run_with_such_weights_ends_with_code_6(tmp_path, capsys, monkeypatch, name, content, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / name
    path.write_bytes(content)
    arguments = ["run", write_recipe(tmp_path), *QUICK, VGG % name, "--store", "s", "-q"]
    code, out, err = call(capsys, *arguments, "--data-root", "data")
    assert (code, out, err) == (6, "", f"error: modalities.image.encoder.weights: {path}: {said}\n")
    assert not (tmp_path / "s" / "artefacts").exists()
