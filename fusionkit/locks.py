"""Locks between processes: who holds one leaves a card, and who waits for one says for whom."""

from __future__ import annotations

import json
import os
import platform
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from fusionkit.interfaces import Tell

WAIT_SECONDS = 2.0
"""How long one waits before saying so."""
REMIND_SECONDS = 60.0


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Args:
        pid: Its number.
        host: Its machine.
        since: When it took the lock, in seconds since 1970.
    """

    pid: int
    host: str
    since: float

    def describe(self) -> str:
        """Returns who it is, and what to do where it is stopped."""
        when = datetime.fromtimestamp(self.since).strftime("%Y-%m-%d %H:%M:%S")
        stopped = f"; it is stopped: `kill -CONT {self.pid}` lets it go on" if self._is_stopped() else ""
        return f"process {self.pid} on {self.host} (since {when}{stopped})"

    def _is_stopped(self) -> bool:
        try:
            status = Path(f"/proc/{self.pid}/stat").read_text(errors="replace")
        except OSError:
            return False  # it has just ended, or this system tells of no processes
        # the name in parentheses may hold anything; the state follows it
        return self.host == platform.node() and status.rpartition(")")[2].split()[0] in ("T", "t")


class Busy(Exception):
    """Another process holds the lock."""


@contextmanager
def hold(path: Path, what: str, tell: Tell, *, waits: bool = True) -> Iterator[None]:
    """Holds a lock, which a crash frees; tells what one waits for and for whom.

    Raises:
        OSError: The lock's file cannot be written.
        Busy: Another process holds it, and one does not wait.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, wait = FileLock(path), WAIT_SECONDS if waits else 0.0
    while not _acquired(lock, wait):
        if not waits:
            raise Busy(path.stem)
        holder = _read_card(path)
        tell("waiting", {"what": what, "holder": holder.describe() if holder else "another process"})
        wait = REMIND_SECONDS
    card = path.with_suffix(".json")
    try:
        card.write_text(json.dumps({"pid": os.getpid(), "host": platform.node(), "since": time.time()}))
        yield
    finally:
        try:
            card.unlink(missing_ok=True)
        finally:
            lock.release()


def _acquired(lock: FileLock, seconds: float) -> bool:
    try:
        lock.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _read_card(path: Path) -> Holder | None:
    try:
        node = json.loads(path.with_suffix(".json").read_text())
        return Holder(int(node["pid"]), str(node["host"]), float(node["since"]))
    except (OSError, ValueError, LookupError, TypeError):
        return None  # not written yet, torn, or already gone


def is_free(path: Path) -> bool:
    """Says whether nobody holds a lock."""
    try:
        with FileLock(path, timeout=0):
            return True
    except Timeout:
        return False


@contextmanager
def in_use(folder: Path) -> Iterator[None]:
    """Marks a folder as used by this process; raises OSError at once where it cannot be written."""
    path = folder / f"run-{os.getpid()}-{secrets.token_hex(3)}.lock"
    with hold(path, "", lambda name, data: None):
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def users(folder: Path) -> list[Holder]:
    """Returns the running processes that use a folder."""
    held = [path for path in sorted(folder.glob("run-*.lock")) if not is_free(path)]
    # whoever has not left a card yet has begun just now, or long ago: one must reckon with both
    return [_read_card(path) or Holder(0, "an unknown machine", 0.0) for path in held]
