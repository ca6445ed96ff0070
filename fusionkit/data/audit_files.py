"""Whether every file that the rows name is there, whole, the one meant, and under one subject only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from fusionkit.data.batches import KEY_BYTES, Keys, ModalityReader
from fusionkit.data.digests import content_digest, file_status
from fusionkit.data.images import ImageInput
from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold
from fusionkit.data.threads import map_in_threads, prefetch
from fusionkit.errors import DataError
from fusionkit.interfaces import Cut
from fusionkit.store import Artefact, Store, read_artefact, to_bytes

_SAVE_SECONDS = 5.0
_BLOCK = 8
"""Files that a thread reads before it is told how far they are."""
_SHOWN = 4
_SORTED = np.dtype(f"S{KEY_BYTES}")
"""What numpy sorts and compares: of equal length, as all sums are, zeros at the end do not matter."""
FoundT = TypeVar("FoundT")


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
        digests: File column -> (n,) the sha256 of each row's file; zeros where there is no readable file.
        present: Modality -> (n,) for which rows it exists, for modalities that read files or text.
        contents: Modality -> the rows that are the first ones with their content.
        decoded: How many files were decoded now.
        remembered: How many files an earlier audit had found whole.
        problems: What is wrong.
    """

    digests: dict[str, NDArray[np.void]] = field(default_factory=dict)
    present: dict[str, NDArray[np.bool_]] = field(default_factory=dict)
    contents: dict[str, NDArray[np.int64]] = field(default_factory=dict)
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
        self.store, self.address, self.name = store, address, f"audits/{address}.safetensors"
        self._known = self._read()
        self._new: set[bytes] = set()
        self._saved = time.monotonic()

    def lacks(self, keys: NDArray[np.void]) -> NDArray[np.bool_]:
        """Says which of some contents are not among those of earlier audits."""
        wanted = keys.view(_SORTED)
        places = np.minimum(np.searchsorted(self._known, wanted), len(self._known) - 1)
        return self._known[places] != wanted if len(self._known) else np.ones(len(wanted), dtype=bool)

    def _read(self) -> NDArray[np.bytes_]:
        if not self.store.verify(self.name, anew=True):
            return np.zeros(0, dtype=_SORTED)
        rows = read_artefact(self.store.path(self.name)).tensors["whole"].numpy()
        # sorted again: what is read decides nothing about what it finds
        return np.sort(np.ascontiguousarray(rows).view(_SORTED).reshape(-1))

    def add(self, key: bytes) -> None:
        """Notes a content, and writes them down every few seconds."""
        self._new.add(key)
        if time.monotonic() - self._saved > _SAVE_SECONDS:
            self.save()

    def save(self) -> None:
        """Writes down what is new, beside what others have written meanwhile."""
        if self._new:
            # a short wait, also for those who leave to others what takes long
            with self.store.lock(self.address, "which files are whole", waits=True):
                new = np.frombuffer(b"".join(self._new), dtype=_SORTED)
                self._known = np.unique(np.concatenate([self._known, self._read(), new]))
                rows = self._known.view(np.uint8).reshape(-1, KEY_BYTES).copy()
                artefact = Artefact({"whole": torch.from_numpy(rows)}, {"audit": "contents found whole"})
                self.store.put(self.name, to_bytes(artefact))
            self._new = set()
        self._saved = time.monotonic()


def find_files(
    manifest: Manifest, columns: Sequence[str], readers: Sequence[ModalityReader], files: Files
) -> None:
    """Finds every file, compares its sha256 with the one that the data give for it, and asks for contents.

    Row by row, so that a file is read once however many there are.

    Args:
        manifest: The rows.
        columns: The file columns.
        readers: Whose contents are noted.
        files: Where to put what is found.
    """
    for name in columns:
        files.digests[name] = np.zeros(len(manifest), dtype=Keys)
    for reader in readers:
        files.present[reader.name] = np.zeros(len(manifest), dtype=bool)
    for row in range(len(manifest)):
        for name in columns:
            digest = _find_file(manifest, row, name, content_digest, files.problems)
            if digest is not None:
                files.digests[name][row] = np.void(digest)
                _compare(manifest, row, name, digest, files)
        for reader in readers:
            _note_content(reader, row, files)
    for reader in readers:
        here = np.flatnonzero(files.present[reader.name])
        first = np.unique(reader.keys(here).view(_SORTED), return_index=True)[1]
        files.contents[reader.name] = here[np.sort(first)]


def is_found(digests: NDArray[np.void]) -> NDArray[np.bool_]:
    """Says for which rows there is a readable file."""
    found: NDArray[np.bool_] = np.asarray(digests.view(np.uint8).reshape(-1, KEY_BYTES).any(1))
    return found


def n_distinct(digests: NDArray[np.void]) -> int:
    """Counts the different files of a column."""
    found = np.sort(digests[is_found(digests)].view(_SORTED))
    return int((found[1:] != found[:-1]).sum()) + 1 if len(found) else 0


def absent_files(manifest: Manifest, columns: Sequence[str]) -> list[Finding]:
    """Names every file that is not there, and reads none."""
    problems: list[Finding] = []
    for name in columns:
        for row in range(len(manifest)):
            _find_file(manifest, row, name, file_status, problems)
    return problems


def _find_file(
    manifest: Manifest, row: int, name: str, read: Callable[[Path], FoundT], problems: list[Finding]
) -> FoundT | None:
    """Returns what is found out of a row's file; None where the cell is missing, or something is wrong."""
    try:
        path = manifest.cells_of(row, [name])[name]
    except DataError as error:
        problems += [Finding("file", text, _ids(manifest, row)) for text in error.problems]
        return None
    if not isinstance(path, Path):
        return None
    try:
        return read(path)
    except (FileNotFoundError, NotADirectoryError):
        reason = f"there is no such file ({path}). Check its name and the folder that it is relative to."
    except OSError as error:
        reason = f"the file cannot be read ({path}: {error.strerror}). Check it and its rights."
    problems.append(Finding("file", f"{manifest.where(row)}: {name}: {reason}", _ids(manifest, row)))
    return None


def _compare(manifest: Manifest, row: int, name: str, digest: bytes, files: Files) -> None:
    """Compares a file's sha256 with the one that the data give for it."""
    checksums = manifest.checksums.get(name)
    given = checksums[row] if checksums else None
    if given is not None and given.lower() != digest.hex():
        path = manifest.cells_of(row, [name])[name]
        message = (
            f"{manifest.where(row)}: {name}: not the file that its checksum names ({path}: "
            f"sha256 {digest.hex()[:12]}, given {given.lower()[:12]}). Fetch it again, or mend the "
            "checksum."
        )
        files.problems.append(Finding("checksum", message, _ids(manifest, row)))


def _note_content(reader: ModalityReader, row: int, files: Files) -> None:
    """Notes whether a row has the modality, and its content; rows with a file's problem are passed over."""
    manifest = reader.manifest
    try:
        cells = manifest.cells_of(row, reader.spec.columns)
    except DataError:
        return  # named by _find_file
    named = [name for name, cell in cells.items() if isinstance(cell, Path)]
    if not all(name in files.digests and is_found(files.digests[name][row : row + 1])[0] for name in named):
        return
    try:
        key = reader.key(row)
    except DataError as error:
        files.problems += [Finding("file", problem, _ids(manifest, row)) for problem in error.problems]
        return
    if key is not None:
        files.present[reader.name][row] = True


def _ids(manifest: Manifest, *rows: int) -> tuple[str, ...]:
    return tuple(manifest.samples[row] for row in rows)


def decode_files(
    reader: ModalityReader,
    whole: Whole,
    files: Files,
    threads: int,
    progress: Callable[[int, int], None],
) -> None:
    """Reads every content of a modality once, all of it, unless an earlier audit has; counts files alone.

    Args:
        reader: Reads them.
        whole: The contents that are known to be whole.
        files: The contents, and where to put what is found.
        threads: How many images are decoded side by side; a plugin's own files are read one by one.
        progress: Is told how many of how many are done.
    """
    rows = files.contents[reader.name]
    todo = rows[whole.lacks(reader.keys(rows))]
    schema = reader.manifest.schema
    # not the texts that a modality reads from the table itself
    has_files = any(name in schema and schema[name].kind == "file" for name in reader.spec.columns)
    if has_files:
        files.remembered += len(rows) - len(todo)
        files.decoded += len(todo)
    done, workers = 0, threads if isinstance(reader.spec, ImageInput) else 0
    blocks = np.split(todo, range(size := max(1, threads) * _BLOCK, len(todo), size)) if len(todo) else []
    found = (map_in_threads(lambda row: (row, _read(reader, row)), part.tolist(), workers) for part in blocks)
    try:
        for part in prefetch(found, look=reader.tell_slow):
            for row, problems in part:
                files.problems += problems
                if not problems:
                    whole.add(reader.keys(np.array([row]))[0].tobytes())
            done += len(part)
            if has_files:
                progress(done, len(todo))
    finally:
        whole.save()


def _read(reader: ModalityReader, row: int) -> list[Finding]:
    """Reads one row, all of it, and returns what is wrong with it."""
    try:
        reader.load(row, [Cut(reader.spec.views(training=False)[0])])
    except DataError as error:
        return [Finding("file", problem, _ids(reader.manifest, row)) for problem in error.problems]
    return []


def duplicates(manifest: Manifest, files: Files, folds: Sequence[Fold]) -> list[Finding]:
    """Names every file that is under two subjects, or in two samples that a fold puts on both sides."""
    places: dict[bytes, dict[int, str]] = {}
    repeated = _repeated(files)
    for name, digests in files.digests.items():
        for row in np.flatnonzero(np.isin(digests.view(_SORTED), repeated)).tolist():
            places.setdefault(digests[row].tobytes(), {}).setdefault(row, name)
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


def _repeated(files: Files) -> NDArray[np.bytes_]:
    """Returns the digests that are there more than once; mostly none, of a million."""
    found = [digests[is_found(digests)].view(_SORTED) for digests in files.digests.values()]
    if not found:
        return np.zeros(0, dtype=_SORTED)
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    return values[counts > 1]


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
