"""Injects faults into runs: kills at a moment or at a write, refuses writes; all from outside the product.

A nursery is a process that has imported everything once. Each run is a child that it forks, so that a run
takes a second, not five. As a program, `python tests/faults.py --kills 100` kills as many runs as asked for,
and says whether each ended, by the same command again, at the same bytes as one that nobody disturbed.
"""

from __future__ import annotations

import argparse
import builtins
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
PLUGINS = ["-p", str(FOLDER / "toys.py"), "-p", str(FOLDER / "toy_images.py")]

RECIPE = """\
name: faults
source: {use: toy_pictures}
modalities:
  image:
    encoder: {use: toy_conv, input: {size: 8}}
  record:
    columns: [number, word]
    encoder: {use: toy_mean, width: 3}
    raiser: {use: toy_denoise, width: 5}
head: {use: toy_norm}
stages:
  - {name: learn_record, pretrain: record.encoder, epochs: 2, batch_size: 8}
  - {name: learn_image, pretrain: image.encoder, epochs: 2, batch_size: 8}
  - {name: raise_record, fit: [record.raiser], epochs: 3, batch_size: 4}
  - {name: fuse, train: [head], epochs: 6, batch_size: 8, schedule: cosine, early_stopping: 3}
  - {name: tune, train: [head, image.encoder], epochs: 2, batch_size: 8, optimizer: sgd}
split: {scheme: holdout, test: 0.34, validation: 0.25}
training: {device: cpu, precision: fp32, threads: 1}
evaluation: {resamples: 100}
"""
"""Every verb, stored features, drawn pictures, raw pictures in training, early stopping; a second in all."""

WRITES = ("open", "os.rename", "os.link", "os.symlink", "os.mkdir", "os.remove", "fsync")
"""What is counted as a write: the audit events of Python, and fsync, which has none."""


# in the child


def _hurry_or_linger(fault: Mapping[str, Any]) -> None:
    """Writes after every epoch and batch, as if each took long; or lets each take long."""
    from fusionkit import interruption
    from fusionkit.training import features, train

    if fault.get("eager", True):
        train.CHECKPOINT_SECONDS = features.FLUSH_SECONDS = -1.0
    if "grace" in fault:
        interruption.GRACE_SECONDS = fault["grace"]
    for module, name in ((train, "learning_rate"), (features, "_checked")):
        real, pause = getattr(module, name), fault.get(name.strip("_"), 0.0)
        setattr(module, name, lambda *args, real=real, pause=pause: (time.sleep(pause), real(*args))[1])
    features.BATCH = fault.get("batch", features.BATCH)


def _limit(fault: Mapping[str, Any]) -> None:
    """Lets the kernel itself refuse: files over a size, or all of the log."""
    if fault.get("full_log"):
        real = builtins.open

        def open_full(path: Any, *args: Any, **named: Any) -> Any:
            return real("/dev/full" if str(path).endswith("log.jsonl") else path, *args, **named)

        builtins.open = open_full  # type: ignore[assignment]
    if "file_size" in fault:
        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["file_size"], resource.RLIM_INFINITY))


class Injector:
    """Counts this process's writes under a folder, and lets the fault happen at one of them.

    Args:
        fault: What happens, and when.
        folder: Where writes count.
    """

    def __init__(self, fault: Mapping[str, Any], folder: Path) -> None:
        self.fault, self.folder, self.count = fault, folder, 0
        self.fsync, os.fsync = os.fsync, self.see_fsync
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if event == "open" and _writes(args[1], args[2]):
            self.see(event, args[0])
        elif event in WRITES[1:-1]:
            self.see(event, args[1 if event in ("os.rename", "os.link") else 0])

    def see_fsync(self, handle: int) -> None:
        self.see("fsync", os.readlink(f"/proc/self/fd/{handle}"), handle)
        self.fsync(handle)

    def see(self, kind: str, path: Any, handle: int | None = None) -> None:
        is_counted = _is_under(path, self.folder) and self.fault.get("event", kind) == kind
        if not is_counted or self.fault.get("under", "") not in str(path):
            return
        self.count += 1
        at = self.fault.get("at", 0)
        if at and (self.count == at or (self.count > at and self.fault.get("for_good"))):
            _happen(self.fault, path, handle)


def _writes(mode: str | None, flags: int) -> bool:
    return bool(set(mode) & set("wax+")) if mode else bool(flags & (os.O_WRONLY | os.O_RDWR))


def _is_under(path: Any, folder: Path) -> bool:
    return isinstance(path, str | os.PathLike) and Path(os.path.abspath(path)).is_relative_to(folder)


def _happen(fault: Mapping[str, Any], path: Any, handle: int | None) -> None:
    if "refuse" in fault:
        code = getattr(errno, fault["refuse"])
        raise OSError(code, os.strerror(code), *([] if handle is not None else [str(path)]))
    if handle is not None and os.fstat(handle).st_size and os.access(f"/proc/self/fd/{handle}", os.W_OK):
        _tear(handle)
    os.kill(os.getpid(), getattr(signal, fault.get("signal", "SIGKILL")))


def _tear(handle: int) -> None:
    """Takes away some of what was just written, as a crash before fsync does."""
    name = os.readlink(f"/proc/self/fd/{handle}")
    if os.path.isfile(name):
        size = os.fstat(handle).st_size
        os.truncate(name, size - 20 if name.endswith(".jsonl") else size // 2)


def _live(request: Mapping[str, Any]) -> None:
    """The life of a child: a command, with a fault."""
    os.setsid()
    folder = Path(request["folder"])
    os.chdir(folder)
    for name, number in (("out", 1), ("err", 2)):
        handle = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(handle, number)
    os.environ.update(request["environment"])
    from fusionkit import cli

    fault = request["fault"]
    _hurry_or_linger(fault)
    _limit(fault)
    injector = Injector(fault, folder)
    sys.stdout, sys.stderr = open(1, "w"), open(2, "w", buffering=1)
    try:
        cli.main(PLUGINS + list(request["command"]))
    except SystemExit as stop:
        sys.stdout.flush()
        if "count_to" in fault:
            Path(fault["count_to"]).write_text(str(injector.count))
        os._exit(stop.code if isinstance(stop.code, int) else 1)


def _serve() -> None:
    """The nursery: reads requests, a line of JSON each; answers each with one."""
    import toy_images  # noqa: F401

    import fusionkit.evaluation.summary
    import fusionkit.learned
    import fusionkit.predict
    import fusionkit.run  # noqa: F401

    print("ready", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            pid, status = os.waitpid(request["wait"], os.WNOHANG)
            answer = {"code": None if pid == 0 else os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                try:
                    _live(request)
                finally:
                    os._exit(99)
            answer = {"pid": pid}
        print(json.dumps(answer), flush=True)


# in the test


@dataclass
class Child:
    """A command that runs, or ran.

    Args:
        nursery: Who bore it.
        pid: Its number.
        name: What its files of output begin with.
        folder: Where it runs.
    """

    nursery: Nursery
    pid: int
    name: str
    folder: Path

    def poll(self) -> int | None:
        """Returns the exit code, minus the signal where one ended it; None while it runs."""
        if not hasattr(self, "code"):
            code = self.nursery.ask({"wait": self.pid})["code"]
            if code is None:
                return None
            self.code: int = code
        return self.code

    def wait(self, seconds: float = 60.0) -> int:
        """Waits for its end."""
        deadline = time.monotonic() + seconds
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError(f"still running after {seconds} s: {self.err()}")
            time.sleep(0.01)
        return code

    def signal(self, name: str) -> None:
        """Sends a signal."""
        if self.poll() is None:
            os.kill(self.pid, getattr(signal, name))

    def out(self) -> str:
        """Returns what it printed."""
        return (self.folder.parent / f"{self.name}.out").read_text()

    def err(self) -> str:
        """Returns what it said on stderr."""
        return (self.folder.parent / f"{self.name}.err").read_text()

    def wait_for(self, text: str, seconds: float = 60.0) -> None:
        """Waits until it has said something on stderr."""
        deadline = time.monotonic() + seconds
        while text not in self.err():
            if time.monotonic() > deadline or (self.poll() is not None and text not in self.err()):
                raise AssertionError(f"never said {text!r}: {self.err()}")
            time.sleep(0.01)


class Nursery:
    """A process that forks runs; use it in a `with`."""

    def __init__(self) -> None:
        self.n_born = 0

    def __enter__(self) -> Nursery:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("FUSIONKIT_")}
        self.process = subprocess.Popen(
            [sys.executable, str(FOLDER / "faults.py"), "--serve"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=kept | {"OMP_NUM_THREADS": "1", "COLUMNS": "80"},
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"
        return self

    def __exit__(self, *error: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=30)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def ask(self, request: Mapping[str, Any]) -> Any:
        """Asks the nursery."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(
        self,
        folder: Path,
        *command: str,
        fault: Mapping[str, Any] | None = None,
        out: str | None = None,
        **environment: str,
    ) -> Child:
        """Starts a command in a folder; by default the run of the folder's recipe."""
        folder.mkdir(exist_ok=True)
        if not (folder / "faults.yaml").exists():
            (folder / "faults.yaml").write_text(RECIPE)
        self.n_born += 1
        name = f"{folder.name}-{self.n_born}"
        request = {
            "folder": str(folder),
            "command": command or ("run", "faults.yaml"),
            "fault": dict(fault or {}),
            "environment": environment,
            "out": out or str(folder.parent / f"{name}.out"),
            "err": str(folder.parent / f"{name}.err"),
        }
        Path(request["err"]).touch()
        return Child(self, self.ask(request)["pid"], name, folder)

    def run(self, folder: Path, *command: str, **named: Any) -> Child:
        """Runs a command to its end."""
        child = self.start(folder, *command, **named)
        child.wait()
        return child


def results(folder: Path) -> dict[str, bytes]:
    """Returns what a folder's newest finished run left and must not differ: figures, predictions, model."""
    latest = folder / "runs" / "faults" / "latest"
    files = [latest / name for name in ("predictions.csv", "report.json", "split.csv")]
    files += sorted((latest / "model").glob("*"))
    return {path.name: path.read_bytes() for path in files if path.exists()}


def logged(folder: Path, event: str) -> list[dict[str, Any]]:
    """Returns every event of a kind that the runs in a folder have logged, the oldest run's first."""
    lines = [
        json.loads(line)
        for log in sorted((folder / "runs" / "faults").glob("2*/log.jsonl"))
        for line in log.read_text(errors="replace").splitlines()
        if line.endswith("}")
    ]
    return [line for line in lines if line["event"] == event]


def broken(folder: Path) -> list[str]:
    """Returns what of a folder's store does not verify, and what was set aside."""
    import warnings

    from fusionkit.store import Store

    root = folder / ".fusionkit" / "store"
    store = Store(root)
    kinds = ("artefacts", "features", "checkpoints")
    names = [str(p.relative_to(root)) for kind in kinds for p in (root / kind).rglob("*.safetensors")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wrong = [
            name for name in names if not name.rpartition("/")[2].startswith(".") and not store.verify(name)
        ]
    return wrong + [path.name for path in (root / "broken").glob("*")]


# as a program


def kill_often(
    nursery: Nursery, folder: Path, kills: int, seed: int, *, at_writes: bool, keep_going: bool = True
) -> list[str]:
    """Kills runs until there were so many kills; returns what differed from a run that nobody disturbed.

    Every store is killed into again and again until a run comes through; then the next store begins.
    """
    rng = random.Random(seed)
    whole = nursery.run(folder / "whole", fault={"count_to": str(folder / "count")})
    assert whole.poll() == 0, whole.err()
    expected, n_writes = results(folder / "whole"), int((folder / "count").read_text())
    began = time.monotonic()
    assert nursery.run(folder / "timed").poll() == 0
    seconds = time.monotonic() - began
    wrong, killed, number = [], 0, 0
    while killed < kills:
        number += 1
        place = folder / f"store{number}"
        for attempt in range(kills):
            is_last = attempt == 6 or killed >= kills
            fault = {"at": rng.randrange(1, n_writes)} if at_writes and not is_last else {}
            child = nursery.start(place, fault=fault)
            if not at_writes and not is_last:
                time.sleep(rng.uniform(0.0, seconds))
                child.signal("SIGKILL")
            code = child.wait()
            if code == -signal.SIGKILL:
                killed += 1
                continue
            if code != 0 or "Traceback" in child.err():
                wrong.append(f"{place.name}: exit {code}: {child.err()}")
            break
        wrong += [
            f"{place.name}: {name} differs"
            for name, data in expected.items()
            if results(place).get(name) != data
        ]
        wrong += [f"{place.name}: {name} is broken" for name in broken(place)]
        shutil.rmtree(place)
    about = f"{n_writes} writes and {seconds:.1f} s a run"
    print(f"{killed} kills in {number} stores, {about}: {len(wrong)} differences")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kills runs, and compares what they end at.")
    parser.add_argument("--serve", action="store_true", help="be the nursery")
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--at", choices=("moments", "writes"), default="moments")
    options = parser.parse_args(arguments)
    sys.path.insert(0, str(FOLDER))
    if options.serve:
        _serve()
        return 0
    with tempfile.TemporaryDirectory() as folder, Nursery() as nursery:
        wrong = kill_often(
            nursery, Path(folder), options.kills, options.seed, at_writes=options.at == "writes"
        )
    print("\n".join(wrong))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
