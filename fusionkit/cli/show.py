"""`fusionkit show`: one component, its options, and how a recipe names it."""

from __future__ import annotations

import json
import shutil
import textwrap
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fusionkit.cli.options import Option
    from fusionkit.registry import Plugin
    from fusionkit.specs import Spec

_LEARNS = {
    "nothing": "It learns nothing.",
    "closed_form": "It learns in closed form: name it in a fit or train stage.",
    "self_supervised": "It learns without outcomes: name it in a fit stage.",
    "gradient": "It learns from outcomes: name it in a stage, unless it comes with weights.",
}


def run(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A component's name, as `fusionkit list` shows it.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show one component: its options, defaults and source."""
    from fusionkit.errors import UsageError
    from fusionkit.specs import COMPONENT_KINDS

    registry = context.obj.registry
    every = [(kind, card, plugin) for kind in COMPONENT_KINDS for card, plugin in registry.cards(kind)]
    found = [claim for claim in every if claim[1].name == name]
    if not found:
        raise UsageError(f"show: there is no component called '{name}'. {registry.hint(name)}")
    if as_json:
        print(json.dumps([_as_json(*claim) for claim in found], indent=2))
    else:
        print("\n\n".join(_as_text(*claim) for claim in found))


def _as_json(kind: str, card: Spec, plugin: Plugin) -> dict[str, Any]:
    return {
        "kind": kind,
        "name": card.name,
        "summary": card.summary,
        "source": card.source,
        "plugin": plugin.name,
        "package": plugin.package,
        "version": plugin.version,
        "options": card.config.model_json_schema(),
    }


def _as_text(kind: str, card: Spec, plugin: Plugin) -> str:
    from fusionkit.cli.options import describe_options

    lines = [
        f"{card.name} ({kind})",
        *_wrap(card.summary),
        "",
        *_wrap(f"Source:  {card.source}", others=" " * 9),
        *_wrap(f"Package: {plugin.package} {plugin.version}", others=" " * 9),
        *_capabilities(card),
        "",
        "Options" if card.config.model_fields else "It has no options.",
    ]
    for option in describe_options(card.config):
        lines += _describe(option)
    lines += ["", "In a recipe", *textwrap.indent(_example(kind, card), "  ").splitlines()]
    return "\n".join(lines)


def _capabilities(card: Spec) -> list[str]:
    """Returns what a recipe's author must know beside the options."""
    from fusionkit.recipe.task_nodes import SHOWN
    from fusionkit.specs import HeadSpec, may_say

    lines = [_LEARNS[card.learns]] if hasattr(card, "learns") else []
    if hasattr(card, "reads"):
        lines += _wrap(f"It reads columns of kind {' or '.join(card.reads)}.")
    if getattr(card, "accepts_missing", False):
        lines.append("It accepts missing values.")
    if may_say(card, "gives_tokens"):
        lines += _wrap("It can give its tokens to a head that takes them.")
    if may_say(card, "takes_tokens"):
        lines += _wrap("It can read the tokens of encoders that give them.")
    if isinstance(card, HeadSpec):
        able = [kind for kind in SHOWN if card.can_do(kind)]
        lines += _wrap(f"It does tasks of kind {' or '.join(able)}.") if len(able) < len(SHOWN) else []
    return lines


def _describe(option: Option) -> list[str]:
    default = "required" if option.default is None else f"default {option.default}"
    return [
        *_wrap(f"{option.name}: {option.type}; {default}", "  ", "    "),
        *_wrap(option.help, "      ", "      "),
    ]


def _wrap(text: str, first: str = "", others: str = "") -> list[str]:
    width = min(shutil.get_terminal_size().columns, 110)
    return textwrap.wrap(text, width, initial_indent=first, subsequent_indent=others, break_on_hyphens=False)


def _example(kind: str, card: Spec) -> str:
    """Returns lines of a recipe that use it: required options as in its example, plain ones as by default."""
    from fusionkit.recipe.load import dump_yaml

    example = card.examples[0].model_dump(mode="json") if card.examples else {}
    options: dict[str, Any] = {"use": card.name}
    for name, field in card.config.model_fields.items():
        if example and name not in example:
            continue  # what the example's other options rule out
        if field.is_required():
            options[name] = example.get(name)
        elif isinstance(field.default, str | int | float | tuple) and field.default != "":
            options[name] = list(field.default) if isinstance(field.default, tuple) else field.default
    return dump_yaml({kind: options})
