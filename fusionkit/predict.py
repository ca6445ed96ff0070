"""A learned model on new rows: in a new process, without outcomes, in input order."""

from __future__ import annotations

import csv
import io
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fusionkit.data.manifest import Manifest
from fusionkit.data.tables import Encoding, read_table
from fusionkit.errors import DataError, IntegrityError, shorten, suggest
from fusionkit.evaluation.measures import ClassMeasures, measures_of, prediction_texts
from fusionkit.interfaces import Tell
from fusionkit.learned import LearnedRun
from fusionkit.part_factory import PartFactory
from fusionkit.prepare import Places, check_manifest
from fusionkit.recipe.schema import FUSED
from fusionkit.run_folder import INDEX
from fusionkit.store import Store, using
from fusionkit.tasks import make_task
from fusionkit.training.device import choose_device
from fusionkit.training.experiment import Experiment, Origin, Shared
from fusionkit.training.supervised import mean_of_members, predict_logits

NO_MODEL = "none"
_BLOCK = 8192
N_NAMED = 5
"""How many missing cells of a row, and absent columns of a table, are named one by one."""
N_LISTED = 12


@dataclass(frozen=True, slots=True)
class Prediction:
    """What is said about one row.

    Args:
        sample: The row's id, as given; ids may repeat, the order says which row it is.
        predictions: A probability per class, or what the task predicts instead; None without any modality.
        predicted: The class that it is called; None where no modality is there, or the outcome is no class.
        model: Which model answered: fused, or a modality alone.
        missing: What was missing, in words; empty if nothing.
    """

    sample: str
    predictions: tuple[float, ...] | None
    predicted: str | None
    model: str
    missing: str


@dataclass(frozen=True)
class Answers:
    """Predictions in input order.

    Args:
        classes: The classes that have probabilities; empty where the outcome is no class.
        is_simulated: Whether the model learned from simulated data.
        rows: One per row.
        changes: Device and versions that are not those of the run, in words.
        columns: What their numbers are.
        kind: The kind of the task.
    """

    classes: tuple[str, ...]
    is_simulated: bool
    rows: Sequence[Prediction]
    changes: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()
    kind: str = "classification"

    def to_csv(self) -> str:
        """Returns one line per row; says where the model learned from simulated data."""
        called = ["predicted"] if self.classes else []
        head = ["sample", *self.columns, *called, "model", "missing", "simulated"]
        # in blocks: a text that grows takes four bytes for each character
        starts = range(0, len(self.rows), _BLOCK)
        return _csv_text([head]) + "".join(
            _csv_text(map(self._cells, self.rows[start : start + _BLOCK])) for start in starts
        )

    def _cells(self, row: Prediction) -> list[str]:
        known = row.predictions
        values = [""] * len(self.columns) if known is None else prediction_texts(known, self.columns)
        values += [row.predicted or ""] if self.classes else []
        simulated = str(self.is_simulated).lower()
        return [row.sample, *values, row.model, row.missing, simulated]


def _csv_text(rows: Iterable[Sequence[str]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class _Numbers(Sequence[str]):
    """row1, row2, ... made when asked for: a list of a million would take 60 MB."""

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows

    def __len__(self) -> int:
        return self.n_rows

    def __getitem__(self, index: Any) -> Any:
        found = range(1, self.n_rows + 1)[index]
        return f"row{found}" if isinstance(found, int) else [f"row{number}" for number in found]


def read_rows(
    learned: LearnedRun, table: Path, images: Path | None, sample: str | None, encoding: Encoding = "utf-8"
) -> Manifest:
    """Reads rows to predict: a table with the columns that the recipe's modalities read, or some of them.

    Args:
        learned: The run.
        table: A CSV or Parquet file.
        images: What its paths of files are relative to; else its folder.
        sample: Column of the rows' ids.
        encoding: How the bytes of a CSV file spell its text.

    Raises:
        DataError: Every problem: a modality with some columns absent; or else every file that is
            not there, and every value outside its column's declaration.
    """
    loaded = learned.loaded
    frame = read_table(table, encoding)
    problems = []
    for modality, columns in loaded.columns.items():
        absent = [name for name in columns if name not in frame.columns]
        # a table without a modality is fine; one with half a record is a mistake
        if absent and len(absent) < len(columns):
            problems += _half_a_record(f"{table}: modality {modality}", absent, frame.columns, learned.folder)
    used = loaded.used_columns
    if not set(used) & set(frame.columns):
        problems.append(f"{table}: none of the recipe's columns is there. Needed: {', '.join(used)}.")
    if sample is not None and sample not in frame.columns:
        problems.append(f"{table}: --id: there is no column '{sample}'. {suggest(sample, frame.columns)}")
    if problems:
        raise DataError(problems)
    frame = frame.with_columns(
        pl.lit(None, pl.String).alias(name) for name in used if name not in frame.columns
    )
    ids = None if sample is None else frame[sample].fill_null("").to_list()
    frame = frame.select(used)
    # messages name the row by its number: ids may repeat
    numbers = _Numbers(len(frame))
    manifest = Manifest(
        samples=numbers,
        subjects=numbers if ids is None else ids,
        outcomes=[None] * len(frame),
        cells=frame,
        schema=loaded.source.schema,
        classes=tuple(learned.index["classes"]),
        root=images or table.parent,
        is_simulated=learned.index["simulated"],
        table=str(table),
    )
    check_manifest(loaded, manifest)
    return manifest


def predict(learned: LearnedRun, manifest: Manifest, places: Places, tell: Tell) -> Answers:
    """Predicts every row: by the mean over folds and initialisations of the model that it allows."""
    experiments = make_experiments(learned, manifest, places, tell)
    main = next(iter(experiments.values()))
    # records need nothing of the store, which may then be one that cannot be written
    is_used = any(main.reader(name).is_stored for name in main.modalities)
    with using(places.store) if is_used else nullcontext():
        return _predict(learned, manifest, experiments)


def _predict(learned: LearnedRun, manifest: Manifest, experiments: Mapping[str, Experiment]) -> Answers:
    main = next(iter(experiments.values()))
    present = {name: main.reader(name).present(range(len(manifest))) for name in main.modalities}
    answering = [
        answering_model(learned, {n: bool(p[row]) for n, p in present.items()})
        for row in range(len(manifest))
    ]
    predictions = np.full((len(manifest), len(main.task.predictions)), np.nan)
    for name in sorted(set(answering) - {NO_MODEL}):
        rows = [row for row, model in enumerate(answering) if model == name]
        # in the order of contents, each once: a row's place in the table changes not even the last digit
        first, content = _by_content(experiments[name], rows)
        found = mean_predictions(learned, experiments[name], name, first)
        predictions[rows] = found[content]
    said, measures = [], measures_of(main.task)
    for row, model in enumerate(answering):
        known = None if model == NO_MODEL else tuple(map(float, predictions[row]))
        called = None
        if known is not None and isinstance(measures, ClassMeasures):
            code = measures.called(predictions[row : row + 1], learned.thresholds[model])[0]
            called = measures.classes[int(code)]
        missing = _describe_missing(learned, manifest, row)
        here = [name for name, is_here in present.items() if is_here[row]]
        if model == FUSED and not _has_learned(learned, here):
            missing += f" ({FUSED} never learned without {', '.join(n for n in present if n not in here)})"
        said.append(Prediction(manifest.subjects[row], known, called, model, missing))
    changes = tuple(learned.changes(main.device))
    task = main.task
    return Answers(task.classes, manifest.is_simulated, said, changes, task.predictions, task.kind)


def make_experiments(
    learned: LearnedRun, manifest: Manifest, places: Places, tell: Tell
) -> dict[str, Experiment]:
    """Returns the experiment of every model that learned, on other rows, the recipe as written first."""
    task = make_task(learned.loaded.recipe.task, manifest.classes)
    recipe = learned.loaded.recipe
    device = choose_device(recipe.training, n_jobs=recipe.n_jobs)  # as many threads as the run had here
    store, shared = Store(places.store, tell), Shared(artefacts=learned.artefact)
    experiments = {}
    for name in learned.models:
        is_main = name == FUSED or len(recipe.modalities) == 1
        loaded = learned.loaded if is_main else learned.loaded.alone(name)
        factory = PartFactory(loaded, task.output_dim, places.data)
        experiments[name] = Experiment(factory, manifest, task, store, device, tell, shared)
    return experiments


def answering_model(learned: LearnedRun, present: Mapping[str, bool]) -> str:
    """Returns which model answers a row: a modality alone where fused never learned without the others."""
    here = [name for name, is_here in present.items() if is_here]
    if not here:
        return NO_MODEL
    if len(present) == 1:
        return here[0]
    if len(here) == 1 and here[0] in learned.models and not _has_learned(learned, here):
        return here[0]
    return FUSED


def _has_learned(learned: LearnedRun, here: Collection[str]) -> bool:
    """Says whether fused learned from rows with just these modalities; with all of them it always has.

    Modality dropout counts: a train stage that takes modalities away has rows with what is left.
    """
    recipe, kept = learned.loaded.recipe, frozenset(here)
    return len(here) == len(recipe.modalities) or any(
        kept <= had and had - kept <= recipe.dropouts.keys() for had in learned.trained_on(FUSED)
    )


def _by_content(experiment: Experiment, rows: Sequence[int]) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Returns a row of each distinct content of what the model reads, and which content each row has."""
    index = np.asarray(rows, dtype=np.int64)
    keys = [experiment.reader(name).keys(index).view(np.uint8) for name in experiment.modalities]
    contents = np.concatenate([key.reshape(len(index), -1) for key in keys], axis=1)
    _, first, content = np.unique(
        contents.view(f"S{contents.shape[1]}").reshape(-1), return_index=True, return_inverse=True
    )
    return index[first], content


def mean_predictions(
    learned: LearnedRun, experiment: Experiment, name: str, rows: Sequence[int] | NDArray[np.int64]
) -> NDArray[np.float64]:
    """Returns a model's predictions (n, k) of some rows: the mean over its folds and initialisations."""
    members = learned.members(name)
    for origins in members:
        _check_unlearned(experiment, origins)
    logits = (predict_logits(experiment, origins, rows) for origins in members)
    return mean_of_members(experiment, logits, learned.loaded.recipe.evaluation.views)


def _check_unlearned(experiment: Experiment, origins: Mapping[str, Origin]) -> None:
    """Raises IntegrityError if a part that the run took as it was (weights from a file) is another now."""
    for path, origin in origins.items():
        if not origin.is_learned and experiment.factory.origin(path, origin.seed) != origin.address:
            raise IntegrityError(
                f"{path}: its initial weights are not those of the run. Give the same weights file."
            )


def _half_a_record(where: str, absent: Sequence[str], known: Sequence[str], folder: Path) -> list[str]:
    """Returns a sentence per absent column of a modality; where there are many, one for all of them."""
    if len(absent) <= N_NAMED:
        return [f"{where} has no column '{n}'. {suggest(n, known)}" for n in absent]
    shown = ", ".join(map(shorten, absent[:N_LISTED]))
    more = f" and {len(absent) - N_LISTED} more" if len(absent) > N_LISTED else ""
    return [
        f"{where}: {len(absent)} columns are absent: {shown}{more}. Add them, with blank cells where a value "
        f"is not known, or leave out all columns of the modality; {folder / INDEX} names them all."
    ]


def _describe_missing(learned: LearnedRun, manifest: Manifest, row: int) -> str:
    """Says which modalities and which cells of a row are missing."""
    found = []
    for modality, columns in learned.loaded.columns.items():
        cells = manifest.cells_of(row, columns)
        blank = [name for name in columns if cells[name] is None]
        if len(blank) == len(columns):
            found.append(modality)
        elif blank:
            named = ", ".join(blank[:N_NAMED]) + (", ..." if len(blank) > N_NAMED else "")
            found.append(f"{modality}: {len(blank)} of {len(columns)} cells ({named})")
    return "; ".join(found)
