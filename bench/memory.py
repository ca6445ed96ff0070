"""Peak memory against the number of samples: extraction, the head stage, `fusionkit predict`.

Each figure is the largest resident set (`ru_maxrss`) of a fresh process, in MB: all of it counts, the
interpreter, torch and the pages of mapped files too. Images are 8 x 8 pixels, one a sample; features are 1280
wide, as VGG16's are.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from fusionkit.cli import main as fusionkit
from fusionkit.data.batches import make_units
from fusionkit.prepare import Places, plan_all, prepare
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.training.experiment import Feed
from fusionkit.training.stages import run_steps

PLUGIN = str(Path(__file__).with_name("thumbnails.py"))
RECIPE = """\
name: memory
source:
  use: manifest
  table: rows.csv
  subject: patient
  outcome: outcome
  classes: {benign: benign, malignant: malignant}
  columns:
    image: {kind: file}
    age: {kind: numeric, range: [0, 120]}
    marker: {kind: numeric}
modalities:
  image: {encoder: {use: thumbnail}}
  record: {encoder: {use: structured}}
head: {use: concat_mlp, hidden: [32]}
stages:
  - {name: scale_record, fit: [record.encoder]}
  - {name: fuse, train: [head], epochs: 1, batch_size: 256}
split: {scheme: holdout, test: 0.2}
evaluation: {resamples: 100}
training: {device: cpu, threads: 1}
"""
HEADER = bytes.fromhex(
    "424df60000000000000036000000280000000800000008000000010018" + "00" * 5 + "c0" + "00" * 19
)
"""Of a BMP of 8 x 8 pixels."""


def write_rows(folder: Path, n: int) -> None:
    """Writes n images and their table."""
    rng = np.random.default_rng(n)
    lines = ["patient,image,age,marker,outcome"]
    for number in range(n):
        name = f"images/{number % 100:02}/{number:06}.bmp"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(HEADER + number.to_bytes(8, "little") + rng.bytes(184))
        outcome = "malignant" if number % 2 else "benign"
        lines.append(f"p{number:06},{name},{30 + number % 50},{rng.normal():.3f},{outcome}")
    (folder / "rows.csv").write_text("\n".join(lines) + "\n")


def work(what: str, folder: Path) -> None:
    """Does one of the things that are measured, in a process of its own."""
    store, runs = ["--store", str(folder / "store")], folder.parent / "runs"
    if what == "run":
        recipe = [str(folder.parent / "memory.yaml"), "--data-root", str(folder), "--runs", str(runs)]
        return command_line("run", *recipe, *store)
    if what == "predict":
        rows = [str(folder / "rows.csv"), "--id", "patient", "-o", str(folder / "answers.csv")]
        return command_line("predict", str(runs / "memory" / "latest"), *rows, *store)
    loaded = load_text(RECIPE, Registry.discover([PLUGIN]), data_root=folder)
    prepared = prepare(loaded, Places(folder, folder / "store", folder / "runs"), lambda name, data: None)
    _, fold, _, plan = next(iter(plan_all(prepared)))
    if what == "extraction":
        units = make_units((*fold.train, *fold.test), 1)
        Feed(prepared.main, plan.origins).ensure(units, training=False)
    else:
        run_steps(prepared.main, plan)


def command_line(*words: str) -> None:
    try:
        fusionkit(["-p", PLUGIN, *words, "-q"])
    except SystemExit as stop:
        if stop.code:
            raise


def measure(what: str, folder: Path) -> int:
    """Returns the peak of a fresh process, in MB."""
    done = subprocess.run(
        [sys.executable, __file__, what, str(folder)], check=True, capture_output=True, text=True
    )
    return int(done.stdout.splitlines()[-1])


def main(sizes: tuple[int, ...] = (100, 1000, 10_000, 100_000)) -> None:
    results: dict[str, Any] = {"counted": "ru_maxrss of a fresh process, MB", "samples": list(sizes)}
    with tempfile.TemporaryDirectory() as root:
        (Path(root) / "memory.yaml").write_text(RECIPE)
        for n in sizes:
            folder = Path(root) / str(n)
            write_rows(folder, n)
            if n == sizes[0]:
                measure("run", folder)
            for what in ("extraction", "head", "predict"):
                results.setdefault(what, []).append(measure(what, folder))
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        work(sys.argv[1], Path(sys.argv[2]))
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
    else:
        main()
