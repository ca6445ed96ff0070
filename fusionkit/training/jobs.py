"""Jobs: further processes that compute a run's stages side by side, through the store's locks."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from fusionkit.interfaces import Tell

PROGRAM = "fusionkit.job"
_BOOT = """
import json, os, sys
# what else reads or prints in this process must disturb neither pipe
lifeline, channel = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
os.dup2(2, 1)
assignment = json.loads(lifeline.readline())
sys.path[:] = assignment["path"]
from importlib import import_module
import_module(assignment["program"]).main(assignment, lifeline, channel)
"""
"""Imports the same code as here, wherever one stands: `-m` would look into the current folder first."""
SECONDS_TO_HEAR = 5.0
PAUSE_SECONDS = 1.0
"""Before asking again whether what another process is at is done."""
ItemT = TypeVar("ItemT")


class Jobs:
    """Further processes at work; each ends when this one does, however that happens.

    Args:
        assignments: What each is told, as JSON values: one process per assignment.
        tell: Is told what happens in them; called from other threads.
    """

    def __init__(self, assignments: list[Mapping[str, Any]], tell: Tell) -> None:
        self._tell = tell
        self._is_stopping = False
        self.computed = 0
        self.error: Exception | None = None
        self._processes = [self._start(assignment) for assignment in assignments]
        self._listeners = [
            threading.Thread(target=self._listen, args=(number, process), daemon=True)
            for number, process in enumerate(self._processes, 2)  # this process is the first
        ]
        for listener in self._listeners:
            listener.start()

    def _start(self, assignment: Mapping[str, Any]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for this process, which then ends the others and what they have started
            start_new_session=True,
        )
        assert process.stdin is not None
        # the pipe stays open: its end is how a process learns that this one is gone
        process.stdin.write(json.dumps({"program": PROGRAM, "path": sys.path, **assignment}) + "\n")
        process.stdin.flush()
        return process

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        is_done = False
        for line in process.stdout:
            # else it was killed while it spoke; and when nobody can be told, it must not wait for a listener
            if line.endswith("\n") and self.error is None:
                event = json.loads(line)
                is_done = is_done or event["event"] in ("job_finished", "job_failed")
                self._hear(number, event)
        process.wait()
        if not is_done and not self._is_stopping and self.error is None:
            problem = f"exit code {process.returncode}"
            self._hear(number, {"event": "job_failed", "problems": [problem]})

    def _hear(self, number: int, event: dict[str, Any]) -> None:
        name = event.pop("event")
        self.computed += name == "stage_finished"
        try:
            self._tell(name, {**event, "job": number})
        except Exception as error:
            self.error = error

    def stop(self) -> None:
        """Ends the processes at once, which the store survives, and hears all that they said before."""
        self._is_stopping = True
        for process, listener in zip(self._processes, self._listeners, strict=True):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what a plugin has started there, too
            process.wait()
            # bounded: what has left the group may still hold the pipe
            listener.join(SECONDS_TO_HEAR)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None and not listener.is_alive():
                    pipe.close()


def work_through(items: Sequence[ItemT], is_done: Callable[[ItemT], bool]) -> None:
    """Goes through things again and again until each is done, here or by another process.

    Args:
        items: The things.
        is_done: Does one; says whether it is done, or another process is at it.
    """
    left = list(items)
    while left:
        busy = [item for item in left if not is_done(item)]
        if len(busy) == len(left):
            time.sleep(PAUSE_SECONDS)
        left = busy


@contextlib.contextmanager
def side_by_side(assignments: list[Mapping[str, Any]], tell: Tell) -> Iterator[Jobs]:
    """Runs jobs while the block runs; raises what telling of them has raised."""
    jobs = Jobs(assignments, tell)
    try:
        yield jobs
    finally:
        jobs.stop()
    if jobs.error is not None:
        raise jobs.error
