"""Shows what a run does: a live bar with time left on a terminal, plain lines elsewhere; all on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from fusionkit.errors import counted

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from fusionkit.interfaces import Tell

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
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
    from rich.text import Text

    class TimeLeft(ProgressColumn):
        """Counts down to the end that was foreseen when something was last done."""

        def render(self, task: Task) -> Text:
            ends = task.fields["ends"]
            return Text("" if ends is None else clock(ends - time.monotonic()), style="progress.remaining")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=16),
        TextColumn("{task.fields[count]}", style="progress.download"),
        TimeLeft(),
    )
    return Progress(*columns, console=Console(stderr=True), transient=True)


def clock(seconds: float) -> str:
    """Returns a time left as 0:09, 12:34 or 1:02:03; what takes longer than foreseen has 0:00 left."""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class _Foreseen:
    """When a piece of work ends, at its mean speed so far: the speed of the last moments would jump."""

    def __init__(self) -> None:
        self.first = self.last = 0
        self.began: float | None = None

    def ends(self, done: int, total: int | None) -> float | None:
        """Returns when, or None where nothing is known yet."""
        now = time.monotonic()
        if total is None or self.began is None or done < self.last:
            # it begins, or begins again; what an earlier run has done says nothing of the speed
            self.first, self.began = done, now if total is not None else None
        self.last = done
        if total is None or self.began is None or done == self.first:
            return None
        return now + (now - self.began) / (done - self.first) * (total - done)


SENTENCES = {
    "reading": "reading {source}",
    "job_failed": "job {job} ended, its stages are computed here ({problems[0]})",
    "part_skipped": "{stage}: {part} has nothing to learn, skipped",
    "waiting": "waiting for {holder}, which computes {what}",
    "stage_continued": "{place}: {epoch} of {epochs} epochs were kept",
    "memory_full": "{where}: memory is full, batches are computed in {parts} parts",
    "still_reading": "{modality}: still reading {where}: {cells}, for {seconds} s; Ctrl-C ends the run",
}
ALWAYS = ("waiting", "stage_continued", "job_failed", "memory_full", "still_reading")
"""What is told in every fold, and on a terminal as a line of its own where it is not the bar's label."""


def describe(name: str, data: Mapping[str, Any]) -> str | None:
    """Returns one line for what happens, or None for what is not worth one."""
    if name == "audited" and data["warnings"]:
        n_warnings = len(data["warnings"])
        noun, them = ("warning", "it") if n_warnings == 1 else ("warnings", "them")
        return f"audit: {n_warnings} {noun} about the data; the report names {them}"
    if name == "stage_started":
        what = f"{data['verb']} {', '.join(data['parts'])} on {counted(data['rows'], 'row')}"
        return f"{data.get('model', '')} {data['stage']}: {what}".lstrip()
    if name == "stage_finished" and "last" in data:
        return _losses(data)
    return SENTENCES[name].format_map({**data, "place": _place(data)}) if name in SENTENCES else None


def _place(data: Mapping[str, Any]) -> str:
    """Returns where learning is, for the start of a line: model and stage, or the stage alone."""
    where = str(data.get("where", ""))
    return f"{data['model']} {where.removeprefix('stage ')}" if "model" in data else where


def _losses(data: Mapping[str, Any]) -> str:
    """Returns the line that says of what has learned by gradient where its losses began and ended."""
    first, last = data["first"], data["last"]
    where = f"{data.get('model', '')} {data['stage']}: {', '.join(data['parts'])}".lstrip()
    after = f"after {counted(round(last['epoch']), 'epoch')}"
    sides = []
    for key in ("loss", "validation_loss"):
        if key in last:
            began = f"{_loss(first[key])} to " if last["epoch"] != 1 else ""
            sides.append(f"{key.replace('_', ' ')} {began}{_loss(last[key])}")
    return f"{where} {after}: {', '.join(sides)}"


def _loss(loss: float) -> str:
    """Returns three digits: an autoencoder's loss may be far below one, that of a number far above."""
    return f"{loss:#.3g}".removesuffix(".")


def files_made(data: Mapping[str, Any]) -> str:
    """Returns the line that says how many of its files a source has made."""
    return f"{data['source']}: {data['done']} of {data['total']} files made"


class _Lines:
    """Plain lines; long steps speak every few seconds."""

    def __init__(self) -> None:
        self.spoken = time.monotonic()
        self.folds = ""

    def tell(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "fold_started" and data["folds"] > 1:
            fold = f"fold {data['fold']} of {data['folds']}"
            self.folds = f"{fold}: "
            self._say(f"{fold} begins")
        line = describe(name, data)
        is_due = time.monotonic() - self.spoken > LINE_SECONDS
        if "job" in data and name != "job_failed":
            return  # what this process does stands for the others
        if name == "epoch_finished" and is_due:
            epoch = f"epoch {data['epoch']:.0f} of {data['epochs']}"
            line = f"{_place(data)}: {epoch}, loss {_loss(data['loss'])}"
        elif name == "features" and (is_due or data["done"] == data["total"]):
            line = f"features of {data['modality']}: {data['done']} of {data['total']}"
        elif name == "auditing" and is_due:
            line = f"auditing files: {data['done']} of {data['total']}"
        elif name == "making_files" and (is_due or data["done"] in (0, data["total"])):
            line = files_made(data)
        # of many folds, only the first speaks at length
        is_said = not self.folds or self.folds.startswith("fold 1 ") or name in ("reading", *ALWAYS)
        if line and (is_due or is_said):
            self._say(self.folds + line)

    def _say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)
        self.spoken = time.monotonic()


class _Live:
    """One bar for the folds, one for the step."""

    def __init__(self, bar: Progress) -> None:
        self.bar = bar
        self.folds: TaskID | None = None
        self.step: TaskID | None = None
        self.label = ""
        self.stage = ""
        self.of_folds = self.of_step = _Foreseen()

    def tell(self, name: str, data: Mapping[str, Any]) -> None:
        if name in ALWAYS:
            self._say(name, data)
        elif "job" in data:
            return  # what this process does stands for the others
        elif name == "fold_started" and data["folds"] > 1:
            self._show_fold(data["fold"] - 1, data["folds"], data["jobs"])
        elif name == "reading":
            self._show(f"reading {data['source']}", 0, None)
        elif name == "stage_started":
            self.stage = f"{data.get('model', '')} {data['stage']}: {', '.join(data['parts'])}".lstrip()
            self._show(self.stage, 0, None)
        elif name == "stage_finished" and data.get("fold", 1) == 1:
            self._say(name, data)  # of many folds, only the first, as without a terminal
        elif name == "batch_finished":
            done = (data["epoch"] - 1) * data["batches"] + data["batch"]
            self._show(self.stage or data["where"], done, data["batches"] * data["epochs"])
        else:
            self._tell_of_files(name, data)

    def _tell_of_files(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "features":
            self._show(f"features of {data['modality']}", data["done"], data["total"])
        elif name == "auditing":
            self._show("auditing files", data["done"], data["total"])
        elif name == "making_files":
            self._show(f"making files of {data['source']}", data["done"], data["total"])
        elif name == "audited":
            self._say(name, data)

    def _say(self, name: str, data: Mapping[str, Any]) -> None:
        if line := describe(name, data):
            self.bar.console.print(line, markup=False, highlight=False)

    def _show_fold(self, done: int, n_folds: int, n_jobs: int) -> None:
        # other jobs compute the rest meanwhile, so the time left is that of this process's share
        share = -(-n_folds // n_jobs)
        if self.folds is None:
            self.of_folds = _Foreseen()
            self.folds = self.bar.add_task("folds", count="", ends=None)
        self._update(self.folds, self.of_folds, "folds", done, share if done < share else n_folds)

    def _show(self, label: str, done: int, total: int | None) -> None:
        if self.step is None or label != self.label:
            if self.step is not None:
                self.bar.remove_task(self.step)  # resetting it would keep the old total
            self.of_step = _Foreseen()
            self.step = self.bar.add_task(label, total=total, count="", ends=None)
        self.label = label
        self._update(self.step, self.of_step, label[:36], done, total)

    def _update(self, task: TaskID, foreseen: _Foreseen, label: str, done: int, total: int | None) -> None:
        # of some things nobody knows beforehand how much there is to do
        count = "" if total is None else f"{done}/{total}"
        ends = foreseen.ends(done, total)
        self.bar.update(task, description=label, completed=done, total=total, count=count, ends=ends)
