"""Start-up of `--help`, `list` and `plugins` with 30 broken and 30 heavy plugins installed, beside none.

Usage: python bench/startup.py [ROUNDS]. Prints JSON: seconds that passed, and seconds of the processor,
which hardly depend on what else the machine does.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from paired import interleave, ratio, summary

N_PLUGINS = 30
BROKEN = ("import not_there", "raise SystemExit(3)", "def fusionkit_component(): ...", "1 / 0")
HEAVY = """\
from fusionkit import ComponentConfig, HeadSpec, hookimpl


class Config(ComponentConfig):
    width: int = 8


def build(config, input_dims, output_dim):
    import torch

    return torch.nn.Identity()


@hookimpl
def fusionkit_components():
    return [HeadSpec(name="{name}", summary="A toy.", source="ours", config=Config, build=build)]
"""
COMMANDS = {"help": ["--help"], "list": ["list"], "plugins": ["plugins"]}
MAIN = "import sys; from fusionkit.cli import main; main(sys.argv[1:])"
LIST_HEAVY = """
import sys
from fusionkit.cli import main
try:
    main(["list"])
finally:
    print([name for name in ("torch", "numpy", "polars") if name in sys.modules], file=sys.stderr)
"""


def install(site: Path, name: str, code: str) -> None:
    (site / f"{name}.py").write_text(code)
    info = site / f"{name}-0.1.0.dist-info"
    info.mkdir(parents=True)
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\nRequires-Dist: fusionkit>=0.1,<0.2\n"
    (info / "METADATA").write_text(metadata)
    (info / "entry_points.txt").write_text(f"[fusionkit]\n{name} = {name}\n")


def command(site: Path, *words: str, cpu: list[float]) -> Callable[[], None]:
    environment = os.environ | {"PYTHONPATH": str(site)}

    def run() -> None:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)

    return run


def main(rounds: int = 9) -> None:
    with tempfile.TemporaryDirectory() as folder:
        none, many = Path(folder, "none"), Path(folder, "many")
        none.mkdir()
        many.mkdir()
        for number in range(N_PLUGINS):
            install(many, f"broken{number}", BROKEN[number % len(BROKEN)])
            install(many, f"heavy{number}", HEAVY.format(name=f"heavy{number}"))
        cpu: dict[str, list[float]] = {f"{name}_{kind}": [] for name in COMMANDS for kind in ("none", "many")}
        runs = {
            f"{name}_{site.name}": command(site, "-c", MAIN, *words, cpu=cpu[f"{name}_{site.name}"])
            for name, words in COMMANDS.items()
            for site in (none, many)
        }
        for run in runs.values():
            run()  # compiles the modules, which only a first start does
        for values in cpu.values():
            values.clear()
        seconds = interleave(runs, rounds)
        environment = os.environ | {"PYTHONPATH": str(many)}
        probe = [sys.executable, "-c", LIST_HEAVY]
        done = subprocess.run(probe, env=environment, text=True, check=True, capture_output=True)
    found = {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "cpu_seconds": {name: summary(values) for name, values in cpu.items()},
        "ratio": {name: ratio(cpu[f"{name}_many"], cpu[f"{name}_none"]) for name in COMMANDS},
        "ratio_of_wall": {name: ratio(seconds[f"{name}_many"], seconds[f"{name}_none"]) for name in COMMANDS},
        "heavy_imports_of_list": done.stderr.strip(),
        "broken": done.stdout.count("broken: plugin "),
        "heavy": done.stdout.count("A toy."),
    }
    json.dump(found, sys.stdout, indent=1)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
