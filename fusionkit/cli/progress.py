"""Shows what a run does: a live bar with time left on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fusionkit.training.experiment import Tell

LINE_SECONDS = 10.0
"""Without a terminal, how often a long step says how far it is."""


@contextmanager
def show_progress(*, quiet: bool) -> Iterator[Tell]:
    """Yields the function that a run tells what happens."""
    if quiet:
        yield lambda name, data: None
    elif sys.stderr.isatty():
        with _make_bar() as bar:
            yield _Live(bar).tell
    else:
        yield _Lines().tell


def _make_bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        MofNCompleteColumn(),
        TimeRemainingColumn(compact=True),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def describe(name: str, data: Mapping[str, Any]) -> str | None:
    """Returns one line for what happens, or None for what is not worth one."""
    if name == "reading":
        return f"reading {data['source']}"
    if name == "stage_started":
        what = f"{data['verb']} {', '.join(data['parts'])} on {data['rows']} rows"
        return f"{data.get('model', '')} {data['stage']}: {what}".lstrip()
    if name == "part_skipped":
        return f"{data['stage']}: {data['part']} has nothing to learn, skipped"
    if name == "memory_full":
        return f"{data['where']}: memory is full, batches are computed in {data['parts']} parts"
    if name == "still_reading":
        where = f"sample {data['sample']} (subject {data['subject']}): {data['cells']}"
        return f"{data['modality']}: still reading {where}, for {data['seconds']} s; Ctrl-C ends the run"
    return None


ALWAYS = ("reading", "memory_full", "still_reading")
"""What is told in every fold, and on a terminal as a line of its own where it is not the bar's label."""


class _Lines:
    """Plain lines; long steps speak every few seconds."""

    def __init__(self) -> None:
        self.spoken = time.monotonic()
        self.folds = ""

    def tell(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "fold_started":
            self.folds = f"fold {data['fold']} of {data['folds']}: " if data["folds"] > 1 else ""
        line = describe(name, data)
        is_due = time.monotonic() - self.spoken > LINE_SECONDS
        if name == "epoch_finished" and is_due:
            line = f"{data['where']}: epoch {data['epoch']:.0f} of {data['epochs']}, loss {data['loss']:.3f}"
        elif name == "features" and (is_due or data["done"] == data["total"]):
            line = f"features of {data['modality']}: {data['done']} of {data['total']}"
        # of many folds, only the first speaks at length
        if line and (is_due or not self.folds or self.folds.startswith("fold 1 ") or name in ALWAYS):
            print(self.folds + line, file=sys.stderr, flush=True)
            self.spoken = time.monotonic()


class _Live:
    """One bar for the folds, one for the step."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.folds: TaskID | None = None
        self.step: TaskID | None = None
        self.label = ""
        self.stage = ""

    def tell(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "fold_started" and data["folds"] > 1:
            if self.folds is None:
                self.folds = self.bar.add_task("folds", total=data["folds"])
            self.bar.update(self.folds, completed=data["fold"] - 1)
        elif name == "reading":
            self._show(f"reading {data['source']}", 0, None)
        elif name in ALWAYS:
            self.bar.console.print(describe(name, data), markup=False, highlight=False)
        elif name == "stage_started":
            self.stage = f"{data.get('model', '')} {data['stage']}: {', '.join(data['parts'])}".lstrip()
            self._show(self.stage, 0, None)
        elif name == "batch_finished":
            done = (data["epoch"] - 1) * data["batches"] + data["batch"]
            self._show(self.stage or data["where"], done, data["batches"] * data["epochs"])
        elif name == "features":
            self._show(f"features of {data['modality']}", data["done"], data["total"])

    def _show(self, label: str, done: int, total: int | None) -> None:
        if self.step is None or label != self.label:
            if self.step is not None:
                self.bar.remove_task(self.step)  # resetting it would keep the old total
            self.step = self.bar.add_task(label, total=total)
        self.label = label
        self.bar.update(self.step, description=label[:36], completed=done, total=total)
