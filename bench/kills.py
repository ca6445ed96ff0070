"""Kills a sweep with SIGKILL at random moments; the same command again must leave the same table.json.

Usage: python bench/kills.py FILE [--kills N] [--jobs N] [--seed N] [PATH=VALUE ...]. Every kill is of a sweep
with a store of its own: of its parent, of one of its processes, or of all of them, in turn.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VICTIMS = ("parent", "child", "all")


def command(options: argparse.Namespace, folder: Path) -> list[str]:
    program = str(Path(sys.executable).with_name("fusionkit"))
    words = ["sweep", options.file, "--jobs", str(options.jobs), "--runs", str(folder / "runs")]
    return [program, *words, *options.overrides]


def start(options: argparse.Namespace, folder: Path) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "FUSIONKIT_STORE": str(folder / "store")}
    with (folder / "log.txt").open("ab") as log:
        return subprocess.Popen(
            command(options, folder), env=environment, stdout=log, stderr=log, start_new_session=True
        )


def family(pid: int) -> list[int]:
    """Returns a living process and all that descend from it, parents first."""
    children: dict[int, list[int]] = {}
    alive = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = entry.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has ended meanwhile
            continue
        if state != "Z":
            alive.add(int(entry.parent.name))
            children.setdefault(int(parent), []).append(int(entry.parent.name))
    found = [pid] if pid in alive else []
    for one in found:
        found += children.get(one, [])
    return found


def finish(options: argparse.Namespace, folder: Path) -> str:
    """Runs the sweep to its end; returns the sha256 of its table.json: of all, where it left several."""
    code = start(options, folder).wait()
    if code:
        raise SystemExit(f"the sweep ended with {code}: see {folder / 'log.txt'}")
    tables = (folder / "runs").glob("*/2*/table.json")
    return " ".join(sorted({hashlib.sha256(table.read_bytes()).hexdigest() for table in tables}))


def kill(options: argparse.Namespace, folder: Path, victim: str, after: float) -> tuple[str, float]:
    """Kills a sweep; returns who was killed, and how many seconds the last process outlived it."""
    process = start(options, folder)
    time.sleep(after)
    alive = family(process.pid)
    if not alive:
        return "nobody: it had ended", 0.0
    chosen = {"parent": alive[:1], "child": alive[1:2] or alive[:1], "all": alive}[victim]
    for pid in chosen:
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    process.wait()
    while any(family(pid) for pid in alive):
        time.sleep(0.1)
    name = victim if victim != "child" or len(alive) > 1 else "parent, alone then"
    return name, time.monotonic() - killed


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file")
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_intermixed_args()
    draw = random.Random(options.seed)
    wrong = 0
    with tempfile.TemporaryDirectory() as base:
        undisturbed = Path(base) / "undisturbed"
        undisturbed.mkdir()
        began = time.monotonic()
        expected = finish(options, undisturbed)
        seconds = time.monotonic() - began
        print(f"undisturbed: {seconds:.0f} s, table.json {expected[:12]}", flush=True)
        for number in range(options.kills):
            folder = Path(base) / str(number)
            folder.mkdir()
            after = draw.uniform(0, seconds)
            victim, outlived = kill(options, folder, VICTIMS[number % len(VICTIMS)], after)
            is_same = finish(options, folder) == expected
            wrong += not is_same
            result = "the same table.json" if is_same else "ANOTHER table.json"
            print(
                f"killed {victim} after {after:.1f} s, last ended {outlived:.1f} s later: {result}",
                flush=True,
            )
    print(f"{options.kills} kills, {wrong} other tables")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
