"""Jobs: further processes that compute a run's stages side by side, through the store's locks."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from fusionkit.training.experiment import Tell

PROGRAM = "fusionkit.job"


class Jobs:
    """Further processes at work; each ends when this one does, however that happens.

    Args:
        tasks: What each is told, as JSON values: one process per task.
        tell: Is told what happens in them; called from other threads.
    """

    def __init__(self, tasks: list[Mapping[str, Any]], tell: Tell) -> None:
        self._tell = tell
        self._is_stopping = False
        self.computed = 0
        self.error: Exception | None = None
        self._processes = [self._start(task) for task in tasks]
        self._listeners = [
            threading.Thread(target=self._listen, args=(number, process), daemon=True)
            for number, process in enumerate(self._processes, 2)  # this process is the first
        ]
        for listener in self._listeners:
            listener.start()

    def _start(self, task: Mapping[str, Any]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-m", PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            # Ctrl-C is for this process, which then ends the others
            start_new_session=True,
        )
        assert process.stdin is not None
        # the pipe stays open: its end is how a process learns that this one is gone
        process.stdin.write(json.dumps(dict(task)) + "\n")
        process.stdin.flush()
        return process

    def _listen(self, number: int, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            # else it was killed while it spoke; and when nobody can be told, it must not wait for a listener
            if line.endswith("\n") and self.error is None:
                try:
                    self._hear(number, json.loads(line))
                except Exception as error:
                    self.error = error
        if process.wait() and not self._is_stopping:
            self._tell("job_failed", {"problems": [f"exit code {process.returncode}"], "job": number})

    def _hear(self, number: int, event: dict[str, Any]) -> None:
        name = event.pop("event")
        self.computed += name == "stage_finished"
        self._tell(name, {**event, "job": number})

    def stop(self) -> None:
        """Ends the processes at once, which the store survives, and hears all that they said before."""
        self._is_stopping = True
        for process, listener in zip(self._processes, self._listeners, strict=True):
            process.kill()
            process.wait()
            listener.join()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


@contextlib.contextmanager
def side_by_side(tasks: list[Mapping[str, Any]], tell: Tell) -> Iterator[Jobs]:
    """Runs jobs while the block runs; raises what telling of them has raised."""
    jobs = Jobs(tasks, tell)
    try:
        yield jobs
    finally:
        jobs.stop()
    if jobs.error is not None:
        raise jobs.error
