"""`fusionkit store`: what is kept, how large it is, and what may go."""

from __future__ import annotations

import dataclasses
import json
import shutil
import textwrap
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fusionkit.cli.places import StoreRoot, store_root
from fusionkit.cli.sizes import human
from fusionkit.errors import UsageError, counted, suggest

if TYPE_CHECKING:
    from fusionkit.store import StoreEntry

app = typer.Typer(no_args_is_help=True, help="Look after what stages and encoders left.")
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
KINDS = {
    "artefacts": "what stages learned",
    "features": "outputs of frozen encoders",
    "checkpoints": "unfinished training, to go on from",
    "audits": "which files were found whole",
    "sources": "what sources generated, such as images",
    "broken": "what did not verify, set aside",
}
"""Folder of the store -> what its files are."""


@app.command("list")
def list_(
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help=f"Only these: {', '.join(KINDS)}.")
    ] = None,
    store: StoreRoot = None,
    as_json: AsJson = False,
) -> None:
    """List artefacts, features and checkpoints, newest first."""
    from fusionkit.store import list_entries

    root = store_root(store)
    _check_kinds("list", [kind] if kind else [])
    # sources are many, and nobody asks for them one by one unless by name
    entries = [entry for entry in list_entries(root) if entry.kind == (kind or entry.kind)]
    shown = [entry for entry in entries if kind or entry.kind != "sources"]
    if as_json:
        print(json.dumps([dataclasses.asdict(entry) for entry in shown]))
        return
    lines = _lines(root, shown)
    if lines:
        print(f"{'KIND':<12}{'NAME':<10}{'SIZE':>9}  {'UNUSED':<8}WHAT")
    width = shutil.get_terminal_size().columns
    for line in lines:
        what = textwrap.shorten(line.what, max(20, width - 41), placeholder="...")
        age = _age(time.time() - line.used)
        print(f"{line.kind:<12}{line.name[:8]:<10}{human(line.size):>9}  {age:<8}{what}".rstrip())
    print(f"{counted(len(shown), 'file')}, {human(sum(entry.size for entry in shown))} in {root}.")
    if len(shown) < len(entries):
        print(f"Not shown: {counted(len(entries) - len(shown), 'file')} that sources generated.")


@dataclasses.dataclass(frozen=True)
class _Line:
    """One line of the list: a file, or all of a folder whose files belong together."""

    kind: str
    name: str
    size: int
    used: float
    what: str


def _lines(root: Path, entries: Sequence[StoreEntry]) -> list[_Line]:
    """Returns the lines, newest first; one encoder's features, or one source's files, are one line."""
    groups: dict[tuple[str, str], list[StoreEntry]] = {}
    for entry in entries:
        own = entry.name.partition("/")[0] if entry.kind in ("features", "sources") else entry.name
        groups.setdefault((entry.kind, own), []).append(entry)
    return [
        _Line(
            kind,
            name.rpartition("-")[2] if kind == "sources" else name,
            sum(entry.size for entry in of_group),
            max(entry.modified for entry in of_group),
            _describe(root, kind, name, of_group),
        )
        for (kind, name), of_group in groups.items()
    ]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return "now"


def _describe(root: Path, kind: str, name: str, entries: Sequence[StoreEntry]) -> str:
    """Says in a few words what a line's files hold."""
    metadata = entries[0].metadata
    if kind == "features":
        return _describe_features([root / kind / entry.name for entry in entries])
    if kind == "sources":
        return f"{counted(len(entries), 'file')} of {name}"
    if kind == "audits":
        return "contents found whole"
    if kind == "broken":
        return "set aside: not what was written"
    if kind == "checkpoints" and "epoch" in metadata:
        return f"after epoch {metadata['epoch']}"
    if "verb" not in metadata:
        return str(metadata.get("state", ""))
    stage = f"{metadata['stage']}: " if "stage" in metadata else ""
    return f"{stage}{metadata['verb']} {', '.join(metadata.get('parts', []))}"


def _describe_features(paths: Sequence[Path]) -> str:
    from safetensors import SafetensorError, safe_open

    n_rows, widths = 0, set()
    for path in paths:
        try:
            with safe_open(path, framework="np") as file:
                rows, width = file.get_slice("values").get_shape()
        except (SafetensorError, OSError, ValueError):
            return "unreadable"
        n_rows += rows
        widths.add(width)
    of_files = f" in {counted(len(paths), 'file')}" if len(paths) > 1 else ""
    return f"{counted(n_rows, 'row')} of {' or '.join(map(str, sorted(widths)))} values{of_files}"


@app.command("size")
def size(store: StoreRoot = None, as_json: AsJson = False) -> None:
    """Say how large the store is, by kind, and what each kind is."""
    from fusionkit.store import list_entries

    root = store_root(store)
    kinds: dict[str, dict[str, Any]] = {}
    for entry in list_entries(root):
        kind = kinds.setdefault(entry.kind, {"files": 0, "bytes": 0})
        kind["files"] += 1
        kind["bytes"] += entry.size
    if as_json:
        print(json.dumps({"store": str(root), "kinds": kinds}))
        return
    print(f"{root}:")
    for name, meaning in KINDS.items():
        if name in kinds:
            _print_kind(name, kinds[name]["files"], kinds[name]["bytes"], meaning)
    _print_kind("all", sum(k["files"] for k in kinds.values()), sum(k["bytes"] for k in kinds.values()))


def _print_kind(name: str, files: int, n_bytes: int, meaning: str = "") -> None:
    print(f"  {name:<12}{counted(files, 'file'):>13}{human(n_bytes):>10}  {meaning}".rstrip())


@app.command("prune")
def prune_(
    store: StoreRoot = None,
    older_than: Annotated[
        float, typer.Option(metavar="DAYS", min=0, help="Delete what was not used for so long.")
    ] = 30.0,
    kind: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help=f"Only these; may be repeated: {', '.join(KINDS)}."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Delete nothing; say what would go.")] = False,
    as_json: AsJson = False,
) -> None:
    """Delete what is old or broken; it is computed again when needed.

    Finished runs keep their models, whatever is deleted here.
    """
    from fusionkit.store import prune

    _check_kinds("prune", kind or [])
    done = prune(store_root(store), older_than_days=older_than, kinds=kind or (), dry_run=dry_run)
    if as_json:
        kinds = {name: {"files": files, "bytes": size} for name, (files, size) in done.kinds.items()}
        found = {"files": done.files, "bytes": done.size, "kinds": kinds, "users": done.users}
        print(json.dumps({**found, "dry_run": dry_run}))
        return
    verb = "would be deleted" if dry_run else "deleted"
    print(f"{counted(done.files, 'file')} {verb}, {human(done.size)}.")
    _print_pruned(done.kinds)
    for user in done.users:
        print(f"In use by {user}: what it uses stays.")


def _print_pruned(kinds: Mapping[str, tuple[int, int]]) -> None:
    for name, (files, n_bytes) in sorted(kinds.items()):
        _print_kind(name, files, n_bytes, KINDS.get(name, "left by processes that have ended"))


def _check_kinds(command: str, kinds: list[str]) -> None:
    problems = [
        f"store {command}: there is no kind of file called '{kind}'. {suggest(kind, KINDS)}"
        for kind in kinds
        if kind not in KINDS
    ]
    if problems:
        raise UsageError(problems)
