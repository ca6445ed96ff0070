"""Whether every file that the rows name is there, whole, the one meant, and under one subject only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fusionkit.data.batches import ModalityReader
from fusionkit.data.digests import file_digest
from fusionkit.data.images import ImageInput
from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold
from fusionkit.data.threads import map_in_threads, prefetch
from fusionkit.errors import DataError
from fusionkit.interfaces import Cells, Cut
from fusionkit.store import Artefact, Store, read_artefact, to_bytes

_SAVE_SECONDS = 5.0
_BLOCK = 8
"""Files that a thread reads before it is told how far they are."""
_SHOWN = 4


@dataclass(frozen=True)
class Finding:
    """One thing that an audit found.

    Args:
        check: What was checked, in one word: value, file, checksum, duplicate, outcome, split, ...
        message: One sentence for people.
        samples: The rows that it concerns, where it concerns single rows.
    """

    check: str
    message: str
    samples: tuple[str, ...] = ()


@dataclass
class Files:
    """What was found in the files of one manifest.

    Args:
        digests: File column -> row -> the sha256 of its file; rows without a readable file are not in it.
        present: Modality -> (n,) for which rows it exists, for modalities that read files or text.
        decoded: How many were decoded now.
        remembered: How many an earlier audit had found whole.
        problems: What is wrong.
    """

    digests: dict[str, dict[int, bytes]] = field(default_factory=dict)
    present: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    decoded: int = 0
    remembered: int = 0
    problems: list[Finding] = field(default_factory=list)


class Whole:
    """Remembers, across audits, which contents an input spec could read; a file of the store.

    Args:
        store: Where.
        address: Of all that decides what the input spec accepts.
    """

    def __init__(self, store: Store, address: str) -> None:
        self.store, self.name = store, f"audits/{address}.safetensors"
        self.keys: set[bytes] = set()
        if store.verify(self.name):
            rows = read_artefact(store.path(self.name)).tensors["whole"].numpy()
            self.keys = {row.tobytes() for row in rows}
        self._n_saved = len(self.keys)
        self._saved = time.monotonic()

    def add(self, key: bytes) -> None:
        """Notes a content, and writes them down every few seconds."""
        self.keys.add(key)
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes down what is new."""
        if len(self.keys) > self._n_saved:
            rows = np.frombuffer(b"".join(sorted(self.keys)), dtype=np.uint8).reshape(-1, 32).copy()
            artefact = Artefact({"whole": torch.from_numpy(rows)}, {"audit": "contents found whole"})
            self.store.put(self.name, to_bytes(artefact))
            self._n_saved = len(self.keys)
        self._saved = time.monotonic()


def digest_files(manifest: Manifest, columns: Iterable[str], files: Files) -> None:
    """Finds every file of the columns, and compares its sha256 with the one that the data give for it."""
    for name in columns:
        found = files.digests.setdefault(name, {})
        checksums = manifest.checksums.get(name)
        for row in range(len(manifest)):
            try:
                path = manifest.cells_of(row, [name])[name]
            except DataError as error:
                files.problems += [Finding("file", text, _ids(manifest, row)) for text in error.problems]
                continue
            if not isinstance(path, Path):
                continue
            digest = _digest(path)
            if isinstance(digest, str):
                message = f"{manifest.where(row)}: {name}: {digest}"
                files.problems.append(Finding("file", message, _ids(manifest, row)))
                continue
            found[row] = digest
            given = checksums[row] if checksums else None
            if given is not None and given.lower() != digest.hex():
                message = (
                    f"{manifest.where(row)}: {name}: not the file that its checksum names ({path}: "
                    f"sha256 {digest.hex()[:12]}, given {given.lower()[:12]}). Fetch it again, or mend the "
                    "checksum."
                )
                files.problems.append(Finding("checksum", message, _ids(manifest, row)))


def _digest(path: Path) -> bytes | str:
    """Returns a file's sha256, or what is wrong with it."""
    if not path.is_file():
        return f"there is no such file ({path}). Check its name and the folder that it is relative to."
    try:
        return file_digest(path)
    except OSError as error:
        return f"the file cannot be read ({path}: {error.strerror}). Check it and its rights."


def _ids(manifest: Manifest, *rows: int) -> tuple[str, ...]:
    return tuple(manifest.samples[row] for row in rows)


def decode_files(
    manifest: Manifest,
    reader: ModalityReader,
    whole: Whole,
    files: Files,
    threads: int,
    tell: Callable[[int, int], None],
) -> None:
    """Reads every content of a modality once, all of it, unless an earlier audit has.

    Args:
        manifest: The rows.
        reader: Reads them.
        whole: The contents that are known to be whole.
        files: Where to put what is found; rows whose file has a problem already are passed over.
        threads: How many images are decoded side by side; a plugin's own files are read one by one.
        tell: Is told how many of how many are done.
    """
    rows, present = _contents(manifest, reader, files)
    files.present[reader.name] = present
    todo = {key: row for key, row in rows.items() if key not in whole.keys}
    files.remembered += len(rows) - len(todo)
    files.decoded += len(todo)
    done, workers = 0, threads if isinstance(reader.spec, ImageInput) else 0
    blocks = _blocks(list(todo.items()), max(1, threads) * _BLOCK)
    found = (
        map_in_threads(lambda entry: (entry[0], _read(reader, entry[1])), part, workers) for part in blocks
    )
    try:
        for part in prefetch(found, look=reader.tell_slow):
            for key, problems in part:
                files.problems += problems
                if not problems:
                    whole.add(key)
            done += len(part)
            tell(done, len(todo))
    finally:
        whole.save()


def _blocks(entries: list[tuple[bytes, int]], size: int) -> Iterator[list[tuple[bytes, int]]]:
    for start in range(0, len(entries), size):
        yield entries[start : start + size]


def _read(reader: ModalityReader, row: int) -> list[Finding]:
    """Reads one row, all of it, and returns what is wrong with it."""
    try:
        reader.load(row, [Cut(reader.spec.views(training=False)[0])])
    except DataError as error:
        return [Finding("file", problem, _ids(reader.manifest, row)) for problem in error.problems]
    return []


def _contents(
    manifest: Manifest, reader: ModalityReader, files: Files
) -> tuple[dict[bytes, int], NDArray[np.bool_]]:
    """Returns the first row of each content, and for which rows the modality exists."""
    rows: dict[bytes, int] = {}
    present = np.zeros(len(manifest), dtype=bool)
    for row in range(len(manifest)):
        try:
            cells = manifest.cells_of(row, reader.spec.columns)
        except DataError:
            continue  # named by digest_files
        if not _are_there(cells, row, files):
            continue
        try:
            key = reader.key(row)
        except DataError as error:
            files.problems += [Finding("file", problem, _ids(manifest, row)) for problem in error.problems]
            continue
        if key is not None:
            present[row] = True
            rows.setdefault(key, row)
    return rows, present


def _are_there(cells: Cells, row: int, files: Files) -> bool:
    """Says whether every file of a row's cells could be read."""
    return all(row in files.digests.get(name, {}) for name, cell in cells.items() if isinstance(cell, Path))


def duplicates(manifest: Manifest, files: Files, folds: Sequence[Fold]) -> list[Finding]:
    """Names every file that is under two subjects, or in two samples that a fold puts on both sides."""
    places: dict[bytes, dict[int, str]] = {}
    for name, digests in files.digests.items():
        for row, digest in digests.items():
            places.setdefault(digest, {}).setdefault(row, name)
    shared = {digest: columns for digest, columns in places.items() if len(columns) > 1}
    sides = _sides(folds if shared else (), len(manifest))
    findings = []
    for digest, columns in shared.items():
        subjects = {manifest.subjects[row] for row in columns}
        if len(subjects) > 1:
            what = f"the same file under {'two' if len(subjects) == 2 else len(subjects)} subjects"
            cure = "Leave all but one out, or mend the subject."
        elif _is_crossing(sides, list(columns)):
            what = "the same file on both sides of the split"
            cure = "Leave all but one out, or split by subject."
        else:
            continue
        where = _join([manifest.where(row) for row in columns])
        names = _join(list(dict.fromkeys(str(manifest.cells[name][row]) for row, name in columns.items())))
        message = (
            f"{where}: {_join(list(dict.fromkeys(columns.values())))}: {what} "
            f"({names}; sha256 {digest.hex()[:12]}). {cure}"
        )
        findings.append(Finding("duplicate", message, _ids(manifest, *columns)))
    return findings


def _sides(folds: Sequence[Fold], n_rows: int) -> NDArray[np.int8]:
    """Returns (n_folds, n_rows): 0 in no set, 1 train, 2 validation, 3 test."""
    sides = np.zeros((len(folds), n_rows), dtype=np.int8)
    for of_fold, fold in zip(sides, folds, strict=True):
        for number, rows in enumerate((fold.train, fold.validation, fold.test), 1):
            of_fold[list(rows)] = number
    return sides


def _is_crossing(sides: NDArray[np.int8], rows: Sequence[int]) -> bool:
    return any(len(set(of_fold[of_fold > 0].tolist())) > 1 for of_fold in sides[:, rows])


def _join(texts: Sequence[str]) -> str:
    if len(texts) > _SHOWN:
        return f"{', '.join(texts[:_SHOWN])} and {len(texts) - _SHOWN} more"
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)
