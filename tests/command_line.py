"""The command line as tests call it, with the toys: in this process, or in one of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import toy_images
import toys

from fusionkit import cli

FOLDER = Path(__file__).parent
TOYS = ["-p", str(toys.TOY_PATH), "-p", str(FOLDER / "toy_images.py")]
QUICK = ["evaluation.modalities_alone=false", "evaluation.resamples=100"]
HOLDOUT = ["evaluation.resamples=100", "split={scheme: holdout, test: 0.34}"]


def command(*arguments: Any) -> list[str]:
    main = "from fusionkit.cli import main; main()"
    return [sys.executable, "-c", main, *TOYS, *map(str, arguments)]


def environment(**changes: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FUSIONKIT_")}
    return kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"} | changes


def call_process(folder: Path, *arguments: Any) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, in a folder."""
    return subprocess.run(
        command(*arguments), cwd=folder, env=environment(), capture_output=True, text=True, timeout=120
    )


def call(capsys: Any, *arguments: Any) -> tuple[int, str, str]:
    """Runs a command in this process; returns its exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as stop:
        cli.main([*TOYS, *map(str, arguments)])
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


def write_recipe(folder: Path) -> Path:
    path = folder / "pictures.yaml"
    path.write_text(toy_images.RECIPE)
    return path
