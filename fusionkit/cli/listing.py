"""`fusionkit list`: every component that recipes can use."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.cli.plugins import notes

if TYPE_CHECKING:
    from fusionkit.registry import Registry

LONGEST_NAME = 24


def run(
    context: typer.Context,
    kind: Annotated[
        str | None, typer.Argument(metavar="KIND", help="source, encoder, raiser or head; all by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the components that recipes can use."""
    from fusionkit.errors import UsageError, suggest
    from fusionkit.specs import COMPONENT_KINDS

    if kind is not None and kind not in COMPONENT_KINDS:
        raise UsageError(
            f"list: there is no kind of component called '{kind}'. {suggest(kind, COMPONENT_KINDS)}"
        )
    kinds = [kind] if kind else list(COMPONENT_KINDS)
    registry = context.obj.all_plugins
    print(_as_json(registry, kinds) if as_json else _as_table(registry, kinds))


def _as_json(registry: Registry, kinds: list[str]) -> str:
    components = [
        {
            "kind": kind,
            "name": card.name,
            "summary": card.summary,
            "source": card.source,
            "plugin": plugin.name,
            "package": plugin.package,
            "version": plugin.version,
        }
        for kind in kinds
        for card, plugin in registry.cards(kind)
    ]
    found = {
        "components": components,
        "broken": registry.broken,
        "replaced": registry.replaced,
        "slow": registry.slow,
    }
    return json.dumps(found, indent=2)


def _as_table(registry: Registry, kinds: list[str]) -> str:
    """Returns the table, as wide as the terminal but no wider than can be read."""
    rows = [(kind, card, _short(plugin.name)) for kind in kinds for card, plugin in registry.cards(kind)]
    width = min(shutil.get_terminal_size().columns, 110)
    name_width = max([len(card.name) for _, card, _ in rows], default=0)
    summary_width = max(
        20, width - 8 - name_width - 4 - max([len(plugin) for _, _, plugin in rows], default=0)
    )
    lines = []
    for kind, card, plugin in rows:
        first, *others = textwrap.wrap(card.summary, summary_width) or [""]
        lines.append(f"{kind:<8}{card.name:<{name_width}}  {first:<{summary_width}}  {plugin}".rstrip())
        lines += [" " * (8 + name_width + 2) + other for other in others]
    if not rows:
        lines.append("No component is installed.")
    lines += notes(registry)
    return "\n".join(lines)


def _short(plugin: str) -> str:
    """Returns a plugin's name; of one that `-p` gave as a long path, its end."""
    return plugin if len(plugin) <= LONGEST_NAME else "..." + plugin[3 - LONGEST_NAME :]
