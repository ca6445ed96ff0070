"""Parquet files: each is tried in a process of its own, since broken bytes can end the one that reads."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import polars as pl

from fusionkit.errors import DataError, ResourceError, shorten

# a panic of polars is no Exception
_TRIAL = """
import sys, polars
try:
    polars.read_parquet(sys.argv[1])
except (Exception, polars.exceptions.PanicException) as error:
    print(error)
    sys.exit(1)
"""


def read_parquet(path: Path) -> pl.DataFrame:
    """Returns a whole file; raises DataError where it is none, ResourceError where memory is full."""
    command = [sys.executable, "-P", "-c", _TRIAL, str(path.absolute())]
    trial = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
    if trial.returncode == -signal.SIGKILL:
        raise ResourceError(
            f"{path}: reading it was killed, as happens where memory is full. Split the table."
        )
    if trial.returncode:
        # what polars says of itself, or how its process ended: an allocation without end is an abort
        ended = f"reading it ends in {signal.Signals(-trial.returncode).name}" if trial.returncode < 0 else ""
        reason = ended or shorten(" ".join(trial.stdout.decode(errors="replace").split()), 200)
        raise DataError(f"{path}: not a whole Parquet file ({reason}). Write it again.")
    return pl.read_parquet(path)
