"""Runs of recipes whose modalities plugins bring: 40 toy rows, and predictions from another process."""

from __future__ import annotations

import csv
import io
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import command_line
import numpy as np
import yaml

from fusionkit.prepare import Places
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry
from fusionkit.run import run

N_ROWS, N_LACKING = 40, 5
QUICK = {"resamples": 100}


def rows_of(cell_of: Callable[[int, bool], Mapping[str, str]]) -> list[dict[str, str]]:
    """Returns 40 patients, every second one ill; every eighth lacks what `cell_of` gives."""
    rows = []
    for row in range(N_ROWS):
        is_ill = row % 2 == 1
        cells = dict(cell_of(row, is_ill))
        if row % 8 == 0:
            cells = dict.fromkeys(cells, "")
        rows.append(
            {"patient": f"p{row}", "age": str(40 + row % 7), "diagnosis": "ill" if is_ill else "healthy"}
            | cells
        )
    return rows


def write_table(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def recipe(encoder: Mapping[str, Any], columns: Mapping[str, Any], *, learns: Sequence[Any] = ()) -> str:
    """Returns a recipe that joins one modality, `extra`, with a record."""
    return yaml.safe_dump(
        {
            "name": "doors",
            "source": {
                "use": "manifest",
                "table": "study/rows.csv",
                "subject": "patient",
                "outcome": "diagnosis",
                "classes": {"healthy": "healthy", "ill": "ill"},
                "columns": {**columns, "age": {"kind": "numeric", "range": [0, 120]}},
            },
            "modalities": {
                "extra": {"columns": list(columns), "encoder": dict(encoder)},
                "record": {"columns": ["age"], "encoder": {"use": "structured"}},
            },
            "head": {"use": "concat_mlp"},
            "stages": [
                {"name": "prepare", "fit": ["record.encoder"]},
                *learns,
                {"name": "fuse", "train": ["head"], "epochs": 20, "batch_size": 8},
            ],
            "split": {"scheme": "folds", "folds": 2},
            "training": {"device": "cpu", "threads": 1},
            "evaluation": QUICK,
        },
        sort_keys=False,
    )


def run_beside_a_record(folder: Path, text: str) -> Any:
    """Runs a recipe twice: the second time computes nothing; returns the first result."""
    registry = Registry.discover()
    assert registry.broken == {}
    loaded = load_text(text, registry, data_root=folder)
    places = Places(folder, folder / "store", folder / "runs")
    result = run(loaded, registry, places, lambda name, data: None)
    tested = {name: model["n_subjects"] for name, model in result.report["models"].items()}
    assert {name: tested[name] for name in ("fused", "record", "extra")} == {
        "fused": N_ROWS,
        "record": N_ROWS,
        "extra": N_ROWS - N_LACKING,
    }
    assert run(loaded, registry, places, lambda name, data: None).computed == 0
    return result


def predict_in_another_process(folder: Path, result: Any, rows: Sequence[Mapping[str, str]]) -> list[Any]:
    """Returns `fusionkit predict`'s answers for rows without their outcome; blank cells are named."""
    bare = [{name: text for name, text in row.items() if name != "diagnosis"} for row in rows]
    write_table(folder / "study" / "new.csv", bare)
    new = ["predict", result.folder, folder / "study" / "new.csv", "--data-root", folder, "--id", "patient"]
    main = "from fusionkit.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", main, *map(str, new), "--store", str(folder / "other"), "-q"],
        capture_output=True,
        text=True,
        cwd=folder,
        env=command_line.environment(),
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    answers = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [answer["sample"] for answer in answers] == [row["patient"] for row in rows]
    lacks = ["" if all(row.values()) else "extra" for row in rows]
    assert [answer["missing"] for answer in answers] == lacks
    assert np.isfinite([float(answer["probability_ill"]) for answer in answers]).all()
    return answers


def auc(result: Any, model: str = "extra") -> float:
    return float(result.report["models"][model]["subject"]["roc_auc"]["value"])
