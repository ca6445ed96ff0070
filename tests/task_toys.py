"""A toy source whose outcomes of every kind follow one number, so that what can be reached is known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from fusionkit import ColumnSpec, ComponentConfig, SourceContext, SourceSpec, hookimpl

SCHEMA = {name: ColumnSpec(kind="numeric", missing=("", "?")) for name in ("a", "b", "c")}
CLASSES = ("low", "middle", "high")


def truth(seed: int, n_subjects: int) -> dict[str, Any]:
    """Returns inputs a, b, c (n,), the log hazard that they give, and the outcomes that follow it."""
    rng = np.random.default_rng(seed)
    a, b, c = rng.normal(size=(3, n_subjects))
    hazard = a + 0.5 * b + c
    died_at = rng.exponential(12 * np.exp(-hazard))
    left_at = rng.uniform(1, 60, n_subjects)
    return {
        "a": a,
        "b": b,
        "c": c,
        "hazard": hazard,
        "months": np.minimum(died_at, left_at).round(3),
        "died": (died_at <= left_at).astype(int),
        "score": 500 + 100 * hazard + 75 * rng.normal(size=n_subjects),
        "likes": (rng.uniform(size=n_subjects) < 1 / (1 + np.exp(-2 * hazard))).astype(int),
        "rare": (rng.uniform(size=n_subjects) < 1 / (1 + np.exp(1.5 + 2 * hazard))).astype(int),
        "rank": np.digitize(hazard + 0.5 * rng.logistic(size=n_subjects), [-0.8, 0.8]),
    }


class Options(ComponentConfig):
    """Options of task_toy."""

    n_subjects: int = Field(160, ge=4)
    """How many subjects, of two samples each."""
    seed: int = 0
    """Which of them."""
    cells: dict[str, dict[str, str]] = Field({})
    """Column -> subject -> another text, to make mistakes."""
    has_classes: bool = True
    """Whether the source names classes."""


class TaskToy:
    """Subjects of two samples with the same record."""

    schema = SCHEMA
    simulated = False

    def __init__(self, config: Options) -> None:
        self.config = config
        self.classes = CLASSES if config.has_classes else ()

    def read(self, context: SourceContext) -> Any:
        import polars as pl

        from fusionkit import Manifest

        config = self.config
        known = truth(config.seed, config.n_subjects)
        subjects = [f"s{config.seed}.{i}" for i in range(config.n_subjects) for _ in range(2)]
        names = [name for name in known if name not in ("hazard", "rank")]
        columns = {name: [f"{value:.10g}" for value in np.repeat(known[name], 2)] for name in names}
        for name, changed in config.cells.items():
            columns[name] = [
                changed.get(s, text) or None for s, text in zip(subjects, columns[name], strict=True)
            ]
        return Manifest(
            samples=[f"{subject}/{row % 2}" for row, subject in enumerate(subjects)],
            subjects=subjects,
            outcomes=[CLASSES[code] if config.has_classes else None for code in np.repeat(known["rank"], 2)],
            cells=pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)),
            schema=SCHEMA,
            classes=self.classes,
            root=context.data_root,
        )


RECIPE = """\
name: task
source: {use: task_toy}
task: TASK
modalities:
  one: {columns: [a, b], encoder: {use: toy_mean}}
  two: {columns: [c], encoder: {use: toy_mean}}
head: {use: toy_linear}
stages:
  - {name: fuse, train: [head, one.encoder, two.encoder], epochs: 30, learning_rate: 0.03, batch_size: 64}
split: {scheme: folds, folds: 2}
evaluation: {resamples: 200}
"""


@hookimpl
def fusionkit_components() -> Sequence[Any]:
    """Returns the card of the source."""
    return (
        SourceSpec(
            name="task_toy", summary="Outcomes of every kind.", source="ours", config=Options, build=TaskToy
        ),
    )
