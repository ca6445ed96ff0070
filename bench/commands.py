"""Start-up of light commands, a small recipe for the first time and again, a head on stored features."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from memory import PLUGIN, RECIPE, write_rows
from paired import interleave, ratio, seconds_of, summary
from torch import nn

from fusionkit.prepare import Places, plan_all, prepare
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.training.experiment import Experiment
from fusionkit.training.stages import run_steps
from fusionkit.training.supervised import run_train

RECIPE_FILE = Path(__file__).parent.parent / "recipes" / "breast_rfn.yaml"
N_ROWS = 2000


def command(*words: str) -> Callable[[], None]:
    call = [sys.executable, "-c", "from fusionkit.cli import main; main()", *words]

    def run() -> None:
        subprocess.run(call, check=True, capture_output=True)

    return run


def time_commands(folder: Path, rounds: int) -> dict[str, Any]:
    light = {
        "python": lambda: subprocess.run([sys.executable, "-c", "pass"], check=True),
        "help": command("--help"),
        "list": command("list"),
        "validate": command("validate", str(RECIPE_FILE)),
    }
    results = {name: summary(values) for name, values in interleave(light, 3 * rounds).items()}
    write_rows(folder, N_ROWS)
    (folder / "recipe.yaml").write_text(RECIPE)
    places = [
        "--data-root",
        str(folder),
        "--store",
        str(folder / "store"),
        "--runs",
        str(folder / "runs"),
        "-q",
    ]
    recipe = command("-p", PLUGIN, "run", str(folder / "recipe.yaml"), *places)
    results["run"] = summary([seconds_of(recipe)])
    results["run_again"] = summary([seconds_of(recipe) for _ in range(rounds)])
    return results


def time_head(folder: Path, rounds: int) -> dict[str, Any]:
    """Times epochs of a head on stored features; between two of them one on features in memory."""
    overrides = [f"stages.fuse.epochs={rounds + 1}", "stages.fuse.batch_size=32", "head.hidden=[256]"]
    loaded = load_text(RECIPE, Registry.discover([PLUGIN]), overrides=overrides, data_root=folder)
    places = Places(folder, folder / "store", folder / "runs")
    prepared = prepare(loaded, places, lambda name, data: None)
    experiment = prepared.main
    _, _, _, plan = next(iter(plan_all(prepared)))
    step = next(step for step in plan.steps if step.verb == "train")
    bare, seconds, since = bare_head(len(step.rows)), {"real": [], "bare": []}, [0.0]
    bare()

    def tell(name: str, data: Any) -> None:
        if name == "epoch_finished":
            if since[0]:
                seconds["real"].append(time.perf_counter() - since[0])
                seconds["bare"].append(seconds_of(bare))
            since[0] = time.perf_counter()

    parts = (experiment.factory, experiment.manifest, experiment.task, experiment.store, experiment.device)
    run_steps(experiment, type(plan)(tuple(s for s in plan.steps if s is not step), plan.origins))
    run_train(Experiment(*parts, tell, experiment.shared), step.stage, step)
    rates = {name: summary([len(step.rows) / each for each in values]) for name, values in seconds.items()}
    return {
        "samples": len(step.rows),
        "samples_per_second": rates,
        "of_bare": ratio(seconds["bare"], seconds["real"]),
    }


def bare_head(n: int) -> Callable[[], None]:
    features, outcomes = torch.randn(n, 1282), torch.from_numpy(np.arange(n) % 2)
    head = nn.Sequential(nn.Linear(1282, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 2))
    optimizer = torch.optim.AdamW(head.parameters(), 1e-4, fused=True)

    def run() -> None:
        for index in torch.randperm(n).split(32):
            loss = nn.functional.cross_entropy(head(features[index]), outcomes[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            float(loss.detach())

    return run


def main(rounds: int = 3) -> None:
    with tempfile.TemporaryDirectory() as folder:
        seconds = time_commands(Path(folder), rounds)
        head = time_head(Path(folder), 2 * rounds)
    json.dump({"seconds": seconds, "head": head}, sys.stdout)


if __name__ == "__main__":
    main()
