from __future__ import annotations

import os

import numpy as np
import pytest
import torch
import toys
from torch import nn

from fusionkit.errors import RecipeError
from fusionkit.recipe.load import load_text
from fusionkit.recipe.schema import TrainingNode
from fusionkit.registry import Registry
from fusionkit.training import device
from fusionkit.training.device import (
    Device,
    _with_sentence,
    choose_device,
    describe_environment,
    describe_machine,
)


@pytest.fixture(autouse=True)
def keep_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def without_cuda(monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def test_a_device_that_is_not_there_is_a_recipe_error(monkeypatch):
    without_cuda(monkeypatch)
    with pytest.raises(RecipeError) as error:
        choose_device(TrainingNode(device="cuda"))
    assert str(error.value) == "training.device: no CUDA device is available (cuda). Say auto or cpu."


@pytest.mark.parametrize(
    ("native", "precision", "reason"),
    [(True, "bf16", "cpu multiplies bf16 natively"), (False, "fp32", "cpu does not multiply bf16 natively")],
)
def test_auto_precision_follows_the_processor(monkeypatch, native, precision, reason):
    without_cuda(monkeypatch)
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: native)
    chosen = choose_device(TrainingNode())
    assert (chosen.type, chosen.precision, chosen.reason) == ("cpu", precision, reason)


def test_the_recipe_has_the_last_word_on_the_precision(monkeypatch):
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    chosen = choose_device(TrainingNode(device="cpu", precision="fp32"))
    assert (chosen.precision, chosen.reason) == ("fp32", "the recipe says so")


def test_a_gpu_is_taken_where_there_is_one_and_the_recipe_does_not_say_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    try:
        assert choose_device(TrainingNode()).type == "cuda"
        assert choose_device(TrainingNode(device="cpu")).type == "cpu"
    finally:
        make_careless()


def test_threads_are_set_and_recorded():
    assert choose_device(TrainingNode(device="cpu", threads=1)).threads == 1
    assert torch.get_num_threads() == 1
    assert choose_device(TrainingNode(device="cpu")).threads >= 1


@pytest.mark.parametrize(
    ("jobs", "split", "seeds", "threads"),
    [
        (1, "{scheme: holdout}", 1, 8),
        (4, "{scheme: holdout}", 1, 8),  # one training: three of the jobs would have nothing to do
        (4, "{scheme: holdout}", 2, 4),
        (4, "{scheme: holdout, repeats: 2}", 2, 2),
        (4, "{scheme: folds, folds: 5}", 1, 2),
        (16, "{scheme: folds, folds: 5, repeats: 5}", 1, 1),
        (4, "{scheme: column, column: set}", 1, 8),
    ],
)
def test_the_cores_are_shared_by_the_jobs_that_have_work(monkeypatch, jobs, split, seeds, threads):
    monkeypatch.setattr(device, "n_cores", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    loaded = load_text(
        toys.RECIPE,
        Registry.discover([str(toys.TOY_PATH)]),
        overrides=[f"split={split}", f"seeds={seeds}", f"training={{device: cpu, jobs: {jobs}}}"],
    )
    assert choose_device(loaded.recipe.training, n_jobs=loaded.recipe.n_jobs).threads == threads


def test_the_identity_is_what_results_depend_on_not_the_number_of_threads():
    one, other = (Device("cpu", "fp32", threads, "so") for threads in (1, 8))
    assert one.identity() == other.identity()
    assert one.identity() == {"device": "cpu", "precision": "fp32", "torch": torch.__version__}
    assert Device("cpu", "bf16", 1, "so").identity() != one.identity()


def test_convolutions_are_placed_in_channels_last():
    placed = Device("cpu", "fp32", 1, "").place(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(2, 2)))
    assert placed[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert not placed[0].weight.is_contiguous()
    assert nn.Linear(2, 2).weight.is_contiguous()


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp32", torch.float32)])
def test_autocast_multiplies_in_the_precision(precision, dtype):
    with Device("cpu", precision, 1, "").autocast():
        assert nn.Linear(2, 2)(torch.ones(1, 2)).dtype == dtype


def test_what_is_pinned_or_moved_on_a_cpu_is_the_same_thing():
    cpu, tensor = Device("cpu", "fp32", 1, ""), torch.ones(2)
    raw = {"a": tensor, "b": [tensor, (tensor, "text")]}
    assert cpu.pin(raw) is raw
    moved = cpu.move(raw)
    assert moved["a"] is moved["b"][0] is moved["b"][1][0] is tensor
    assert (type(moved["b"]), type(moved["b"][1]), moved["b"][1][1]) == (list, tuple, "text")


# torch.compile


def compiled(encoder: nn.Module) -> nn.Module:
    return Device("cpu", "fp32", 1, "", compiles=True).compile("image.encoder", encoder)


def test_nothing_is_compiled_unless_the_recipe_says_so():
    encoder = nn.Linear(2, 2)
    assert "forward" not in vars(Device("cpu", "fp32", 1, "").compile("image.encoder", encoder))
    assert choose_device(TrainingNode(device="cpu")).compiles is False
    assert choose_device(TrainingNode(device="cpu", compile=True)).compiles is True


def test_a_compiled_encoder_has_addresses_of_its_own():
    plain, other = (Device("cpu", "fp32", 1, "", compiles=c) for c in (False, True))
    assert other.identity() == {**plain.identity(), "compiled": "yes"}


class Breaks(nn.Module):
    """Cannot be compiled in one piece."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        torch._dynamo.graph_break()
        return inputs


@pytest.mark.slow
def test_what_cannot_be_compiled_whole_is_an_error_never_left_as_it_is():
    with pytest.raises(RecipeError) as error:
        compiled(Breaks())(torch.ones(2))
    text = str(error.value)
    assert text.startswith("training.compile: image.encoder cannot be compiled here (")
    assert text.endswith("). Say `compile: false`.")
    assert "\n" not in text


def test_an_encoders_own_error_stays_its_own():
    with pytest.raises(ZeroDivisionError):
        _with_sentence("image.encoder", lambda inputs: inputs // 0)(1)


@pytest.mark.slow
def test_a_compiled_vgg16_gives_nearly_the_same_features_and_gradients():
    import fusionkit_vgg.vgg16 as vgg
    from fusionkit import ColumnSpec, ImageOptions
    from fusionkit_vgg import MultilevelConfig

    torch.manual_seed(0)
    config = MultilevelConfig(blocks=(1,), input=ImageOptions(size=16))  # the rest takes minutes to compile
    encoder = vgg.Vgg16Multilevel(config, {"image": ColumnSpec(kind="file")}).eval()
    images = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8)

    def outputs() -> list[torch.Tensor]:
        encoder.zero_grad()
        features = encoder(images)
        features.square().mean().backward()
        return [features.detach(), encoder.features[0].weight.grad.clone()]

    plain, names = outputs(), set(encoder.state_dict())
    compiled(encoder)
    assert {"forward", "pretraining_features"} <= set(vars(encoder))
    for before, after in zip(plain, outputs(), strict=True):
        assert torch.allclose(before, after, rtol=1e-3, atol=1e-5)
    assert set(encoder.state_dict()) == names


def test_the_machine_is_described_as_json():
    import json

    described = describe_environment(Device("cpu", "fp32", 1, "so"))
    assert set(describe_machine()) < set(described)
    assert json.loads(json.dumps(described)) == described
    device = {"type": "cpu", "precision": "fp32", "threads": 1, "reason": "so", "compiles": False}
    assert described["device"] == device
    assert described["packages"]["numpy"] == np.__version__
    assert described["threads"]["torch"] == torch.get_num_threads()
    assert any("oneDNN" in line or "MKL" in line for line in described["libraries"])


def test_variables_that_may_change_a_number_are_recorded_and_no_other(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SECRET_TOKEN", "x")
    found = describe_environment(Device("cpu", "fp32", 1, "so"))["variables"]
    assert {"OMP_NUM_THREADS", "MKL_CBWR", "ATEN_CPU_CAPABILITY", "CUBLAS_WORKSPACE_CONFIG"} <= set(found)
    assert not {"SECRET_TOKEN", "HOME", "PATH"} & set(found)


def test_cuda_is_asked_for_the_same_bits(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        choose_device(TrainingNode())
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == (True, False)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        make_careless()


def make_careless() -> None:
    torch.use_deterministic_algorithms(False)
    torch.backends.cudnn.deterministic = False
    torch.utils.deterministic.fill_uninitialized_memory = True
    os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
