"""The folder of a run: how it is made and how it stands; an unfinished one says how to continue."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import secrets
import shutil
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fusionkit.errors import DataError, FusionkitError, PluginError, RecipeError, ResourceError, UsageError
from fusionkit.locks import Holder, users
from fusionkit.registry import Registry
from fusionkit.store import resource_error, write_atomic

MARKER = "unfinished.json"
"""The file that an unfinished run has, and a finished one has not."""
RUNNING = "still running, or killed"
"""What a run says of itself until it ends; who reads it looks whether it lives."""
_UNKNOWN = re.compile(r"(?!override ).*: there is no (source|encoder|raiser|head) of that name \(")
NAME = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{6}")
"""The name of a run's folder."""
YOUNG_SECONDS = 60.0
_FIRST_FILES = {"recipe.yaml", "log.jsonl", "model"}
"""What may be in the folder of a run that was killed in its first moment."""
INDEX = Path("model", "index.json")
"""The file that a run writes last."""


def make_run_folder(runs: Path, name: str) -> Path:
    """Makes `runs/<recipe>/<utc>-<6 hex>/`; raises ResourceError at once where that cannot be written."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    folder = runs / name / f"{stamp}-{secrets.token_hex(3)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise resource_error(folder, error) from error
    return folder


def point_latest(folder: Path) -> None:
    """Points `latest` to the newest run, atomically."""
    link_path = folder.parent / f".latest.{secrets.token_hex(3)}"
    try:
        link_path.symlink_to(folder.name)
        os.replace(link_path, folder.parent / "latest")
    except OSError as error:
        raise resource_error(folder.parent / "latest", error) from error


@contextlib.contextmanager
def hidden_until_whole(folder: Path) -> Iterator[Path]:
    """Yields a folder's place while it is filled; it has its name when all is there, else it is gone."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    os.replace(folder, unfinished)
    try:
        yield unfinished
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextlib.contextmanager
def marked_unfinished(folder: Path, given: Mapping[str, Any]) -> Iterator[None]:
    """Marks a run's folder until all is done; where something stops it, marker and log say what.

    Args:
        folder: The run's folder.
        given: What a continuation must be given again.
    """
    started = time.monotonic()
    marker: dict[str, Any] = {
        "status": RUNNING,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "process": os.getpid(),
        "machine": platform.node(),
        **given,
        "continue": f"fusionkit resume {folder}",
    }
    _write(folder, marker)
    try:
        yield
    except BaseException as error:  # an interrupt is one of the ways to stop
        seconds = time.monotonic() - started
        with contextlib.suppress(OSError, FusionkitError):  # a full disk must not hide what stopped the run
            _note_stop(folder, marker, error, seconds)
        raise
    (folder / MARKER).unlink(missing_ok=True)


def _note_stop(folder: Path, marker: Mapping[str, Any], error: BaseException, seconds: float) -> None:
    what, problems = "failed", [repr(error)]
    if isinstance(error, KeyboardInterrupt):
        what, problems = "interrupted", []
    elif isinstance(error, FusionkitError):
        problems = list(error.problems)
    found = {"status": f"{what} after {seconds:.0f} s", "problems": problems}
    _write(folder, {**marker, **found})
    # a message is one sentence; what a plugin's author needs stands here
    trace = "".join(traceback.format_exception(error))
    line = {"seconds": round(seconds, 3), "event": "run_stopped", **found, "traceback": trace}
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps(line) + "\n")


def _write(folder: Path, marker: dict[str, Any]) -> None:
    write_atomic(folder / MARKER, (json.dumps(marker, indent=1, ensure_ascii=False) + "\n").encode())


def read_marker(folder: Path) -> dict[str, Any]:
    """Returns what an unfinished folder says of itself; nothing where it says nothing that can be read."""
    try:
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return marker if isinstance(marker, dict) else {}


@contextlib.contextmanager
def hinting_at_plugins(folder: Path, registry: Registry) -> Iterator[None]:
    """Says before what is wrong with a run's recipe which of the run's plugins are not loaded now."""
    try:
        yield
    except (RecipeError, PluginError) as error:
        hints = [
            f"{folder}: the run had the plugin '{name}', which is not loaded now. Name it before the "
            f"command, `fusionkit -p {name} ...`, or install it."
            for name in _lost_plugins(folder, registry)
        ]
        if not hints:
            raise
        # what the lost plugin offered has no name that is nearest
        others = [text for text in error.problems if not _UNKNOWN.match(text)]
        raise PluginError([*hints, *others]) from None


def _lost_plugins(folder: Path, registry: Registry) -> list[str]:
    """Returns the plugins that a run had, by the names that it knew them by, less those that are loaded."""
    try:
        names = list(json.loads((folder / "environment.json").read_text(encoding="utf-8"))["plugins"])
    except (OSError, ValueError, LookupError, TypeError):
        return []  # nothing to hint at: the mistake itself is told
    known = {plugin.package for plugin in registry.plugins.values()} | set(registry.plugins)
    # `-p` may have named the same plugin by another path
    return [name for name in map(str, names) if name not in known and Path(name).stem not in known]


def is_finished(folder: Path) -> bool:
    """Says whether a run wrote all its files."""
    return (folder / INDEX).is_file()


def running(folder: Path) -> Holder | None:
    """Returns the process that is at a run, or None: a run holds a lock in its store as long as it lives."""
    marker = read_marker(folder)
    if marker.get("status") != RUNNING:
        return None  # it has said how it ended; its process may be at another run
    store = marker.get("store")
    found = users(Path(store) / "locks") if isinstance(store, str) else []
    return next(
        (user for user in found if (user.pid, user.host) == (marker.get("process"), marker.get("machine"))),
        None,
    )


def status_of(folder: Path) -> str:
    """Returns how a run stands, in a few words."""
    if is_finished(folder):
        return "finished"
    holder = running(folder)
    if holder is not None:
        return f"running: {holder.describe()}"
    status = read_marker(folder).get("status")
    return status if isinstance(status, str) and status != RUNNING else "killed"


@dataclass(frozen=True)
class Unfinished:
    """What tidying found among unfinished runs.

    Args:
        gone: The folders that went, or would go.
        young: Those that are too young.
        live: Those of running processes.
    """

    gone: list[Path]
    young: list[Path]
    live: list[Path]


def prune_runs(runs: Path, *, older_than_days: float, dry_run: bool = False) -> Unfinished:
    """Deletes the folders of runs that never finished and have ended so long ago; nothing of a finished run.

    Raises:
        ResourceError: A folder cannot be deleted.
    """
    found = Unfinished([], [], [])
    # a run's first second, in which it holds no lock yet, is never long ago
    limit = time.time() - max(older_than_days * 86400, YOUNG_SECONDS)
    for folder in sorted(runs.glob("*/*")):
        if not _is_runs(folder) or is_finished(folder):
            continue
        if running(folder) is not None:
            found.live.append(folder)
        elif _last_change(folder) > limit:
            found.young.append(folder)
        else:
            found.gone.append(folder)
            if not dry_run:
                _delete(folder)
    return found


def _is_runs(folder: Path) -> bool:
    """Says whether a folder was made by a run; what sweeps and evaluations leave has such a name, too."""
    if not NAME.fullmatch(folder.name) or not folder.is_dir() or folder.is_symlink():
        return False
    names = {path.name for path in folder.iterdir()}
    return MARKER in names or is_run(folder) or names <= _FIRST_FILES


def _last_change(folder: Path) -> float:
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        return time.time()  # it is changing just now


def _delete(folder: Path) -> None:
    try:
        shutil.rmtree(folder)
    except OSError as error:
        where = error.filename or folder
        raise ResourceError(f"{where}: cannot be deleted ({error.strerror}). Check its rights.") from error


def followed(folder: Path) -> Path:
    """Returns the folder itself where `latest` is named, which will be another one tomorrow."""
    return folder.parent / os.readlink(folder) if folder.is_symlink() else folder


def is_run(folder: Path) -> bool:
    """Says whether a folder is a run's, finished or not."""
    return (folder / "resolved.yaml").is_file() and not folder.is_symlink()


def find_runs(runs: Path) -> list[Path]:
    """Returns the run folders of all recipes, oldest first; their names start with the time."""
    return sorted((path for path in runs.glob("*/*") if is_run(path)), key=lambda path: path.name)


def why_unfinished(folder: Path) -> str:
    """Returns the sentence for a folder that is not a finished run's, with what to do."""
    if is_run(Path(os.path.realpath(folder))):  # which a loop of links does not stop
        status = status_of(folder)
        if status.startswith("running"):
            return f"{folder}: this run is not finished ({status}). Wait for it."
        return f"{folder}: this run is not finished ({status}). Continue it: fusionkit resume {folder}"
    parent = folder.parent if folder.name == "latest" else folder
    below = sorted(path for path in parent.glob("*") if is_run(path)) if parent.is_dir() else []
    finished = [path for path in below if is_finished(path)]
    if folder.name == "latest" and finished:
        return f"{folder}: it points to a run that is gone. The newest that is there: {finished[-1]}"
    if folder.name == "latest" and below:
        return (
            f"{folder}: no run of this recipe has finished yet. Continue the newest: "
            f"fusionkit resume {below[-1]}"
        )
    if below:
        return f"{folder}: the folder of all runs of a recipe. Give one, such as {folder}/latest."
    if not os.path.lexists(folder):
        known = sorted({str(path) for path in _runs_beside(folder)})
        hint = f"Known: {', '.join(known[:12])}." if known else "Give one, such as runs/NAME/latest."
        return f"{folder}: there is no such run folder. {hint}"
    return f"{folder}: no finished run (no model/index.json). Give one, such as runs/NAME/latest."


def _runs_beside(folder: Path) -> list[Path]:
    """Returns the newest finished runs that may have been meant, by recipe."""
    roots = {folder.parent, folder.parent.parent, Path("runs")}
    found = [path for root in roots for path in (*root.glob("latest"), *root.glob("*/latest"))]
    return [path for path in found if is_finished(path)]


def find_unfinished(folder: Path | None, runs: Path) -> Path:
    """Returns the run to continue: the one that is named, else the newest of all.

    Raises:
        UsageError: It is finished, or there is none.
        DataError: The named folder is no run's.
    """
    if folder is None:
        every = find_runs(runs)
        if not every:
            raise UsageError(f"resume: there is no run in {runs}. Start one: fusionkit run RECIPE")
        folder = every[-1]
        if is_finished(folder):
            # of its recipe no later run has finished
            left = [p for p in every if not any(is_finished(o) and o >= p for o in p.parent.glob("2*"))]
            hint = f" Of another recipe, this one is not: {left[-1]}" if left else ""
            raise UsageError(f"resume: nothing to continue, the newest run is finished ({folder}).{hint}")
    folder = followed(folder)
    if is_finished(folder):
        raise UsageError(f"resume: nothing to continue, this run is finished ({folder}).")
    if not is_run(folder):
        raise DataError(why_unfinished(folder))
    if running(folder) is not None:
        raise UsageError(f"resume: nothing to continue yet, {folder} is {status_of(folder)}.")
    return folder
