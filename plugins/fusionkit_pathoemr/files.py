"""Makes simulated files in the cache, in several processes; what is there already is never made again."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import cache as memoize
from pathlib import Path
from typing import IO, Any

from filelock import FileLock, Timeout
from PIL import Image

from fusionkit import FusionkitWarning, ResourceError, SourceContext
from fusionkit_pathoemr.design import SimulatedFile, Style

GENERATOR = (
    "cohort.py",
    "design.py",
    "fields.py",
    "files.py",
    "lesion.py",
    "profile.py",
    "sample.py",
    "scene.py",
    "simulated.py",
    "tissue.py",
)
"""Modules that decide on the bytes: their text is part of the address, so that no stale file is used."""
JOURNAL = "digests.json"
DRAWING = "FUSIONKIT_DRAWING"
"""Set while helper processes draw into the folder that it names."""
CHUNK = 16
"""Files that one process makes before it takes the next lot."""
WAIT_SECONDS = 2.0
"""How long one waits for another process before saying so."""

Entry = Mapping[str, Any]


def store_files(
    files: Sequence[SimulatedFile], style: Style, identity: Mapping[str, Any], context: SourceContext
) -> Path:
    """Returns the folder that holds every file as simulated_<name><suffix>; makes those that are not there.

    A file that is there counts if its sha256 is the one in the journal; one without an entry, from a run that
    was cut off, counts if its checksums hold. No byte depends on the processes or on what else is asked for.

    Args:
        files: What they show.
        style: How that is shown.
        identity: All that the bytes depend on beside `files` and this code; `source` names the source.
        context: Where the folder lies, how many processes make files, and who is told how many are made.
    """
    folder = context.cache / _address(identity)
    if os.environ.get(DRAWING) == str(
        folder
    ):  # a script without a guard, run again by its own helper process
        raise SystemExit(1)
    folder.mkdir(parents=True, exist_ok=True)
    # two runs that start together would otherwise make everything twice
    with _alone(folder / ".lock", identity["source"]):
        journal = _read_journal(folder / JOURNAL)
        known = {file.name: entry for file in files if (entry := _entry(folder, file, style, journal))}
        todo = [file for file in files if file.name not in known]
        if todo:
            context.progress(0, len(todo))
        made = _make_all(todo, folder, style, context.workers, identity["source"])
        try:
            for done, (name, entry) in enumerate(made, 1):
                known[name] = entry
                context.progress(done, len(todo))
        finally:
            if journal | known != journal:
                _write_journal(folder / JOURNAL, journal | known, identity)
    return folder


@contextmanager
def _alone(lock_path: Path, source: str) -> Iterator[None]:
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        text = f"{source}: waiting for another process, which draws these images ({lock_path})."
        warnings.warn(text, FusionkitWarning, stacklevel=2)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def make_file(file: SimulatedFile, style: Style, stream: IO[bytes]) -> None:
    """Writes one file's bytes."""
    style.write(file, stream)


@memoize
def _generator() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in GENERATOR)).hexdigest()[:16]


def _address(identity: Mapping[str, Any]) -> str:
    text = json.dumps({"generator": _generator(), **identity}, sort_keys=True)
    return f"{identity['source']}-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _make_all(
    files: Sequence[SimulatedFile], folder: Path, style: Style, workers: int, source: str
) -> Iterator[tuple[str, Entry]]:
    chunks = [files[start : start + CHUNK] for start in range(0, len(files), CHUNK)]
    if workers <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield from _make_chunk(chunk, folder, style)
        return
    context = multiprocessing.get_context("spawn")
    n = len(chunks)
    os.environ[DRAWING] = str(folder)
    try:
        with ProcessPoolExecutor(
            min(workers, len(chunks)), mp_context=context, initializer=_end_with_parent
        ) as pool:
            for entries in pool.map(_make_chunk, chunks, [folder] * n, [style] * n):
                yield from entries
    except BrokenProcessPool:
        raise ResourceError(
            f"{source}: a process that draws images ended (killed, or the script that calls fusionkit "
            "does not guard its start with `if __name__ == '__main__':`). Mend that, then try again."
        ) from None
    finally:
        del os.environ[DRAWING]


def _end_with_parent() -> None:
    """Ends a helper process when the one that started it is killed: it would wait for work for ever."""

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


def _make_chunk(files: Sequence[SimulatedFile], folder: Path, style: Style) -> list[tuple[str, Entry]]:
    return [(file.name, _write_file(file, folder, style)) for file in files]


def _write_file(file: SimulatedFile, folder: Path, style: Style) -> Entry:
    path = folder / file.file_name(style)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as stream:
        make_file(file, style, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)
    return _describe(path)


def _describe(path: Path) -> Entry:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _entry(folder: Path, file: SimulatedFile, style: Style, journal: Mapping[str, Entry]) -> Entry | None:
    """Returns the journal's entry of a file that can be used, or None where it must be made."""
    path = folder / file.file_name(style)
    if not path.is_file():
        return None
    entry = journal.get(file.name)
    if entry is not None:
        return entry if _describe(path) == entry else None
    # only a picture has checksums of its own
    return _describe(path) if style.suffix == ".png" and _is_whole(path) else None


def _is_whole(path: Path) -> bool:
    try:
        with Image.open(path, formats=["PNG"]) as image:
            image.verify()
    except (OSError, SyntaxError):  # Pillow's word for a broken PNG is SyntaxError
        return False
    return True


def _read_journal(path: Path) -> dict[str, Entry]:
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))["files"])
    except (ValueError, LookupError, TypeError):
        return {}  # a broken journal vouches for nothing: every image is looked at, or drawn again


def _write_journal(path: Path, files: Mapping[str, Entry], identity: Mapping[str, Any]) -> None:
    about = f"Simulated files; no patient data. Made by fusionkit's source {identity['source']}."
    journal = {"about": about, "generator": _generator(), **identity}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(journal | {"files": dict(sorted(files.items()))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
