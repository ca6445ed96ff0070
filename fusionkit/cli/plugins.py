"""`fusionkit plugins`: which plugins there are, what they offer, and what is wrong with them."""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fusionkit.registry import Plugin, Registry

INDENT = " " * 4


def run(
    context: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the plugins: where each is from, what it offers; which are broken, replaced, slow, or clash.

    A broken plugin is no error here: `fusionkit doctor` makes it one.
    """
    registry = context.obj.all_plugins
    print(json.dumps(_describe(registry), indent=2) if as_json else "\n".join(_as_text(registry)))


def _describe(registry: Registry) -> dict[str, Any]:
    plugins = [
        {
            "name": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
            "distribution": plugin.distribution or None,
            "file": plugin.file,
            "seconds": round(registry.seconds.get(plugin.name, 0.0), 3),
            "components": _components(plugin),
        }
        for plugin in registry.plugins.values()
    ]
    clashes = [
        {"kind": kind, "name": name, "plugins": list(owners)} for kind, name, owners in registry.clashes
    ]
    return {
        "plugins": plugins,
        "broken": registry.broken,
        "replaced": registry.replaced,
        "slow": {name: round(seconds, 3) for name, seconds in registry.slow.items()},
        "clashes": clashes,
    }


def _components(plugin: Plugin) -> dict[str, list[str]]:
    """Returns the names that a plugin offers, by kind."""
    from fusionkit.specs import kind_of

    found: dict[str, list[str]] = {}
    for card in plugin.cards:
        found.setdefault(kind_of(card), []).append(card.name)
    return found


def _as_text(registry: Registry) -> Iterator[str]:
    for plugin in registry.plugins.values():
        yield f"{plugin.name}  {plugin.version}"
        yield from _wrap(f"from {plugin.distribution or '-p'}: {plugin.file}")
        for kind, names in _components(plugin).items():
            yield from _wrap(f"{kind}: {', '.join(names)}")
        if not plugin.cards:
            yield from _wrap("offers no component; it observes runs")
    if not registry.plugins:
        yield "No plugin is installed."
    yield from notes(registry)
    for kind, name, owners in registry.clashes:
        yield from _wrap(f"claimed twice: {kind} {name}, by {' and '.join(owners)}", "")


def notes(registry: Registry) -> Iterator[str]:
    """Yields what is to be said of plugins that are broken, replaced or slow."""
    for name, reason in registry.broken.items():
        yield from _wrap(f"broken: plugin {name} ({reason})", "")
    for name, by in registry.replaced.items():
        yield from _wrap(f"replaced: installed plugin {name}, by -p {by}", "")
    for name, seconds in registry.slow.items():
        yield from _wrap(
            f"slow: plugin {name} took {seconds:.1f} s to load (what is heavy belongs inside `build`)", ""
        )


def _wrap(text: str, indent: str = INDENT) -> list[str]:
    width = min(shutil.get_terminal_size().columns, 110)
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent + "  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
