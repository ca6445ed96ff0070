"""Draws `docs/performance.png` from a file of bench/results. Usage: python bench/figure.py [NAME]."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

HERE = Path(__file__).parent
COLOURS = {"real": "#2b6cb0", "bare": "#90b4d9", "fp32": "#c9c9c9"}
NAMES = {
    "real": "whole data path",
    "bare": "bare loop, same precision",
    "fp32": "bare loop, fp32, channels first",
}


def draw_speeds(axes: Axes, vgg: dict[str, Any]) -> None:
    parts = [name for name in vgg if isinstance(vgg[name], dict) and "images_per_second" in vgg[name]]
    for offset, run in enumerate(NAMES):
        values = [vgg[part]["images_per_second"][run]["median"] for part in parts]
        places = [index + 0.27 * (offset - 1) for index in range(len(parts))]
        axes.bar(places, values, 0.25, color=COLOURS[run], label=NAMES[run])
        for place, value in zip(places, values, strict=True):
            axes.text(place, value, f"{value:.3g}", ha="center", va="bottom", fontsize=7)
    axes.set_xticks(range(len(parts)), [part.replace("_", ", ") for part in parts])
    axes.margins(y=0.45)  # room for the legend
    axes.set_ylabel("images per second")
    axes.set_title("VGG16 at 224 pixels", fontsize=10)
    axes.legend(fontsize=7)


def draw_memory(axes: Axes, memory: dict[str, Any]) -> None:
    for name, style in (("extraction", "s:"), ("head", "o-"), ("predict", "^--")):
        axes.plot(memory["samples"], memory[name], style, label=name)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.1 * max(memory["extraction"]))
    axes.set_xlabel("samples")
    axes.set_ylabel("MB, largest resident set")
    axes.set_title("Peak memory of a process", fontsize=10)
    axes.legend(fontsize=7, loc="lower left")


def main(name: str | None = None) -> None:
    folder = HERE / "results"
    path = (
        folder / f"{name}.json" if name else max(folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
    )
    results = json.loads(path.read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    draw_speeds(left, results["vgg"])
    draw_memory(right, results["memory"])
    machine = results["vgg"]["machine"]
    figure.suptitle(f"{machine['device']}, {machine['cores']} cores, {machine['precision']}", fontsize=9)
    figure.savefig(HERE.parent / "docs" / "performance.png", dpi=110)


if __name__ == "__main__":
    main(*sys.argv[1:2])
