"""`make bench`: every measurement in a process of its own, one after the other; JSON, a table and a figure.

Usage: python bench/run.py [PART ...], parts being vgg, views, commands, memory; all of them by default. What
was not measured now stays as the file has it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from fusionkit.recipe.schema import TrainingNode
from fusionkit.training.device import choose_device, cpu_has_bf16

HERE = Path(__file__).parent
PARTS = ("vgg", "views", "commands", "memory")


def describe() -> dict[str, Any]:
    """Returns what the figures depend on; neither the machine's name nor its folders."""
    import numpy
    import PIL
    import torchvision

    device = choose_device(TrainingNode())
    has_amx = torch.cpu._is_amx_tile_supported()
    return {
        "device": torch.cuda.get_device_name() if device.type == "cuda" else processor(),
        "type": device.type,
        "precision": device.precision,
        "bf16": "AMX" if has_amx else "AVX512-BF16" if cpu_has_bf16() else "none",
        "cores": len(os.sched_getaffinity(0)),
        "threads": device.threads,
        "load_before": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "pillow": PIL.__version__,
        "numpy": numpy.__version__,
    }


def processor() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", path.read_text()) if path.exists() else None
    return found[1].strip() if found else platform.processor()


def kind_of(machine: dict[str, Any]) -> str:
    """Names the kind of a machine, which names its file: device, how it multiplies, how many cores."""
    words = [
        machine["device"],
        *([] if machine["type"] == "cuda" else [machine["bf16"]]),
        machine["cores"],
        "cores",
    ]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(map(str, words)).lower()).strip("-")


def main(parts: list[str]) -> None:
    unknown = set(parts) - set(PARTS)
    if unknown:
        sys.exit(f"bench: no part is called {', '.join(sorted(unknown))}. Known: {', '.join(PARTS)}.")
    machine = describe()
    path = HERE / "results" / f"{kind_of(machine)}.json"
    for part in parts or PARTS:
        started = time.monotonic()
        print(f"{part} ...", end=" ", flush=True)
        done = subprocess.run([sys.executable, str(HERE / f"{part}.py")], stdout=subprocess.PIPE, check=True)
        results: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        results[part] = {"machine": machine, **json.loads(done.stdout)}
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"{time.monotonic() - started:.0f} s", flush=True)
    print(f"Written: bench/results/{path.name}. `python bench/figure.py` draws them.")


if __name__ == "__main__":
    main(sys.argv[1:])
