"""What a run leaves for predict: written by the one, read and checked by the other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusionkit import __version__
from fusionkit.errors import DataError, IntegrityError
from fusionkit.recipe.load import LoadedRecipe, load_text
from fusionkit.registry import Registry
from fusionkit.store import Artefact, Store, address_of, file_digest, read_artefact, write_atomic
from fusionkit.training.device import Device
from fusionkit.training.experiment import Experiment, Origin
from fusionkit.training.stages import Plan

FORMAT = 3
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


def patterns_of(experiment: Experiment, plan: Plan) -> list[list[str]]:
    """Returns which sets of modalities the rows had that the train stages learned from."""
    names = sorted(experiment.modalities)
    rows = sorted({row for step in plan.steps if step.verb == "train" for row in step.rows})
    present = np.stack([experiment.reader(name).present(np.array(rows, dtype=np.int64)) for name in names])
    found = {tuple(name for name, is_here in zip(names, row, strict=True) if is_here) for row in present.T}
    return [list(pattern) for pattern in sorted(found)]


def write_model(folder: Path, experiment: Experiment, members: Sequence[Member]) -> None:
    """Writes an index of the members, and a link to (or a copy of) every artefact."""
    loaded, manifest = experiment.factory.loaded, experiment.manifest
    digests: dict[str, str] = {}
    for member in members:
        for origin in member.origins.values():
            if origin.is_learned and origin.address not in digests:
                digests[origin.address] = _link(experiment.store, origin.address, folder)
    index = {
        "format": FORMAT,
        "classes": list(manifest.classes),
        "simulated": manifest.is_simulated,
        "fusionkit": __version__,
        "device": experiment.device.identity(),
        "plugins": _used_plugins(loaded),
        "columns": _declared_columns(loaded),
        "files": {name: file_digest(folder.parent / name) for name in READ_FILES},
        "sha256": digests,
        "members": [
            {**vars(member), "origins": {path: vars(origin) for path, origin in member.origins.items()}}
            for member in members
        ],
    }
    write_atomic(folder / "index.json", json_bytes({**index, "digest": address_of(index)}))


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
    names = dict.fromkeys(name for columns in loaded.columns.values() for name in columns)
    schema = loaded.source.schema
    return {name: schema[name].model_dump(mode="json", exclude={"unit", "description"}) for name in names}


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

    def trained_on(self, model: str) -> set[frozenset[str]]:
        """Returns the sets of modalities that a model's training rows had, in any fold."""
        members = [member for member in self.index["members"] if member["model"] == model]
        return {frozenset(pattern) for member in members for pattern in member["trained_on"]}

    def changes(self, device: Device) -> list[str]:
        """Returns what may move a probability a little: device, versions that are not those of the run."""
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
        if index["format"] != FORMAT:
            raise ValueError(f"model/index.json has format {index['format']}, not {FORMAT}")
        for name in READ_FILES:
            if file_digest(folder / name) != index["files"][name]:
                raise ValueError(f"{name} is not what the run wrote")
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
    then, now = index["columns"], _declared_columns(loaded)
    changed = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if changed:
        raise IntegrityError(
            f"{folder}: columns are declared otherwise than in the run ({', '.join(changed)}). "
            "Give the schema file, or the version of the plugin, that the run had."
        )
