"""Draws simulated images into the cache, in several processes; what is there already is never drawn again."""

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
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image

from fusionkit import FusionkitWarning, ResourceError
from fusionkit_pathoemr.sample import SimulatedImage
from fusionkit_pathoemr.tissue import Stain, draw_tissue

GENERATOR = ("cohort.py", "sample.py", "scene.py", "tissue.py", "files.py")
"""Modules that decide on the pixels: their text is part of the address, so that no stale image is used."""
JOURNAL = "digests.json"
DRAWING = "FUSIONKIT_DRAWING"
"""Set while helper processes draw into the folder that it names."""
CHUNK = 16
"""Images that one process draws before it takes the next lot."""
IMAGES_PER_SLIDE = 3
WAIT_SECONDS = 2.0
"""How long one waits for another process before saying so."""

Entry = Mapping[str, Any]


def store_images(
    images: Sequence[SimulatedImage], seed: int, size: tuple[int, int], cache: Path, workers: int
) -> Path:
    """Returns the folder that holds every image as simulated_<name>.png; draws those that are not there.

    A file that is there counts if its sha256 is the one in the journal; one without an entry, from a run that
    was cut off, counts if its checksums hold. No byte depends on `workers` or on what else is asked for.
    """
    folder = cache / _address(seed, size)
    if os.environ.get(DRAWING) == str(
        folder
    ):  # a script without a guard, run again by its own helper process
        raise SystemExit(1)
    folder.mkdir(parents=True, exist_ok=True)
    # two runs that start together would otherwise draw everything twice
    with _alone(folder / ".lock"):
        journal = _read_journal(folder / JOURNAL)
        known = {image.name: entry for image in images if (entry := _entry(folder, image, journal))}
        todo = [image for image in images if image.name not in known]
        try:
            for name, entry in _draw_all(todo, folder, size, workers):
                known[name] = entry
        finally:
            if journal | known != journal:
                _write_journal(folder / JOURNAL, journal | known, size, seed)
    return folder


@contextmanager
def _alone(lock_path: Path) -> Iterator[None]:
    lock = FileLock(lock_path)
    try:
        lock.acquire(timeout=WAIT_SECONDS)
    except Timeout:
        text = f"pathoemr_sample: waiting for another process, which draws these images ({lock_path})."
        warnings.warn(text, FusionkitWarning, stacklevel=2)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def draw_image(image: SimulatedImage, size: tuple[int, int]) -> Image.Image:
    """Draws one image; it depends on its key, its latent and the size alone."""
    patient, i = image.key[:-1], image.key[-1]
    stain = Stain.draw(
        np.random.default_rng([*patient, 4]), np.random.default_rng([*patient, 5, i // IMAGES_PER_SLIDE])
    )
    return draw_tissue(image.latent, image.zoom, *size, stain, np.random.default_rng([*patient, 6, i]))


@memoize
def _generator() -> str:
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in GENERATOR)).hexdigest()[:16]


def _address(seed: int, size: tuple[int, int]) -> str:
    text = json.dumps({"generator": _generator(), "seed": seed, "width": size[0], "height": size[1]})
    return "pathoemr_sample-" + hashlib.sha256(text.encode()).hexdigest()[:16]


def _draw_all(
    images: Sequence[SimulatedImage], folder: Path, size: tuple[int, int], workers: int
) -> Iterator[tuple[str, Entry]]:
    chunks = [images[start : start + CHUNK] for start in range(0, len(images), CHUNK)]
    if workers <= 1 or len(chunks) <= 1:
        for chunk in chunks:
            yield from _draw_chunk(chunk, folder, size)
        return
    context = multiprocessing.get_context("spawn")
    n = len(chunks)
    os.environ[DRAWING] = str(folder)
    try:
        with ProcessPoolExecutor(
            min(workers, len(chunks)), mp_context=context, initializer=_end_with_parent
        ) as pool:
            for entries in pool.map(_draw_chunk, chunks, [folder] * n, [size] * n):
                yield from entries
    except BrokenProcessPool:
        raise ResourceError(
            "pathoemr_sample: a process that draws images ended (killed, or the script that calls fusionkit "
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


def _draw_chunk(
    images: Sequence[SimulatedImage], folder: Path, size: tuple[int, int]
) -> list[tuple[str, Entry]]:
    return [(image.name, _draw_file(image, folder, size)) for image in images]


def _draw_file(image: SimulatedImage, folder: Path, size: tuple[int, int]) -> Entry:
    path = _path(folder, image)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        draw_image(image, size).save(file, format="PNG", compress_level=3)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    return _describe(path)


def _path(folder: Path, image: SimulatedImage) -> Path:
    return folder / f"simulated_{image.name}.png"


def _describe(path: Path) -> Entry:
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _entry(folder: Path, image: SimulatedImage, journal: Mapping[str, Entry]) -> Entry | None:
    """Returns the journal's entry of a file that can be used, or None where it must be drawn."""
    path = _path(folder, image)
    if not path.is_file():
        return None
    entry = journal.get(image.name)
    if entry is not None:
        return entry if _describe(path) == entry else None
    return _describe(path) if _is_whole(path) else None


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


def _write_journal(path: Path, files: Mapping[str, Entry], size: tuple[int, int], seed: int) -> None:
    about = "Simulated images; no patient data. Drawn by fusionkit's source pathoemr_sample."
    journal = {"about": about, "generator": _generator(), "seed": seed, "width": size[0], "height": size[1]}
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(journal | {"files": dict(sorted(files.items()))}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
