"""Shows how far a sweep is: a live table on a terminal, a line per experiment elsewhere; all on stderr."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fusionkit.cli.progress import ALWAYS, LINE_SECONDS, describe, files_made
from fusionkit.errors import shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fusionkit.interfaces import Tell

WAITS, IS_DONE, IS_STORED, HAS_FAILED = "waits", "done", "stored before", "failed"
_NAME, _STATE = 34, 42


@contextmanager
def show_sweep(labels: Sequence[str], *, quiet: bool) -> Iterator[Tell]:
    """Yields the function that a sweep tells what happens."""
    if quiet:
        yield lambda name, data: None
    elif sys.stderr.isatty():
        from rich.console import Console
        from rich.live import Live

        shown = _Table(labels, Console(stderr=True))
        with Live(get_renderable=shown.render, console=shown.console, refresh_per_second=2, transient=True):
            yield shown.tell
    else:
        yield _Lines(len(labels)).tell


class _Lines:
    def __init__(self, n_experiments: int) -> None:
        self.n_experiments = n_experiments
        self.over: set[str] = set()
        self.spoken = time.monotonic()
        self.turn = threading.Lock()

    def tell(self, name: str, data: Mapping[str, Any]) -> None:
        with self.turn:
            label = data.get("experiment", "")
            if name in ("experiment_finished", "experiment_failed"):
                if label in self.over or ("job" in data and name == "experiment_failed"):
                    return  # what failed in a job is tried here once more
                self.over.add(label)
                state = HAS_FAILED if name == "experiment_failed" else IS_DONE
                state = IS_STORED if data.get("is_stored") else state
                self._say(f"{len(self.over)} of {self.n_experiments}: {label}: {state}")
            elif name == "making_files":
                is_due = time.monotonic() - self.spoken > LINE_SECONDS
                if is_due or data["done"] in (0, data["total"]):
                    self._say(files_made(data))
            elif name == "stage_started" or name in ALWAYS:
                self._say(f"{label}: {describe(name, data)}".removeprefix(": "))

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self.spoken = time.monotonic()


class _Table:
    """One line per experiment; of many, those that are at work, and how many wait or are done."""

    def __init__(self, labels: Sequence[str], console: Console) -> None:
        self.states = dict.fromkeys(labels, WAITS)
        self.since: dict[str, float] = {}
        self.console = console
        self.turn = threading.Lock()

    def tell(self, name: str, data: Mapping[str, Any]) -> None:
        with self.turn:
            label = data.get("experiment")
            if name in ALWAYS:
                self.console.print(describe(name, data), markup=False, highlight=False)
            elif name == "making_files" and data["done"] in (0, data["total"]):
                self.console.print(files_made(data), markup=False, highlight=False)
            elif label in self.states:
                self._note(label, name, data)

    def _note(self, label: str, name: str, data: Mapping[str, Any]) -> None:
        if name == "experiment_started":
            self.since.setdefault(label, time.monotonic())
            self.states[label] = "reading"
        elif name == "experiment_finished" and not self.states[label].startswith(IS_DONE):
            self.states[label] = IS_STORED if data["is_stored"] else f"{IS_DONE}{self._seconds(label)}"
        elif name == "experiment_failed":
            self.states[label] = HAS_FAILED
        elif name == "stage_started":
            self.states[label] = f"{data.get('model', '')} {data['stage']}"
        elif name == "epoch_finished":
            stage = data["where"].removeprefix("stage ")
            self.states[label] = f"{stage}: epoch {data['epoch']:.0f} of {data['epochs']}"
        elif name == "features":
            self.states[label] = f"features {data['done']} of {data['total']}"

    def _seconds(self, label: str) -> str:
        return f" in {time.monotonic() - self.since[label]:.0f} s" if label in self.since else ""

    def render(self) -> Table:
        """Returns what is shown now."""
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, show_header=False)
        table.add_column(width=_NAME, no_wrap=True)
        table.add_column(width=_STATE, no_wrap=True)
        with self.turn:
            states = dict(self.states)
        room = max(3, self.console.height - 2)
        is_over = [
            label for label, state in states.items() if state.startswith((IS_DONE, IS_STORED, HAS_FAILED))
        ]
        shown = dict(states)
        # what is over goes first, then what still waits from the end
        for label in [*is_over, *reversed([label for label, state in states.items() if state == WAITS])]:
            if len(shown) > room:
                del shown[label]
        for label, state in shown.items():
            table.add_row(Text(shorten(label, _NAME)), Text(state, style="dim" if state == WAITS else ""))
        table.add_row(Text(f"{len(is_over)} of {len(states)} experiments", style="bold"), Text(""))
        return table
