"""How files become rows; polars is imported here, not when cards are read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from fusionkit import ColumnSpec, DataError, Manifest, SourceContext
from fusionkit_my_source import MySourceConfig


class MySource:
    """Reads one row per visit."""

    # yours: what each column may hold, and the classes: the last one is the positive one
    schema: Mapping[str, ColumnSpec] = {
        "image": ColumnSpec(kind="file"),
        "age": ColumnSpec(kind="numeric", range=(0, 120), unit="years"),
        "smoker": ColumnSpec(kind="binary", values=("no", "yes")),
    }
    classes: tuple[str, ...] = ("healthy", "ill")
    simulated = True  # yours: False, once these are patients

    def __init__(self, config: MySourceConfig) -> None:
        self.config = config

    def read(self, context: SourceContext) -> Manifest:
        """Reads every row; what is wrong with one is a sentence, which the audit reports with the rest."""
        root = context.data_root / self.config.folder
        if not root.is_dir():
            raise DataError(
                f"my_source: {root}: there is no such folder. Give `folder`, or another --data-root."
            )
        patients, problems = _read_patients(root)
        rows = [(patient, visit) for patient in patients for visit in patient["visits"]]
        if not rows:
            raise DataError([*problems, f"my_source: {root}: no visit is there. Look at `folder`."])
        cells = {name: [_as_text(visit.get(name)) for _, visit in rows] for name in self.schema}
        return Manifest(
            samples=[f"visit{number}" for number in range(1, len(rows) + 1)],
            subjects=[patient["patient"] for patient, _ in rows],
            outcomes=[patient["diagnosis"] for patient, _ in rows],
            cells=pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String)),
            schema=self.schema,
            classes=self.classes,
            root=root,
            is_simulated=self.simulated,
            problems=problems,
        )


def _read_patients(root: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Returns the patients in the order of their files' names, and what is wrong with the others."""
    patients, problems = [], []
    for path in sorted(root.glob("*.json")):
        try:
            # yours: how a file is read
            patient = json.loads(path.read_text(encoding="utf-8"))
            if patient["diagnosis"] not in MySource.classes:
                raise ValueError(f"no class: {patient['diagnosis']}")
            patients.append(
                {
                    "patient": str(patient["patient"]),
                    "diagnosis": patient["diagnosis"],
                    "visits": [dict(visit) for visit in patient["visits"]],
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            problems.append(f"{path.name}: not a patient ({type(error).__name__}: {error}). Mend the file.")
    return patients, problems


def _as_text(value: object) -> str | None:
    return None if value is None else str(value)
