from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fusionkit.errors import PluginError, ResourceError, TrainingError
from fusionkit.model import seed_of, state_digest
from fusionkit.recipe.schema import LoopOptions
from fusionkit.store import Store
from fusionkit.training import train
from fusionkit.training.train import Loop, delete_checkpoint, learning_rate, run_loop

ADDRESS = "c" * 64
N_ROWS, BATCH = 20, 6
N_BATCHES = 4


def make_data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(N_ROWS, 3, 6, 6, generator=generator)
    return images, (images.mean((1, 2, 3)) > 0).long()


IMAGES, TARGETS = make_data()


def make_modules() -> dict[str, nn.Module]:
    """A channels_last convolution with batch normalisation, and a head with dropout."""
    torch.manual_seed(2)
    encoder = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 2))
    modules = {"image.encoder": encoder.to(memory_format=torch.channels_last), "head": head}
    for module in modules.values():
        module.eval().requires_grad_(False)
    return modules


def order_of(epoch: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(epoch)
    return list(torch.randperm(N_ROWS, generator=generator).split(BATCH))


def logits_of(modules: dict[str, nn.Module], index: Tensor) -> Tensor:
    return modules["head"](modules["image.encoder"](IMAGES[index]))


@dataclass
class Bench:
    """A loop, its modules, and what it told."""

    modules: dict[str, nn.Module]
    loop: Loop
    told: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    stop_after: int | None = None

    def tell(self, name: str, data: Any) -> None:
        self.told.append((name, dict(data)))
        if name == "epoch_finished" and self.stop_after == data["epoch"]:
            raise KeyboardInterrupt

    def run(self, store: Store) -> list[dict[str, float]]:
        return run_loop(self.loop, store, ADDRESS, self.tell)

    def digests(self) -> dict[str, str]:
        return {path: state_digest(module) for path, module in self.modules.items()}


def make_bench(patience: int | None = None, validate: Any = None, loss: Any = None, **options: Any) -> Bench:
    modules = make_modules()

    def cross_entropy(index: Tensor, generator: torch.Generator) -> Tensor:
        noise = 0.01 * torch.randn(1, generator=generator)
        return nn.functional.cross_entropy(logits_of(modules, index), TARGETS[index]) + noise.squeeze()

    loop = Loop(
        modules=modules,
        batches=order_of,
        n_batches=N_BATCHES,
        loss=loss or cross_entropy,
        name_of=lambda index: ", ".join(f"sample {i}" for i in index.tolist()),
        options=LoopOptions(**{"epochs": 5, "batch_size": BATCH, "learning_rate": 0.05, **options}),
        seed=9,
        where="stage fuse",
        device=torch.device("cpu"),
        validate=None if validate is None else lambda: validate(modules),
        patience=patience,
    )
    return Bench(modules, loop)


OPTIMIZERS = ("sgd", "adam", "adamw")


def plain_loop(name: str, epochs: int, decay: float) -> dict[str, nn.Module]:
    """The loop as anybody would write it."""
    modules = make_modules()
    for module in modules.values():
        module.requires_grad_(True)
    parameters = [p for path in ("head", "image.encoder") for p in modules[path].parameters()]
    optimizer = {
        "sgd": lambda: torch.optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=decay),
        "adam": lambda: torch.optim.Adam(parameters, 0.05, weight_decay=decay, fused=True),
        "adamw": lambda: torch.optim.AdamW(parameters, 0.05, weight_decay=decay, fused=True),
    }[name]()
    for epoch in range(epochs):
        seed = seed_of(9, "epoch", epoch)
        torch.manual_seed(seed)
        generator = torch.Generator().manual_seed(seed)
        for module in modules.values():
            module.train()
        for index in order_of(epoch):
            noise = 0.01 * torch.randn(1, generator=generator)
            loss = nn.functional.cross_entropy(logits_of(modules, index), TARGETS[index]) + noise.squeeze()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return modules


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_loop_equals_a_plain_loop_bit_for_bit(tmp_path, name):
    bench = make_bench(optimizer=name, weight_decay=0.1)
    torch.manual_seed(77)
    bench.run(Store(tmp_path))
    expected = plain_loop(name, 5, 0.1)
    assert bench.digests() == {path: state_digest(module) for path, module in expected.items()}
    assert bench.digests() != {path: state_digest(module) for path, module in make_modules().items()}


def test_what_has_learned_is_frozen_again(tmp_path):
    bench = make_bench()
    bench.run(Store(tmp_path))
    for module in bench.modules.values():
        assert not any(part.training for part in module.modules())
        assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_history_is_the_mean_loss_of_each_epoch_and_is_told(tmp_path):
    losses: list[float] = []

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        value = nn.functional.cross_entropy(bench.modules["head"](torch.ones(len(index), 4)), TARGETS[index])
        losses.append(float(value.detach()))
        return value

    bench = make_bench(loss=loss, epochs=2)
    history = bench.run(Store(tmp_path))
    assert [record["epoch"] for record in history] == [1, 2]
    assert [record["loss"] for record in history] == pytest.approx([sum(losses[:4]) / 4, sum(losses[4:]) / 4])
    told = [data for name, data in bench.told if name == "epoch_finished"]
    assert told == [{"where": "stage fuse", "epochs": 2, **record} for record in history]
    batches = [data for name, data in bench.told if name == "batch_finished"]
    assert batches[5] == {"where": "stage fuse", "epoch": 2, "epochs": 2, "batch": 2, "batches": 4}


# stop and resume


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("stop_after", [1, 2, 4])
def test_stopped_and_resumed_it_ends_at_the_same_weights(tmp_path, monkeypatch, name, stop_after):
    straight = make_bench(optimizer=name, schedule="cosine", warmup_epochs=1)
    expected = straight.run(Store(tmp_path / "straight"))
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    stopped = make_bench(optimizer=name, schedule="cosine", warmup_epochs=1)
    stopped.stop_after = stop_after
    with pytest.raises(KeyboardInterrupt):
        stopped.run(Store(tmp_path / "store"))
    resumed = make_bench(optimizer=name, schedule="cosine", warmup_epochs=1)
    torch.manual_seed(123)
    history = resumed.run(Store(tmp_path / "store"))
    epochs = [data["epoch"] for told, data in resumed.told if told == "epoch_finished"]
    assert epochs == list(range(stop_after, 6)), "at most one epoch is computed again"
    continued = [data["epoch"] for told, data in resumed.told if told == "stage_continued"]
    assert continued == [stop_after - 1] * (stop_after > 1)
    assert resumed.digests() == straight.digests()
    assert history == expected


def test_a_checkpoint_restores_channels_last_moments_with_their_strides(tmp_path, monkeypatch):
    """Contiguous moments beside channels_last weights give silently wrong fused updates on CPU."""
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    stopped = make_bench(optimizer="adamw")
    stopped.stop_after = 2
    with pytest.raises(KeyboardInterrupt):
        stopped.run(Store(tmp_path))
    seen = []
    real = train._restore

    def look(loop, optimizer, store, address):
        found = real(loop, optimizer, store, address)
        for parameter, state in optimizer.state.items():
            seen.extend(state[what].stride() == parameter.stride() for what in ("exp_avg", "exp_avg_sq"))
        return found

    monkeypatch.setattr(train, "_restore", look)
    resumed = make_bench(optimizer="adamw")
    assert not resumed.modules["image.encoder"][0].weight.is_contiguous()
    resumed.run(Store(tmp_path))
    assert len(seen) == 12
    assert all(seen)


def test_resuming_keeps_the_best_weights_and_the_patience(tmp_path, monkeypatch):
    scores = [3.0, 2.0, 2.5, 2.6, 2.7, 2.8]

    def run(store: Store, stop_after: int | None) -> Bench:
        bench = make_bench(
            epochs=6,
            patience=3,
            validate=lambda modules: scores[sum(name == "epoch_finished" for name, _ in bench.told) + done],
        )
        bench.stop_after = stop_after
        bench.run(store)
        return bench

    done = 0
    straight = run(Store(tmp_path / "straight"), None)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        run(Store(tmp_path / "store"), 4)
    done = 3
    resumed = run(Store(tmp_path / "store"), None)
    assert resumed.digests() == straight.digests()
    assert [data["epoch"] for name, data in resumed.told if name == "epoch_finished"] == [4, 5]


def test_a_part_whose_path_begins_with_anothers_resumes_and_restores_its_best(tmp_path, monkeypatch):
    """A pretrain stage learns image.encoder and image.encoder.classifier."""
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)

    def run(stop_after: int | None) -> Bench:
        bench = make_bench(validate=lambda modules: 1.0, patience=9)
        modules = {
            "image.encoder": bench.modules["image.encoder"],
            "image.encoder.classifier": bench.modules["head"],
        }
        bench.loop = Loop(**{**vars(bench.loop), "modules": modules})
        bench.stop_after = stop_after
        bench.run(Store(tmp_path))
        return bench

    with pytest.raises(KeyboardInterrupt):
        run(3)
    resumed = run(None)
    assert [data["epoch"] for name, data in resumed.told if name == "epoch_finished"] == [3, 4, 5]


def test_checkpoints_are_seldom_and_deleted_when_asked(tmp_path, monkeypatch):
    store = Store(tmp_path)
    bench = make_bench()
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 1e9)
    bench.run(store)
    assert not (tmp_path / "checkpoints").exists()
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    make_bench().run(store)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [f"{ADDRESS}.safetensors"]
    delete_checkpoint(store, ADDRESS)
    delete_checkpoint(store, ADDRESS)
    assert list((tmp_path / "checkpoints").iterdir()) == []
    again = make_bench()
    again.run(store)
    assert [data["epoch"] for name, data in again.told if name == "epoch_finished"] == [1, 2, 3, 4, 5]


def test_a_broken_checkpoint_is_set_aside_and_training_starts_over(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    straight = make_bench()
    straight.run(Store(tmp_path / "straight"))
    stopped = make_bench()
    stopped.stop_after = 3
    with pytest.raises(KeyboardInterrupt):
        stopped.run(Store(tmp_path / "store"))
    path = tmp_path / "store" / "checkpoints" / f"{ADDRESS}.safetensors"
    path.write_bytes(path.read_bytes()[:-3])
    resumed = make_bench()
    with pytest.warns(UserWarning, match="set aside in broken/"):
        resumed.run(Store(tmp_path / "store"))
    assert resumed.digests() == straight.digests()


# early stopping


def test_early_stopping_restores_the_best_weights(tmp_path):
    scores, states = [2.0, 1.0, 1.5, 1.0, 0.5], []

    def validate(modules: dict[str, nn.Module]) -> float:
        assert not any(module.training for module in modules.values())
        states.append({path: state_digest(module) for path, module in modules.items()})
        return scores[len(states) - 1]

    bench = make_bench(epochs=9, patience=2, validate=validate)
    history = bench.run(Store(tmp_path))
    assert [record["validation_loss"] for record in history] == [2.0, 1.0, 1.5, 1.0], "equal is not better"
    assert bench.digests() == states[1] != states[3]


def test_the_best_weights_are_restored_even_where_all_epochs_are_used(tmp_path):
    states = []

    def validate(modules: dict[str, nn.Module]) -> float:
        states.append({path: state_digest(module) for path, module in modules.items()})
        return float(len(states))

    bench = make_bench(epochs=3, patience=9, validate=validate)
    bench.run(Store(tmp_path))
    assert len(states) == 3
    assert bench.digests() == states[0]


# what is not finite


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_and_saves_nothing(tmp_path, monkeypatch, value):
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    calls = []

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        calls.append(index)
        return logits_of(bench.modules, index).square().sum() * (value if len(calls) == 3 else 1.0)

    bench = make_bench(loss=loss)
    with pytest.raises(TrainingError) as error:
        bench.run(Store(tmp_path))
    rows = ", ".join(f"sample {i}" for i in order_of(0)[2].tolist())
    assert str(error.value) == (
        f"stage fuse: the loss is not finite ({value}) in epoch 1, batch 3: {rows}. "
        "Lower the learning rate, or look at these rows."
    )
    assert error.value.exit_code == 7
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{}, {"gradient_clip": 1.0}])
def test_a_gradient_that_is_not_finite_stops_before_it_spoils_a_weight(tmp_path, monkeypatch, options):
    """The loss is finite, its gradient is not."""
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        return (bench.modules["head"][1].weight * 0.0).sum().sqrt()

    bench = make_bench(loss=loss, epochs=1, **options)
    bench.loop = Loop(**{**vars(bench.loop), "batches": lambda epoch: order_of(epoch)[:1], "n_batches": 1})
    with pytest.raises(TrainingError) as error:
        bench.run(Store(tmp_path))
    rows = ", ".join(f"sample {i}" for i in order_of(0)[0].tolist())
    assert str(error.value) == (
        f"stage fuse: the gradient of head is not finite in epoch 1, batch 1: {rows}. "
        "Lower the learning rate, or look at these rows."
    )
    assert list(tmp_path.iterdir()) == []
    assert bench.digests() == {path: state_digest(module) for path, module in make_modules().items()}


def test_gradients_that_are_finite_each_and_overflow_together_are_no_mistake(tmp_path):
    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        return 3e38 * bench.modules["head"][1].weight.sum()

    bench = make_bench(loss=loss, epochs=1)
    bench.run(Store(tmp_path))
    assert all(bool(torch.isfinite(p).all()) for m in bench.modules.values() for p in m.parameters())


def test_weights_that_the_last_step_has_spoilt_are_not_saved(tmp_path, monkeypatch):
    """Loss and gradient are finite, the step is not, and no further batch would show it."""
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        return 1e30 * bench.modules["head"][1].weight.sum()

    bench = make_bench(loss=loss, epochs=1, optimizer="sgd", learning_rate=1e30)
    bench.loop = Loop(**{**vars(bench.loop), "batches": lambda epoch: order_of(epoch)[:1], "n_batches": 1})
    with pytest.raises(TrainingError) as error:
        bench.run(Store(tmp_path))
    assert str(error.value) == (
        "stage fuse: the weights of head are not finite after epoch 1. "
        "Lower the learning rate, or set gradient_clip."
    )
    assert list(tmp_path.iterdir()) == []


def test_what_is_known_of_values_that_are_not_finite_is_said(tmp_path):
    bench = make_bench(loss=lambda index, generator: bench.modules["head"][1].weight.sum() * math.nan)
    bench.loop = Loop(**{**vars(bench.loop), "explain": lambda index: f"Rows: {len(index)}. "})
    with pytest.raises(TrainingError, match=r"sample 14\. Rows: 6\. Lower the learning rate, or look"):
        bench.run(Store(tmp_path))


@pytest.mark.parametrize(
    ("value", "given"),
    [
        (lambda weight: weight, "shape (2, 4)"),
        (lambda weight: 3.0, "float"),
        (lambda weight: weight.detach().sum(), "no parameter has a part in it"),
    ],
)
def test_a_loss_that_is_no_differentiable_scalar_is_the_plugins_mistake(tmp_path, value, given):
    bench = make_bench(loss=lambda index, generator: value(bench.modules["head"][1].weight))
    with pytest.raises(PluginError) as error:
        bench.run(Store(tmp_path))
    assert str(error.value) == (
        f"stage fuse: the loss is no scalar that can be differentiated ({given}). Mend the plugin."
    )


def test_batch_normalisation_on_one_row_is_one_sentence(tmp_path):
    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        return norm(torch.ones(len(index), 4)).sum()

    norm = nn.BatchNorm1d(4)
    bench = make_bench(loss=loss, batch_size=1)
    one = {"modules": {"head": norm}, "batches": lambda epoch: [order_of(epoch)[0][:1]], "n_batches": 1}
    bench.loop = Loop(**{**vars(bench.loop), **one})
    with pytest.raises(TrainingError) as error:
        bench.run(Store(tmp_path))
    assert str(error.value) == (
        "stage fuse: batch normalisation cannot learn from one row alone (epoch 1, batch 1: sample "
        f"{int(order_of(0)[0][0])}). Use a larger batch_size, or parts without it."
    )


# memory


def full_above(rows: int, error: BaseException, loop: Loop) -> Loop:
    """Lets the loss of more rows than some run out of memory after part of the work is done."""

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        value = loop.loss(index, generator)
        if len(index) > rows:
            value.backward()
            raise error
        return value

    return Loop(**{**vars(loop), "loss": loss})


FULL = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    MemoryError(),
)


def make_plain_bench(**options: Any) -> Bench:
    """Without dropout, noise and batch normalisation, whose parts are not those of the whole."""
    modules = {"head": nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.Tanh(), nn.Linear(8, 2))}
    torch.manual_seed(3)
    for layer in (modules["head"][1], modules["head"][3]):
        layer.reset_parameters()
    weights = torch.linspace(0.1, 2.0, N_ROWS)

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        each = nn.functional.cross_entropy(modules["head"](IMAGES[index]), TARGETS[index], reduction="none")
        return (each * weights[index]).mean()

    bench = make_bench(loss=loss, **options)
    return Bench(modules, Loop(**{**vars(bench.loop), "modules": modules}))


@pytest.mark.parametrize("error", FULL, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("rows", "parts"), [(5, 2), (3, 2), (2, 4), (1, 6)])
def test_where_memory_is_full_parts_of_a_batch_teach_what_the_batch_would(tmp_path, error, rows, parts):
    """Batches of 6, 6, 6 and 2 rows: parts of unequal size weigh as many rows as they have."""
    whole = make_plain_bench(gradient_clip=0.5)
    expected = whole.run(Store(tmp_path / "whole"))
    cut = make_plain_bench(gradient_clip=0.5)
    cut.loop = full_above(rows, error, cut.loop)
    history = cut.run(Store(tmp_path / "cut"))
    for mine, other in zip(cut.modules["head"].parameters(), whole.modules["head"].parameters(), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-5)
    assert [record["loss"] for record in history] == pytest.approx([r["loss"] for r in expected], rel=1e-5)
    assert [record["parts"] for record in history] == [parts] * 5
    assert "parts" not in expected[0]
    told = [data for name, data in cut.told if name == "memory_full"]
    assert told[-1]["parts"] == parts
    assert (told[0]["where"], told[0]["rows"], told[0]["parts"]) == ("stage fuse", 6, 2)
    assert len(told) <= 3, "what memory asks for is remembered"


def test_memory_that_is_full_for_one_row_is_an_error_of_the_machine(tmp_path):
    bench = make_plain_bench()
    bench.loop = full_above(0, FULL[0], bench.loop)
    with pytest.raises(ResourceError) as error:
        bench.run(Store(tmp_path))
    assert str(error.value) == (
        "stage fuse: memory is full even for one row at a time (OutOfMemoryError: CUDA out of memory. Tried "
        "to allocate 2.00 GiB.). Use smaller inputs, narrower layers or another device."
    )
    assert error.value.exit_code == 8


def test_batch_normalisation_keeps_two_rows_in_every_part(tmp_path):
    sizes = []

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        sizes.append(len(index))
        return logits_of(bench.modules, index).square().mean()

    bench = make_bench(loss=loss, epochs=1)
    bench.loop = full_above(2, FULL[0], bench.loop)
    bench.run(Store(tmp_path))
    assert sizes == [6, 3, *[2, 2, 2] * 3, 2]
    bench = make_bench(loss=loss, epochs=1)
    bench.loop = full_above(1, FULL[0], bench.loop)
    with pytest.raises(ResourceError, match="even for 2 rows, the fewest that can be taken, at a time"):
        bench.run(Store(tmp_path))


def test_another_runtime_error_is_no_full_memory(tmp_path):
    bench = make_plain_bench()
    bench.loop = full_above(3, RuntimeError("mat1 and mat2 shapes cannot be multiplied"), bench.loop)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        bench.run(Store(tmp_path))


def test_stopped_and_resumed_it_goes_on_in_parts(tmp_path, monkeypatch):
    """Dropout draws by part, so the first batch after a stop must be cut as it was."""

    def make(stop_after: int | None) -> Bench:
        bench = make_bench()
        bench.loop = full_above(3, FULL[1], bench.loop)
        bench.stop_after = stop_after
        return bench

    straight = make(None)
    straight.run(Store(tmp_path / "straight"))
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(KeyboardInterrupt):
        make(3).run(Store(tmp_path / "store"))
    resumed = make(None)
    resumed.run(Store(tmp_path / "store"))
    assert [data for name, data in resumed.told if name == "memory_full"] == []
    assert resumed.digests() == straight.digests()


def test_a_validation_loss_that_is_not_finite_stops(tmp_path):
    bench = make_bench(patience=2, validate=lambda modules: math.nan)
    with pytest.raises(TrainingError) as error:
        bench.run(Store(tmp_path))
    assert str(error.value) == (
        "stage fuse: the validation loss is not finite (nan) after epoch 1. "
        "Lower the learning rate, or look at the validation rows."
    )


# schedules and clipping


def test_a_constant_rate_is_constant():
    options = LoopOptions(learning_rate=0.1, epochs=3)
    assert [learning_rate(options, step, 4) for step in range(12)] == [0.1] * 12


def test_a_cosine_falls_to_zero_over_all_steps():
    options = LoopOptions(learning_rate=0.1, epochs=3, schedule="cosine")
    rates = [learning_rate(options, step, 4) for step in range(12)]
    expected = [0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]
    assert rates == pytest.approx(expected)
    assert learning_rate(options, 12, 4) == pytest.approx(0)


def test_a_warm_up_rises_in_equal_steps_and_the_cosine_follows():
    options = LoopOptions(learning_rate=0.1, epochs=3, schedule="cosine", warmup_epochs=1)
    rates = [learning_rate(options, step, 4) for step in range(12)]
    assert rates[:4] == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert rates[4:] == pytest.approx([0.05 * (1 + math.cos(math.pi * step / 8)) for step in range(8)])


@given(st.integers(1, 20), st.integers(1, 9), st.floats(0, 30), st.sampled_from(["constant", "cosine"]))
def test_a_rate_is_never_negative_nor_above_the_largest(epochs, n_batches, warmup, schedule):
    options = LoopOptions(learning_rate=0.1, epochs=epochs, warmup_epochs=warmup, schedule=schedule)
    rates = [learning_rate(options, step, n_batches) for step in range(epochs * n_batches)]
    assert all(0 <= rate <= 0.1 for rate in rates)
    assert rates[0] > 0


def test_the_optimiser_gets_the_schedules_rates(tmp_path, monkeypatch):
    used = []
    real = torch.optim.SGD.step

    def step(self, *rest):
        used.append(self.param_groups[0]["lr"])
        return real(self, *rest)

    monkeypatch.setattr(torch.optim.SGD, "step", step)
    bench = make_bench(optimizer="sgd", schedule="cosine", warmup_epochs=1)
    bench.run(Store(tmp_path))
    assert used == [learning_rate(bench.loop.options, step, N_BATCHES) for step in range(20)]


def test_gradients_are_clipped_to_the_norm(tmp_path):
    before = make_modules()["head"][1].weight.clone()

    def loss(index: Tensor, generator: torch.Generator) -> Tensor:
        return 1000 * bench.modules["head"][1].weight.sum()

    bench = make_bench(loss=loss, optimizer="sgd", weight_decay=0.0, epochs=1, gradient_clip=0.5)
    bench.loop = Loop(**{**vars(bench.loop), "batches": lambda epoch: order_of(epoch)[:1], "n_batches": 1})
    bench.run(Store(tmp_path))
    moved = bench.modules["head"][1].weight - before
    assert float(moved.norm()) == pytest.approx(0.5 * 0.05, rel=1e-4)
