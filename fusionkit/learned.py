"""What a run leaves for predict and evaluate: written by the one, read and checked by the others."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fusionkit import __version__
from fusionkit.data.splits import Fold
from fusionkit.errors import DataError, IntegrityError, RecipeError
from fusionkit.recipe.load import LoadedRecipe, load_text
from fusionkit.recipe.schema import MISSING
from fusionkit.registry import Registry
from fusionkit.run_folder import hinting_at_plugins, why_unfinished
from fusionkit.store import (
    Artefact,
    Store,
    address_of,
    file_digest,
    read_artefact,
    to_bytes,
    write_atomic,
)
from fusionkit.training.device import Device
from fusionkit.training.experiment import Experiment, Origin
from fusionkit.training.stages import Plan

FORMAT = 4
"""Of the index; raised where an older one cannot be read."""


@dataclass(frozen=True)
class Member:
    """One learned model.

    Args:
        model: Of which variant: fused, or a modality alone.
        repeat: Of which repeat of the split.
        fold: Of which fold.
        member: Of which initialisation.
        origins: Where its parts come from.
        trained_on: The sets of modalities that its training rows had.
    """

    model: str
    repeat: int
    fold: int
    member: int
    origins: Mapping[str, Origin]
    trained_on: Sequence[Sequence[str]]


READ_FILES = ("resolved.yaml", "report.json")
"""Files of a run folder that predict reads, beside the model: the index knows their sums."""
SEEN_FILE = "seen.safetensors"
"""Whom the run learned from: hashes of subjects and of files, so that evaluate finds them again."""
SEEN_BYTES = 16
MAY_DIFFER = ("range", "missing")
"""What other data may declare otherwise: neither changes the number that a cell becomes."""


def patterns_of(experiment: Experiment, plan: Plan) -> list[list[str]]:
    """Returns which sets of modalities the rows had that the head, or a train stage, learned from."""
    names = sorted(experiment.modalities)
    rows = sorted(
        {row for step in plan.steps if step.verb == "train" or "head" in step.learned for row in step.rows}
    )
    present = np.stack([experiment.reader(name).present(np.array(rows, dtype=np.int64)) for name in names])
    found = {tuple(name for name, is_here in zip(names, row, strict=True) if is_here) for row in present.T}
    return [list(pattern) for pattern in sorted(found)]


def write_model(
    folder: Path, experiment: Experiment, members: Sequence[Member], folds: Sequence[Fold]
) -> None:
    """Writes an index of the members, a link to (or a copy of) every artefact, and whom they learned from."""
    loaded, manifest = experiment.factory.loaded, experiment.manifest
    digests: dict[str, str] = {}
    for member in members:
        for origin in member.origins.values():
            if origin.is_learned and origin.address not in digests:
                digests[origin.address] = _link(experiment.store, origin.address, folder)
    rows = sorted({row for fold in folds for row in (*fold.train, *fold.validation)})
    write_atomic(folder / SEEN_FILE, to_bytes(Artefact(seen_tensors(experiment, rows), {})))
    index = {
        "format": FORMAT,
        "classes": list(manifest.classes),
        "simulated": manifest.is_simulated,
        "fusionkit": __version__,
        "device": experiment.device.identity(),
        "plugins": _used_plugins(loaded),
        "columns": _declared_columns(loaded),
        "files": {name: file_digest(folder.parent / name) for name in READ_FILES},
        "seen": file_digest(folder / SEEN_FILE),
        "sha256": digests,
        "members": [
            {**vars(member), "origins": {path: vars(origin) for path, origin in member.origins.items()}}
            for member in members
        ],
    }
    write_atomic(folder / "index.json", json_bytes({**index, "digest": address_of(index)}))


def seen_tensors(experiment: Experiment, rows: Iterable[int]) -> dict[str, Tensor]:
    """Returns hashes of the rows' subjects, and per modality that reads files the content keys of its rows.

    A record is no trace: two people may well have the same.
    """
    rows, manifest = list(rows), experiment.manifest
    found = {"subjects": _hashes(subject_hash(manifest.subjects[row]) for row in rows)}
    for name in file_modalities(experiment):
        keys = (experiment.reader(name).key(row) for row in rows)
        found[f"files.{name}"] = _hashes(key[:SEEN_BYTES] for key in keys if key is not None)
    return found


def file_modalities(experiment: Experiment) -> list[str]:
    """Returns the modalities that read files."""
    schema, columns = experiment.manifest.schema, experiment.factory.loaded.columns
    return [name for name in columns if any(schema[column].kind == "file" for column in columns[name])]


def subject_hash(subject: str) -> bytes:
    """Returns what stands for a subject in a run's folder."""
    return hashlib.sha256(f"subject {subject}".encode()).digest()[:SEEN_BYTES]


def _hashes(values: Iterable[bytes]) -> Tensor:
    """Returns distinct hashes (n, 16), sorted: their order says nothing of the rows'."""
    distinct = sorted(set(values))
    table = np.frombuffer(b"".join(distinct), dtype=np.uint8).reshape(len(distinct), SEEN_BYTES)
    return torch.from_numpy(table.copy())


def json_bytes(node: Any) -> bytes:
    """Returns JSON for people and programs, as the files of a run have it."""
    return (json.dumps(node, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _link(store: Store, address: str, folder: Path) -> str:
    source = store.artefact_path(address)
    target = folder / source.name
    try:
        folder.mkdir(parents=True, exist_ok=True)
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        write_atomic(target, source.read_bytes())
    return store.digest(address)


def _used_plugins(loaded: LoadedRecipe) -> dict[str, str]:
    """Returns the version of every plugin that offers a component of the recipe, by package."""
    plugins = [plan.plugin for plan in (loaded.source_plan, *loaded.parts.values())]
    return {plugin.package: plugin.version for plugin in plugins}


def _declared_columns(loaded: LoadedRecipe) -> dict[str, Any]:
    """Returns what the columns that the modalities read may hold, less the words for people."""
    names = loaded.used_columns
    schema = loaded.source.schema
    return {name: schema[name].model_dump(mode="json", exclude={"unit", "description"}) for name in names}


@dataclass(frozen=True)
class LearnedRun:
    """A run folder, read and checked.

    Args:
        folder: The run folder.
        loaded: Its resolved recipe.
        index: `model/index.json`.
        thresholds: By model, pretrained classifiers included, the probability of the last class from which a
            row is called it.
        redeclared: Columns whose range or missing texts are declared otherwise than in the run.
    """

    folder: Path
    loaded: LoadedRecipe
    index: Mapping[str, Any]
    thresholds: Mapping[str, float]
    redeclared: Sequence[str] = ()

    @property
    def models(self) -> list[str]:
        """The models that learned, the recipe as written first."""
        return list(dict.fromkeys(member["model"] for member in self.index["members"]))

    def members(self, model: str) -> list[dict[str, Origin]]:
        """Returns the origins of each of a model's members: all its folds and initialisations."""
        found = [member["origins"] for member in self.index["members"] if member["model"] == model]
        return [{path: Origin(**origin) for path, origin in origins.items()} for origins in found]

    def seen(self) -> dict[str, set[bytes]]:
        """Returns the hashes of whom the run learned from: of `subjects`, and of files by modality."""
        tensors = read_artefact(self.folder / "model" / SEEN_FILE).tensors
        return {
            name.removeprefix("files."): {row.tobytes() for row in tensor.numpy()}
            for name, tensor in tensors.items()
        }

    def artefact(self, address: str) -> Artefact | None:
        """Reads one learned artefact."""
        return read_artefact(_artefact_path(self.folder, address))

    def trained_on(self, model: str) -> set[frozenset[str]]:
        """Returns the sets of modalities that a model's training rows had, in any fold."""
        members = [member for member in self.index["members"] if member["model"] == model]
        return {frozenset(pattern) for member in members for pattern in member["trained_on"]}

    def changes(self, device: Device) -> list[str]:
        """Returns what may move a prediction a little: device, versions that are not those of the run."""
        then = {
            "fusionkit": self.index.get("fusionkit", "unknown"),
            **self.index["device"],
            **self.index["plugins"],
        }
        now = {"fusionkit": __version__, **device.identity(), **_used_plugins(self.loaded)}
        return [
            f"{name} {then.get(name, 'none')}, now {now.get(name, 'none')}"
            for name in {**then, **now}
            if then.get(name) != now.get(name)
        ]


def _artefact_path(folder: Path, address: str) -> Path:
    return folder / "model" / f"{address}.safetensors"


def open_run(folder: Path, registry: Registry, data_root: Path, overrides: Sequence[str] = ()) -> LearnedRun:
    """Opens a run folder; `overrides` may say where other data come from, and nothing else.

    Raises:
        DataError: It is no run folder, or the run is not finished.
        IntegrityError: It is not what the run wrote.
        RecipeError: An override is wrong, or changes more than the source.
    """
    index_path = folder / "model" / "index.json"
    if not index_path.is_file():
        raise DataError(why_unfinished(folder))
    try:
        index = json.loads(index_path.read_text(encoding="utf-8"))
        if index.pop("digest", None) != address_of(index):
            raise ValueError("model/index.json is not what the run wrote")
        if index["format"] != FORMAT:
            raise ValueError(f"model/index.json has format {index['format']}, not {FORMAT}")
        for name in READ_FILES:
            if file_digest(folder / name) != index["files"][name]:
                raise ValueError(f"{name} is not what the run wrote")
        models = json.loads((folder / "report.json").read_text(encoding="utf-8"))["models"]
        thresholds = {n: _mean_threshold(m["folds"]) for n, m in models.items() if MISSING not in n}
        text = (folder / "resolved.yaml").read_text(encoding="utf-8")
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise IntegrityError(f"{folder}: the run folder is broken ({error}). Run the recipe again.") from None
    _check_artefacts(folder, index)
    name = str(folder / "resolved.yaml")
    with hinting_at_plugins(folder, registry):
        loaded = load_text(text, registry, name=name, overrides=_of_source(overrides), data_root=data_root)
    redeclared = _check_columns(folder, index, loaded, MAY_DIFFER if overrides else ())
    return LearnedRun(folder, loaded, index, thresholds, redeclared)


def _mean_threshold(folds: Sequence[Mapping[str, Any]]) -> float:
    """Returns the mean over folds; where there are more than two classes none has one, and none is used."""
    return float(np.mean([0.5 if fold["threshold"] is None else fold["threshold"] for fold in folds]))


def _of_source(overrides: Sequence[str]) -> Sequence[str]:
    """Returns the overrides; raises RecipeError for each that changes what the run learned."""
    problems = [
        f"override '{text}': only where the data come from may be changed. Write source.OPTION=VALUE."
        for text in overrides
        if text.partition("=")[0].partition(".")[0].strip() != "source"
    ]
    if problems:
        raise RecipeError(problems)
    return overrides


def _check_artefacts(folder: Path, index: Mapping[str, Any]) -> None:
    """Raises IntegrityError for every artefact that is not what the run wrote."""
    problems = []
    paths = {_artefact_path(folder, address): digest for address, digest in index["sha256"].items()}
    for path, digest in {**paths, folder / "model" / SEEN_FILE: index["seen"]}.items():
        if not path.is_file():
            problems.append(f"{path}: not there. The run folder is not whole; run the recipe again.")
        elif file_digest(path) != digest:
            problems.append(f"{path}: not what the run wrote (sha256 differs). Run the recipe again.")
    if problems:
        raise IntegrityError(problems)


def _check_columns(
    folder: Path, index: Mapping[str, Any], loaded: LoadedRecipe, may_differ: Sequence[str]
) -> list[str]:
    """Returns the columns that are declared otherwise than in the run.

    Raises:
        IntegrityError: A cell would be read otherwise than in the run: codes would move.
    """
    then, now = index["columns"], _declared_columns(loaded)
    differing = [name for name in {**then, **now} if then.get(name) != now.get(name)]

    def fixed(column: Mapping[str, Any] | None) -> dict[str, Any]:
        return {key: value for key, value in (column or {}).items() if key not in may_differ}

    changed = [name for name in differing if fixed(then.get(name)) != fixed(now.get(name))]
    if changed:
        raise IntegrityError(
            f"{folder}: columns are declared otherwise than in the run ({', '.join(changed)}). "
            "Give the schema file, or the version of the plugin, that the run had."
        )
    return differing
