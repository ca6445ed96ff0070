"""VGG16 at 224 pixels: training and extraction through the whole data path, beside bare loops on tensors.

`bare` has its normalised float batches in memory, in channels_last and at the same precision; `fp32` is the
bare loop in fp32 and channels first, on fewer images.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import interleave, rates, ratio, seconds_of, summary
from study import prepare_study, write_study
from torch import Tensor

from fusionkit.data.batches import make_units
from fusionkit.prepare import Prepared, plan_all
from fusionkit.training import train
from fusionkit.training.device import Device
from fusionkit.training.experiment import Experiment, Origin, encode
from fusionkit.training.features import FeatureTable, ensure_features
from fusionkit.training.pretrain import build_classifier, run_pretrain

SIZE = (640, 480)
FP32 = Device("cpu", "fp32", 0, "what is compared with")
BATCH = 16


def wait(device: Device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def batches_of(
    experiment: Experiment, rows: np.ndarray, size: int, layout: torch.memory_format
) -> list[Tensor]:
    reader: Any = experiment.reader("image")
    units = make_units(rows, 1, 0)
    raw = [reader.read(part, training=False) for part in units.chunks(size)]
    return [
        reader.spec.normalize(each).contiguous(memory_format=layout).to(experiment.device.torch)
        for each in raw
    ]


def fresh_encoder(experiment: Experiment, layout: torch.memory_format) -> Any:
    origin = experiment.initial("image.encoder", 0)
    return experiment.fresh("image.encoder", origin).to(memory_format=layout)


def time_extraction(prepared: Prepared, n: int, n_fp32: int, rounds: int) -> dict[str, Any]:
    experiment = prepared.main
    device, reader = experiment.device, experiment.reader("image")
    origin: Origin = experiment.initial("image.encoder", 0)
    units = make_units(np.arange(n), 1, 0)
    encoder, plain = (fresh_encoder(experiment, f) for f in (torch.channels_last, torch.contiguous_format))
    batches = batches_of(experiment, np.arange(n), 32, torch.channels_last)
    first = batches_of(experiment, np.arange(n_fp32), n_fp32, torch.contiguous_format)
    tables = iter(range(10**6))

    def real() -> None:
        table = FeatureTable(experiment.store, f"bench{next(tables)}")
        computed = ensure_features(
            table,
            reader,
            units,
            lambda raw, again: encode(experiment, "image", origin, raw, again),
            lambda done, total: None,
            training=False,
            pin=experiment.device.pin,
        )
        assert computed == n

    def bare(network: Any, inputs: list[Tensor], precision: Device) -> Callable[[], None]:
        def run() -> None:
            with torch.inference_mode(), precision.autocast():
                for batch in inputs:
                    network(batch)
            wait(device)

        return run

    runs = {"real": real, "bare": bare(encoder, batches, device), "fp32": bare(plain, first, FP32)}
    bare(encoder, batches[:1], device)()  # once for the allocator and the kernels' caches
    seconds = interleave(runs, rounds)
    return described({"real": n, "bare": n, "fp32": n_fp32}, seconds)


def time_training(prepared: Prepared, n_fp32: int, rounds: int) -> dict[str, Any]:
    """Times epochs of the real loop; between two of them, told by its event, come those of the bare loops."""
    experiment = prepared.main
    step = next(
        step for _, _, _, plan in plan_all(prepared) for step in plan.steps if step.verb == "pretrain"
    )
    device, rows = experiment.device, np.array(step.rows)
    bare = bare_epoch(experiment, step, rows, torch.channels_last, device)
    fp32 = bare_epoch(experiment, step, rows[:n_fp32], torch.contiguous_format, FP32)
    bare()
    seconds: dict[str, list[float]] = {"real": [], "bare": [], "fp32": []}
    clock = {"from": math.nan}

    def tell(name: str, data: Any) -> None:
        if name != "epoch_finished":
            return
        wait(device)
        now = train.time.perf_counter()
        if not math.isnan(clock["from"]):  # the first epoch warms up, and hashes the files
            seconds["real"].append(now - clock["from"])
            seconds["bare"].append(seconds_of(bare))
            seconds["fp32"].append(seconds_of(fp32))
        clock["from"] = train.time.perf_counter()

    train.CHECKPOINT_SECONDS = math.inf  # they come every few seconds, whatever an epoch takes; timed apart
    timed = Experiment(
        experiment.factory,
        experiment.manifest,
        experiment.task,
        experiment.store,
        device,
        tell,
        experiment.shared,
    )
    stage = step.stage.model_copy(update={"epochs": rounds + 1})
    run_pretrain(timed, stage, step)
    return described({"real": len(rows), "bare": len(rows), "fp32": n_fp32}, seconds)


def bare_epoch(
    experiment: Experiment, step: Any, rows: np.ndarray, layout: torch.memory_format, precision: Device
) -> Callable[[], None]:
    encoder = fresh_encoder(experiment, layout).train().requires_grad_(True)
    classifier = build_classifier(experiment, step.stage, encoder, 0).train().requires_grad_(True)
    parameters = [*encoder.parameters(), *classifier.parameters()]
    optimizer = torch.optim.AdamW(parameters, 1e-5, fused=True)
    inputs = batches_of(experiment, rows, BATCH, layout)
    outcomes = torch.from_numpy(experiment.task.encode([experiment.manifest.outcomes[row] for row in rows]))
    targets = outcomes.to(experiment.device.torch).split(BATCH)

    def run() -> None:
        for batch, target in zip(inputs, targets, strict=True):
            with precision.autocast():
                logits = classifier(encoder.pretraining_features(batch)).float()
            loss = experiment.task.loss(logits, target, torch.ones(len(target), device=logits.device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            float(loss.detach())

    return run


def described(n: dict[str, int], seconds: dict[str, list[float]]) -> dict[str, Any]:
    speeds = rates(n, seconds)
    return {
        "images": n,
        "images_per_second": {name: summary(values) for name, values in speeds.items()},
        "of_bare": ratio(speeds["real"], speeds["bare"]),
        "times_fp32": ratio(speeds["real"], speeds["fp32"]),
    }


def main(rounds: int = 3) -> None:
    results: dict[str, Any] = {}
    for suffix in ("jpg", "png"):
        with tempfile.TemporaryDirectory() as folder:
            write_study(Path(folder), 64, SIZE, suffix)
            results[f"extraction_{suffix}"] = time_extraction(prepare_study(Path(folder)), 64, 16, rounds)
    with tempfile.TemporaryDirectory() as folder:
        write_study(Path(folder), 40, SIZE, "jpg")  # 32 of them train
        augment = "modalities.image.encoder.input.augment={rotate: 10}"
        results["training_jpg"] = time_training(prepare_study(Path(folder), augment), 8, rounds)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
