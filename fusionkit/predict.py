"""A learned model on new rows: in a new process, without outcomes, in input order."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from fusionkit.data.manifest import Manifest
from fusionkit.data.tables import read_table
from fusionkit.errors import DataError, IntegrityError, suggest
from fusionkit.evaluation.metrics import predict_classes
from fusionkit.model import PartFactory
from fusionkit.recipe.load import LoadedRecipe, load_text
from fusionkit.registry import Registry
from fusionkit.run import FUSED, Places, check_manifest, declared_columns
from fusionkit.store import Artefact, Store, address_of, file_digest, read_artefact
from fusionkit.task import Classification
from fusionkit.training.device import choose_device
from fusionkit.training.experiment import Experiment, Origin, Shared, Tell
from fusionkit.training.supervised import link, predict_logits

NO_MODEL = "none"
N_NAMED = 5
"""How many missing cells of a row are named one by one."""


@dataclass(frozen=True)
class Prediction:
    """What is said about one row.

    Args:
        sample: The row's id, as given; ids may repeat, the order says which row it is.
        probabilities: One per class; None where no modality is there.
        predicted: The class that it is called; None where no modality is there.
        model: Which model answered: fused, or a modality alone.
        missing: What was missing, in words; empty if nothing.
    """

    sample: str
    probabilities: tuple[float, ...] | None
    predicted: str | None
    model: str
    missing: str


@dataclass(frozen=True)
class Answers:
    """Predictions in input order, with the classes of their probabilities."""

    classes: tuple[str, ...]
    is_simulated: bool
    rows: Sequence[Prediction]

    def to_csv(self) -> str:
        """Returns one line per row; says where the model learned from simulated data."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        probabilities = [f"probability_{name}" for name in self.classes]
        writer.writerow(["sample", *probabilities, "predicted", "model", "missing", "simulated"])
        for row in self.rows:
            values = (
                [""] * len(self.classes)
                if row.probabilities is None
                else [f"{p:.8f}" for p in row.probabilities]
            )
            simulated = str(self.is_simulated).lower()
            writer.writerow([row.sample, *values, row.predicted or "", row.model, row.missing, simulated])
        return text.getvalue()


@dataclass(frozen=True)
class LearnedRun:
    """A run folder, read and checked.

    Args:
        folder: The run folder.
        loaded: Its resolved recipe.
        index: `model/index.json`.
        thresholds: By model, the probability of the last class from which a row is called it.
    """

    folder: Path
    loaded: LoadedRecipe
    index: Mapping[str, Any]
    thresholds: Mapping[str, float]

    def artefact(self, address: str) -> Artefact | None:
        """Reads one learned artefact."""
        return read_artefact(_artefact_path(self.folder, address))


def _artefact_path(folder: Path, address: str) -> Path:
    return folder / "model" / f"{address}.safetensors"


def open_run(folder: Path, registry: Registry, data_root: Path) -> LearnedRun:
    """Opens a run folder; raises DataError if it is none, IntegrityError if it is broken."""
    index_path = folder / "model" / "index.json"
    if not index_path.is_file():
        raise DataError(
            f"{folder}: no finished run (no model/index.json). Give one, such as runs/NAME/latest."
        )
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        if index.pop("digest", None) != address_of(index):
            raise ValueError("model/index.json is not what the run wrote")
        models = json.loads((folder / "report.json").read_text(encoding="utf-8"))["models"]
        thresholds = {
            name: float(np.mean([fold["threshold"] for fold in models[name]["folds"]]))
            for name in {member["model"] for member in index["members"]}
        }
        text = (folder / "resolved.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder}: the run folder is broken ({error}). Run the recipe again.") from None
    _check_artefacts(folder, index)
    loaded = load_text(text, registry, name=str(folder / "resolved.yaml"), data_root=data_root)
    _check_columns(folder, index, loaded)
    return LearnedRun(folder, loaded, index, thresholds)


def _check_artefacts(folder: Path, index: Mapping[str, Any]) -> None:
    """Raises IntegrityError for every artefact that is not what the run wrote."""
    problems = []
    for address, digest in index["sha256"].items():
        path = _artefact_path(folder, address)
        if not path.is_file():
            problems.append(f"{path}: not there. The run folder is not whole; run the recipe again.")
        elif file_digest(path) != digest:
            problems.append(f"{path}: not what the run wrote (sha256 differs). Run the recipe again.")
    if problems:
        raise IntegrityError(problems)


def _check_columns(folder: Path, index: Mapping[str, Any], loaded: LoadedRecipe) -> None:
    """Raises IntegrityError where a cell would be read otherwise than in the run: codes would move."""
    then, now = index["columns"], declared_columns(loaded)
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if changed:
        raise IntegrityError(
            f"{folder}: columns are declared otherwise than in the run ({', '.join(changed)}). "
            "Give the schema file, or the version of the plugin, that the run had."
        )


def read_rows(learned: LearnedRun, table: Path, images: Path | None, sample: str | None) -> Manifest:
    """Reads rows to predict: a table with the columns that the recipe's modalities read, or some of them.

    Raises:
        DataError: Every problem: a modality with some columns absent; or else every file that is
            not there, and every value outside its column's declaration.
    """
    loaded = learned.loaded
    frame = read_table(table)
    problems = []
    for modality, columns in loaded.columns.items():
        absent = [name for name in columns if name not in frame.columns]
        # a table without a modality is fine; one with half a record is a mistake
        if absent and len(absent) < len(columns):
            problems += [
                f"{table}: modality {modality} has no column '{n}'. {suggest(n, frame.columns)}"
                for n in absent
            ]
    used = list(dict.fromkeys(name for columns in loaded.columns.values() for name in columns))
    if not set(used) & set(frame.columns):
        problems.append(f"{table}: none of the recipe's columns is there. Needed: {', '.join(used)}.")
    if sample is not None and sample not in frame.columns:
        problems.append(f"{table}: --id: there is no column '{sample}'. {suggest(sample, frame.columns)}")
    if problems:
        raise DataError(problems)
    frame = frame.with_columns(
        pl.lit(None, pl.String).alias(name) for name in used if name not in frame.columns
    )
    # messages name the row by its number: ids may repeat
    numbers = [f"row{number}" for number in range(1, len(frame) + 1)]
    manifest = Manifest(
        samples=numbers,
        subjects=numbers if sample is None else frame[sample].fill_null("").to_list(),
        outcomes=[None] * len(frame),
        cells=frame,
        schema=loaded.source.schema,
        classes=tuple(learned.index["classes"]),
        root=images or table.parent,
        is_simulated=learned.index["simulated"],
    )
    check_manifest(loaded, manifest)
    return manifest


def predict(learned: LearnedRun, manifest: Manifest, places: Places, tell: Tell) -> Answers:
    """Predicts every row: by the mean over folds and initialisations of the model that it allows."""
    experiments = _experiments(learned, manifest, places, tell)
    main = next(iter(experiments.values()))
    present = {name: main.reader(name).present(range(len(manifest))) for name in main.modalities}
    answering = [
        _answering(learned, {n: bool(p[row]) for n, p in present.items()}) for row in range(len(manifest))
    ]
    probabilities = np.full((len(manifest), len(manifest.classes)), np.nan)
    for name in sorted(set(answering) - {NO_MODEL}):
        rows = [row for row, model in enumerate(answering) if model == name]
        # in the order of contents, each once: a row's place in the table changes not even the last digit
        contents = _by_content(experiments[name], rows)
        first = [contents[content][0] for content in sorted(contents)]
        found = _mean_probabilities(learned, experiments[name], name, first)
        for content, values in zip(sorted(contents), found, strict=True):
            probabilities[contents[content]] = values
    predictions = []
    for row, model in enumerate(answering):
        known = None if model == NO_MODEL else tuple(map(float, probabilities[row]))
        called = None
        if known is not None:
            code = predict_classes(probabilities[row : row + 1], learned.thresholds[model])[0]
            called = manifest.classes[int(code)]
        missing = _describe_missing(learned, manifest, row)
        predictions.append(Prediction(manifest.subjects[row], known, called, model, missing))
    return Answers(manifest.classes, manifest.is_simulated, predictions)


def _experiments(
    learned: LearnedRun, manifest: Manifest, places: Places, tell: Tell
) -> dict[str, Experiment]:
    task = Classification(manifest.classes)
    device = choose_device(learned.loaded.recipe.training)
    store, shared = Store(places.store), Shared(artefacts=learned.artefact)
    names = dict.fromkeys(member["model"] for member in learned.index["members"])
    experiments = {}
    for name in names:
        is_main = name == FUSED or len(learned.loaded.recipe.modalities) == 1
        loaded = learned.loaded if is_main else learned.loaded.alone(name)
        factory = PartFactory(loaded, task.output_dim, places.data)
        experiments[name] = Experiment(factory, manifest, task, store, device, tell, shared)
    return experiments


def _answering(learned: LearnedRun, present: Mapping[str, bool]) -> str:
    """Returns which model answers a row: a modality alone where fused never learned without the others."""
    here = [name for name, is_here in present.items() if is_here]
    trained = {member["model"] for member in learned.index["members"]}
    if not here:
        return NO_MODEL
    if len(present) == 1:
        return here[0]
    absent = set(present) - set(here)
    if len(here) == 1 and here[0] in trained and not absent <= set(learned.index["trained_without"]):
        return here[0]
    return FUSED


def _by_content(experiment: Experiment, rows: Sequence[int]) -> dict[bytes, list[int]]:
    """Returns the rows of each distinct content of what the model reads."""
    readers = [experiment.reader(name) for name in experiment.modalities]
    found: dict[bytes, list[int]] = {}
    for row in rows:
        content = b"".join(reader.key(row) or bytes(32) for reader in readers)
        found.setdefault(content, []).append(row)
    return found


def _mean_probabilities(
    learned: LearnedRun, experiment: Experiment, name: str, rows: Sequence[int]
) -> NDArray[np.float64]:
    views = learned.loaded.recipe.evaluation.views
    members = [member for member in learned.index["members"] if member["model"] == name]
    total = np.zeros((len(rows), len(experiment.task.classes)))
    for member in members:
        origins = {path: Origin(**origin) for path, origin in member["origins"].items()}
        _check_unlearned(experiment, origins)
        total += link(experiment, predict_logits(experiment, origins, rows), views)
    return total / len(members)


def _check_unlearned(experiment: Experiment, origins: Mapping[str, Origin]) -> None:
    """Raises IntegrityError if a part that the run took as it was (weights from a file) is another now."""
    for path, origin in origins.items():
        if not origin.is_learned and experiment.factory.origin(path, origin.seed) != origin.address:
            raise IntegrityError(
                f"{path}: its initial weights are not those of the run. Give the same weights file."
            )


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
