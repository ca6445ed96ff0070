"""Prints the table of docs/performance.md. Usage: python bench/table.py NAME, a file of bench/results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def spread(value: dict[str, float], digits: int = 2) -> str:
    return f"{value['median']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"


def vgg_lines(vgg: dict[str, Any]) -> list[str]:
    lines = []
    for part, values in vgg.items():
        if part != "machine":
            speed = {name: f"{each['median']:.1f}" for name, each in values["images_per_second"].items()}
            what = f"VGG16, 224 px, {part.replace('_', ' from ')}, images/s"
            lines.append(
                f"| {what} | {speed['real']} | bare loop {speed['bare']} | {spread(values['of_bare'])} |"
            )
            lines.append(
                f"| the same | {speed['real']} | fp32 {speed['fp32']} | {spread(values['times_fp32'])} |"
            )
    return lines


def view_lines(views: dict[str, Any]) -> list[str]:
    lines = []
    for suffix in ("jpg", "png"):
        seconds = views[suffix]["seconds"]
        ours, by_hand = (f"{1000 * seconds[name]['median']:.0f}" for name in ("product", "by_hand"))
        what = f"decode and 76 views of 2048 x 1536, {suffix}, ms"
        lines.append(f"| {what} | {ours} | by hand {by_hand} | {spread(views[suffix]['of_by_hand'])} |")
    return lines


def command_lines(commands: dict[str, Any]) -> list[str]:
    seconds, head = commands["seconds"], commands["head"]
    speed = {name: f"{value['median']:.0f}" for name, value in head["samples_per_second"].items()}
    lines = [
        f"| head on stored features, samples/s | {speed['real']} | in memory {speed['bare']} "
        f"| {spread(head['of_bare'])} |"
    ]
    python = seconds["python"]["median"]
    for name in ("help", "list", "validate", "run", "run_again"):
        lines.append(
            f"| `{name.replace('_', ' ')}`, s | {spread(seconds[name])} | python alone {python:.2f} | |"
        )
    return lines


def memory_lines(memory: dict[str, Any]) -> list[str]:
    sizes = memory["samples"]
    lines = []
    for what in ("extraction", "head", "predict"):
        values = dict(zip(sizes, memory[what], strict=True))
        shown = ", ".join(f"{values[n]} at {n}" for n in sizes)
        ratio = values[max(sizes)] / values[1000] if 1000 in values else float("nan")
        lines.append(f"| peak memory, {what}, MB | {shown} | 1000 samples | {ratio:.2f} |")
    return lines


def main(name: str) -> None:
    results = json.loads((HERE / "results" / f"{name}.json").read_text())
    makers = {"vgg": vgg_lines, "views": view_lines, "commands": command_lines, "memory": memory_lines}
    print("| what | fusionkit | beside | ratio |\n|---|---|---|---|")
    for part, make in makers.items():
        if part in results:
            print("\n".join(make(results[part])))


if __name__ == "__main__":
    main(sys.argv[1])
