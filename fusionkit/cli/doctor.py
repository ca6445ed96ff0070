"""`fusionkit doctor`: versions, device, precision, folders, plugins, and what would stop a run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.places import DataRoot, StoreRoot, make_places
from fusionkit.cli.sizes import human

if TYPE_CHECKING:
    from fusionkit.prepare import Places
    from fusionkit.registry import Registry

PACKAGES = ("torch", "torchvision", "numpy", "polars", "pillow", "safetensors")
VARIABLES = {
    "ATEN_CPU_CAPABILITY": "which instructions torch uses",
    "ONEDNN_MAX_CPU_ISA": "which instructions convolutions use",
    "DNNL_MAX_CPU_ISA": "which instructions convolutions use",
    "ONEDNN_DEFAULT_FPMATH_MODE": "how precisely the processor multiplies",
    "MKL_CBWR": "which instructions matrix products use",
    "MKL_ENABLE_INSTRUCTIONS": "which instructions matrix products use",
    "CUBLAS_WORKSPACE_CONFIG": "how CUDA adds up",
    "NVIDIA_TF32_OVERRIDE": "how precisely CUDA multiplies",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "how precisely CUDA multiplies",
    "CUDA_VISIBLE_DEVICES": "which GPU is used",
    "LD_PRELOAD": "which libraries are used",
    "FUSIONKIT_DATA": "the data root",
    "FUSIONKIT_STORE": "the store",
    "OMP_NUM_THREADS": "threads of libraries; torch has training.threads",
    "MKL_NUM_THREADS": "threads of libraries; torch has training.threads",
}
"""What some environment variables decide."""
LITTLE = 2 * 2**30
"""Bytes of disk below which a note is due: a VGG16 checkpoint has 0.2 GiB, and features come on top."""


def run(
    context: typer.Context,
    data_root: DataRoot = None,
    store: StoreRoot = None,
    runs: Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where run folders go.")] = Path(
        "runs"
    ),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Look at machine, folders and plugins, and say what to mend.

    Exit code 8 if the machine or a folder would stop a run, 5 if a plugin is broken.
    """
    from fusionkit import __version__

    places = make_places(data_root, store, runs)
    registry = context.obj.all_plugins
    machine_problems, folders = _look_at_folders(places)
    plugin_problems = list(_look_at_plugins(registry))
    found = {
        "fusionkit": __version__,
        "packages": dict(_versions()),
        "machine": _look_at_machine(),
        "folders": folders,
        "variables": _variables(),
        "plugins": {plugin.name: plugin.version for plugin in registry.plugins.values()},
        "broken plugins": dict(registry.broken),
        "problems": [*machine_problems, *plugin_problems],
    }
    print(json.dumps(found) if as_json else "\n".join(_as_text(found, registry)))
    for problem in found["problems"]:
        typer.echo(f"error: {problem}", err=True)
    if found["problems"]:
        raise typer.Exit(8 if machine_problems else 5)


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            yield name, "not there"


def _look_at_machine() -> dict[str, Any]:
    from fusionkit.recipe.schema import TrainingNode
    from fusionkit.training.device import choose_device, describe_machine

    device = choose_device(TrainingNode())
    total, free = _memory()
    return {
        **describe_machine(),
        "device": device.type,
        "precision": device.precision,
        "reason": device.reason,
        "threads": device.threads,
        "memory": total,
        "free memory": free,
    }


def _variables() -> dict[str, str]:
    """Returns the variables that can change a number or a speed; every run's environment.json has them."""
    from fusionkit.training.device import VARIABLES as RECORDED

    return {name: text for name, text in sorted(os.environ.items()) if RECORDED.fullmatch(name)}


def _memory() -> tuple[int | None, int | None]:
    """Returns the bytes of memory, all and available, where the system says so."""
    path = Path("/proc/meminfo")
    if not path.exists():
        return None, None
    lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
    total, free = (int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    return total, free


def _look_at_folders(places: Places) -> tuple[list[str], dict[str, Any]]:
    """Returns what would stop a run, and what there is to know of each folder."""
    problems = []
    folders: dict[str, Any] = {"data": {"path": str(places.data), "there": places.data.is_dir()}}
    for name, path in (("store", places.store), ("runs", places.runs)):
        problem = probe(path)
        option = f"--{name}"
        if problem:
            problems.append(f"{name}: {path}: {problem}. Choose another folder with {option}.")
        folders[name] = {"path": str(path), "sound": problem is None, "free": _free(path)}
    shared = Path("/dev/shm")
    if shared.exists():
        folders["shared memory"] = {"path": str(shared), "free": _free(shared)}
    return problems, folders


def probe(path: Path) -> str | None:
    """Returns what a folder, or the nearest one above it, cannot do that a run needs; None if nothing."""
    above = _existing(path)
    if not above.is_dir():
        return f"cannot be written ({above} is a file)"
    try:
        with tempfile.TemporaryDirectory(prefix=".fusionkit-doctor-", dir=above) as folder:
            return _try_files(Path(folder))
    except OSError as error:
        return f"cannot be written ({error.strerror or error})"


def _try_files(folder: Path) -> str | None:
    from filelock import FileLock, Timeout

    (folder / "a").write_bytes(b"new")
    (folder / "b").write_bytes(b"old")
    os.replace(folder / "a", folder / "b")
    if (folder / "b").read_bytes() != b"new":
        return "a file that is renamed over another does not replace it"
    with FileLock(folder / "lock"), contextlib.suppress(Timeout), FileLock(folder / "lock", timeout=0):
        return "locks do not hold there, so two runs at once would spoil each other's files"
    return None


def _existing(path: Path) -> Path:
    """Returns the folder itself, or the nearest one above it that is there."""
    path = path.absolute()
    while not path.exists():
        path = path.parent
    return path


def _free(path: Path) -> int:
    return shutil.disk_usage(_existing(path)).free


def _look_at_plugins(registry: Registry) -> Iterator[str]:
    for name, reason in registry.broken.items():
        lacking = reason.removeprefix("ModuleNotFoundError: No module named ").strip("'")
        if lacking != reason:
            hint = f"Install {lacking.split('.')[0]}, or uninstall the plugin."
        else:
            hint = "Mend or uninstall it; recipes that do not use it run all the same."
        yield f"plugin {name}: {reason.rstrip('.')}. {hint}"
    for kind, component, owners in registry.clashes:
        yield f"{kind} '{component}' is claimed by {' and '.join(owners)}. Uninstall one of them."


def _as_text(found: dict[str, Any], registry: Registry) -> Iterator[str]:
    machine = found["machine"]
    yield f"fusionkit {found['fusionkit']}"
    yield from _row("python", f"{machine['python']} on {machine['platform']}")
    yield from _row("packages", ", ".join(f"{name} {text}" for name, text in found["packages"].items()))
    yield from ("", "Machine")
    gpu = f", {machine['gpu']} (CUDA {machine['cuda']})" if machine["gpu"] else ", no GPU"
    yield from _row("device", f"{machine['device']} ({machine['processor']}){gpu}")
    yield from _row("precision", f"{machine['precision']}, since {machine['reason']}")
    yield from _row("threads", f"{machine['threads']} of {machine['cores']} cores")
    if machine["memory"]:
        yield from _row("memory", f"{human(machine['memory'])}, {human(machine['free memory'])} free")
    yield from ("", "Folders")
    for name, folder in found["folders"].items():
        yield from _row(name, f"{folder['path']}: {_describe_folder(name, folder)}")
    yield from ("", "Environment variables that can change a number or a speed")
    for name, value in found["variables"].items():
        yield from _row(f"{name}={value}", VARIABLES.get(name, ""))
    if not found["variables"]:
        yield "  none is set"
    yield from ("", "Plugins")
    for plugin in registry.plugins.values():
        yield from _row(plugin.name, f"{plugin.version}: {', '.join(card.name for card in plugin.cards)}")
    for name, reason in found["broken plugins"].items():
        yield from _row(name, f"BROKEN: {reason}")
    yield ""
    yield "Nothing here would stop a run." if not found["problems"] else "Something is to be mended:"


def _describe_folder(name: str, folder: dict[str, Any]) -> str:
    if name == "data":
        return "there" if folder["there"] else "not there (--data-root, $FUSIONKIT_DATA)"
    free = f"{human(folder['free'])} free" + (", which is little" if folder["free"] < LITTLE else "")
    if "sound" not in folder:
        return free
    return f"{'can be written, locks and renames work' if folder['sound'] else 'NOT SOUND'}, {free}"


def _row(label: str, text: str) -> list[str]:
    """Returns one line of a table, or several where it is long."""
    width, indent = min(shutil.get_terminal_size().columns, 110), 22
    label = f"  {label}"
    if not text:
        return [label]
    first = f"{label:<{indent}}" if len(label) < indent else f"{label}\n{' ' * indent}"
    lines = textwrap.wrap(text, width - indent, break_on_hyphens=False) or [""]
    return [first + lines[0], *(" " * indent + line for line in lines[1:])]
