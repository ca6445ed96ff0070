"""What every simulated cohort has in common: who is in it, what is true of them, and what shows it.

A subject has latents and an outcome (`truth`). A record's fields, images and vectors show one latent each,
and nothing else of the truth. Every subject and every file has random streams of its own, derived from the
seed, its group, its number and the file's number: more subjects or more images change none that are there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import IO, TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from fusionkit import ColumnSpec, Manifest, SourceContext
from fusionkit_pathoemr.fields import Field

if TYPE_CHECKING:
    from pathlib import Path

GROUPS = {"S": "train", "F": "test"}
"""What the names of a group's subjects begin with -> its split."""


class Style(Protocol):
    """How a latent is shown in a file; a frozen dataclass of what that depends on."""

    suffix: str
    has_zoom: bool

    def write(self, file: SimulatedFile, stream: IO[bytes]) -> None:
        """Writes one file's bytes, which depend on its key, its latent, its zoom and the style alone."""
        ...


@dataclass(frozen=True)
class SimulatedFile:
    """What is needed to make one file, and nothing else: it can be sent to another process."""

    name: str
    key: tuple[int, ...]
    latent: float
    zoom: int

    def file_name(self, style: Style) -> str:
        """Returns what the file is called."""
        return f"simulated_{self.name}{style.suffix}"


@dataclass(frozen=True)
class Truth:
    """What is true of one subject.

    Args:
        outcome: Its class.
        latents: Latent -> value.
        cells: Further columns that say the outcome, such as a time; they are declared nowhere, so that no
            encoder reads them.
    """

    outcome: str
    latents: Mapping[str, float]
    cells: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Shown:
    """One column of files.

    Args:
        latent: Which latent they show.
        jitter: Standard deviation of one file's latent around its subject's.
        style: How.
        per_sample: One file for each sample, or one for each subject.
    """

    latent: str
    jitter: float
    style: Any
    per_sample: bool = True


@dataclass(frozen=True)
class Design:
    """A simulated cohort, before anything is drawn.

    Args:
        source: The source's name.
        seed: Everything derives from it.
        counts: How many subjects with `split` = train, and how many fresh ones with `split` = test.
        per_subject: Least and most samples of a subject.
        classes: The outcome's.
        truth: `truth(index, generator)` draws what is true of a subject.
        fields: Column -> how it depends on a latent, in the order in which they are drawn.
        shown: Column of files -> what they show.
        identity: What the latents depend on beside seed and code, as JSON values.
    """

    source: str
    seed: int
    counts: tuple[int, int]
    per_subject: tuple[int, int]
    classes: tuple[str, ...]
    truth: Callable[[int, np.random.Generator], Truth]
    fields: Mapping[str, Field]
    shown: Mapping[str, Shown]
    identity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def has_zoom(self) -> bool:
        """Whether a sample has a magnification."""
        return any(shown.style.has_zoom for shown in self.shown.values())


@dataclass(frozen=True)
class SimulatedSubject:
    """One simulated subject.

    Args:
        name: S0001 in the cohort itself, F0001 among the fresh ones.
        split: train in the cohort itself, test among the fresh ones.
        truth: Outcome and latents.
        record: Column -> text, None where blanked.
        samples: One per sample: its name, its key and its zoom; what a file of it shows is set per column.
        files: Column -> what the file of each sample shows.
    """

    name: str
    split: str
    truth: Truth
    record: Mapping[str, str | None]
    samples: tuple[str, ...]
    files: Mapping[str, tuple[SimulatedFile, ...]]


def draw_subjects(design: Design) -> list[SimulatedSubject]:
    """Draws every subject of the cohort, and then the fresh ones, without making a file."""
    counts = zip(GROUPS, design.counts, strict=True)
    return [_draw_subject(design, group, i) for group, count in counts for i in range(count)]


def _draw_subject(design: Design, group: str, index: int) -> SimulatedSubject:
    key = (design.seed, list(GROUPS).index(group), index)
    generator = np.random.default_rng([*key, 0])
    truth = design.truth(index, generator)
    drawn = [
        each.draw(0.0 if each.shows is None else truth.latents[each.shows], generator)
        for each in design.fields.values()
    ]
    chances = np.random.default_rng([*key, 1]).random(len(drawn))
    name = f"{group}{index + 1:04d}"
    count = int(np.random.default_rng([*key, 2]).integers(design.per_subject[0], design.per_subject[1] + 1))
    return SimulatedSubject(
        name=name,
        split=GROUPS[group],
        truth=truth,
        record={
            column: None if chance < share else text
            for column, (text, share), chance in zip(design.fields, drawn, chances, strict=True)
        },
        samples=tuple(f"{name}_{i + 1:02d}" for i in range(count)),
        files={
            column: _draw_files(shown, name, key, truth.latents[shown.latent], count)
            for column, shown in design.shown.items()
        },
    )


def _draw_files(
    shown: Shown, name: str, key: tuple[int, ...], latent: float, count: int
) -> tuple[SimulatedFile, ...]:
    if not shown.per_sample:
        return (SimulatedFile(name, key, latent, 1),) * count
    files = []
    for i in range(count):
        generator = np.random.default_rng([*key, 3, i])
        drawn = latent + shown.jitter * float(generator.standard_normal())
        files.append(SimulatedFile(f"{name}_{i + 1:02d}", (*key, i), drawn, int(generator.integers(1, 3))))
    return tuple(files)


def make_manifest(design: Design, schema: Mapping[str, ColumnSpec], context: SourceContext) -> Manifest:
    """Draws the cohort, and makes those of its files that are not in the cache yet."""
    subjects = draw_subjects(design)
    rows = [(subject, i) for subject in subjects for i in range(len(subject.samples))]
    cells, root = _files(design, rows, context)
    for column in design.fields:
        cells[column] = [subject.record[column] for subject, _ in rows]
    if design.has_zoom:
        zooms = [next(iter(subject.files.values()))[i].zoom for subject, i in rows]
        cells["magnification"] = [f"{zoom}00x" for zoom in zooms]
    for column in subjects[0].truth.cells:
        cells[column] = [subject.truth.cells[column] for subject, _ in rows]
    cells["split"] = [subject.split for subject, _ in rows]
    outcomes = [subject.truth.outcome for subject, _ in rows]
    return Manifest(
        samples=[f"simulated_{subject.samples[i]}" for subject, i in rows],
        subjects=[subject.name for subject, _ in rows],
        outcomes=outcomes,
        cells=pl.DataFrame(cells, schema=dict.fromkeys(cells, pl.String)),
        schema=schema,
        classes=design.classes,
        root=root,
        is_simulated=True,
        subject_outcomes=outcomes,
    )


def _files(
    design: Design, rows: Sequence[tuple[SimulatedSubject, int]], context: SourceContext
) -> tuple[dict[str, list[str | None]], Path]:
    """Makes the files of each column; returns their names by column, and the folder that they lie in."""
    from fusionkit_pathoemr.files import store_files

    identity: dict[str, Any] = {"source": design.source, "seed": design.seed, **design.identity}
    for column, shown in design.shown.items():
        identity[column] = {"latent": shown.latent, "jitter": shown.jitter, **asdict(shown.style)}
    cells: dict[str, list[str | None]] = {}
    root = context.cache
    for column, shown in design.shown.items():
        files = [subject.files[column][i] for subject, i in rows]
        distinct = list(dict.fromkeys(files))
        root = store_files(distinct, shown.style, identity, context)
        cells[column] = [file.file_name(shown.style) for file in files]
    return cells, root
