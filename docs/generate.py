"""Writes the pages that are made of the code: command-line.md, options.md, api.md. `make pages` runs it."""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer
from pydantic import BaseModel

import fusionkit
import fusionkit.testing
from fusionkit import hookspecs
from fusionkit.cli import COMMANDS, build_app
from fusionkit.cli.options import describe_options
from fusionkit.registry import Registry
from fusionkit.specs import COMPONENT_KINDS, Spec

WIDTH = 118
MADE = "`make pages` writes this page."
ALIASES = ("fusionkit", "fusionkit.interfaces", "fusionkit.specs", "fusionkit.hookspecs")
"""Modules whose public values have a docstring below them, which Python itself does not keep."""


def _wrapped(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), WIDTH, break_on_hyphens=False, break_long_words=False)


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _paragraphs(text: str | None) -> list[str]:
    return [part for part in inspect.cleandoc(text or "").split("\n\n") if part]


def command_line_page() -> str:
    """Returns the page on commands, from what the command line itself is made of."""
    head = f"""\
# Command line

Every command with its arguments and options; `fusionkit COMMAND -h` prints the same. {MADE} What
commands answer, and exit codes: [README](../README.md#commands).
"""
    app: Any = typer.main.get_command(build_app())
    general = ["## fusionkit\n", *_command_text(app.help), _options_table(app)]
    return "\n".join([head, *general, *_commands(app, "fusionkit")])


def _commands(group: Any, path: str) -> Iterator[str]:
    for name in sorted(group.commands, key=(list(COMMANDS).index if path == "fusionkit" else None)):
        command = group.commands[name]
        if hasattr(command, "commands"):
            yield from _commands(command, f"{path} {name}")
        else:
            usage = [f"{path} {name}", *(_usage(part) for part in command.params if _is_argument(part))]
            yield f"## {path} {name}\n"
            yield f"`{' '.join(usage)}`\n"
            yield from _command_text(command.help)
            yield _options_table(command)


def _is_argument(parameter: Any) -> bool:
    return bool(parameter.param_type_name == "argument")


def _usage(argument: Any) -> str:
    many = " ..." if argument.nargs != 1 and not argument.metavar.endswith("...") else ""
    return f"{argument.metavar}{many}" if argument.required else f"[{argument.metavar}{many}]"


def _command_text(help_text: str | None) -> Iterator[str]:
    for part in _paragraphs(help_text):
        yield (f"    {part}" if part.startswith("fusionkit ") else _wrapped(part)) + "\n"


def _options_table(command: Any) -> str:
    rows = ["| | default | what |", "|---|---|---|"]
    for parameter in command.params:
        if _is_argument(parameter):
            names, default = f"`{parameter.metavar}`", "required" if parameter.required else ""
        else:
            metavar = "" if parameter.is_flag else f" {parameter.metavar or 'VALUE'}"
            names = ", ".join(f"`{option}{metavar}`" for option in parameter.opts)
            has_default = not parameter.is_flag and parameter.default is not None
            default = f"`{parameter.default}`" if has_default else ""
        rows.append(f"| {names} | {default} | {_cell(parameter.help)} |")
    return "\n".join(rows) + "\n" if len(rows) > 2 else ""


def options_page() -> str:
    """Returns the page on the options of every bundled component, from their cards."""
    head = f"""\
# Options

Every bundled component with its options, as `fusionkit show NAME` prints them; when to use which:
[components.md](components.md). {MADE} A dot joins the keys of a nested mapping: `input.size: 64` is
`input: {{size: 64}}`.
"""
    registry = Registry.discover()
    sections = [head]
    for kind in COMPONENT_KINDS:
        sections.append(f"## {kind.capitalize()}s\n")
        cards = sorted((card for card, _ in registry.cards(kind)), key=lambda card: card.name)
        sections += [part for card in cards for part in _card(card)]
    return "\n".join(sections)


def _card(card: Spec) -> Iterator[str]:
    yield f"### {card.name}\n"
    yield _wrapped(f"{card.summary} Source: {card.source}.") + "\n"
    yield _option_rows(card.config) or "It has no options.\n"


def _option_rows(config: type[BaseModel]) -> str:
    options = describe_options(config)  # type: ignore[arg-type]  # any model has a JSON Schema
    rows = ["| option | type | default | what |", "|---|---|---|---|"]
    for option in options:
        default = "required" if option.default is None else f"`{_cell(option.default)}`"
        rows.append(f"| `{option.name}` | {_cell(option.type)} | {default} | {_cell(option.help)} |")
    return "\n".join(rows) + "\n" if options else ""


def api_page() -> str:
    """Returns the page on the public names, from signatures and docstrings."""
    head = f"""\
# Public names

All that a plugin may import; everything else may change. {MADE} How they belong together:
[plugins.md](plugins.md).
"""
    hooks = [value for value in vars(hookspecs).values() if hasattr(value, hookspecs.GROUP + "_spec")]
    return "\n".join(
        [
            head,
            "## fusionkit\n",
            *(part for name in fusionkit.__all__ for part in _public(fusionkit, name)),
            "## fusionkit.testing\n",
            *(part for name in fusionkit.testing.__all__ for part in _public(fusionkit.testing, name)),
            "## Hooks\n\nFunctions of a plugin's module, marked with `hookimpl`.\n",
            *(part for hook in hooks for part in _function(hook.__name__, hook)),
        ]
    )


def _public(module: Any, name: str) -> Iterator[str]:
    value = getattr(module, name)
    if inspect.isclass(value):
        yield from _class(name, value)
    elif inspect.isfunction(value):
        yield from _function(name, value)
    else:
        yield f"### {name}\n"
        yield _wrapped(_below(name)) + "\n"


def _below(name: str) -> str:
    """Returns the docstring that stands below a value in its module."""
    for module_name in ALIASES:
        module = importlib.import_module(module_name)
        body = ast.parse(inspect.getsource(module)).body
        for statement, following in itertools.pairwise(body):
            targets = getattr(statement, "targets", ())
            is_it = any(isinstance(target, ast.Name) and target.id == name for target in targets)
            if is_it and isinstance(following, ast.Expr) and isinstance(following.value, ast.Constant):
                return str(following.value.value)
    raise SystemExit(f"docs/generate.py: {name}: has no docstring. Write one below it.")


def _function(name: str, function: Callable[..., Any]) -> Iterator[str]:
    yield f"### {name}\n"
    yield f"`{_signature(name, function)}`\n"
    yield from _text(function)


def _signature(name: str, function: Callable[..., Any]) -> str:
    signature = inspect.signature(function)
    parameters = [
        each.replace(annotation=_AsWritten(each.annotation), default=_default(each.default))
        for each in signature.parameters.values()
        if each.name != "self"
    ]
    answer = signature.return_annotation
    if answer in (None, "None") and inspect.isclass(function):
        answer = inspect.Signature.empty
    elif answer is not inspect.Signature.empty:
        answer = _AsWritten(answer)
    return name + str(signature.replace(parameters=parameters, return_annotation=answer))


class _AsWritten:
    """A value that a signature shows as the source has it: without quotes, modules or addresses."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __repr__(self) -> str:
        if isinstance(self.value, str):
            return self.value
        return str(getattr(self.value, "__name__", self.value)).lstrip("_")


def _default(value: object) -> object:
    is_named = inspect.isclass(value) or inspect.isfunction(value)
    return _AsWritten(value) if is_named and value is not inspect.Parameter.empty else value


def _text(value: Any) -> Iterator[str]:
    """Yields a docstring's paragraphs; a section such as Args becomes a list."""
    for part in _paragraphs(value.__doc__):
        first, _, rest = part.partition("\n")
        if first.endswith(":") and rest.startswith(" "):
            yield f"{first}\n"
            entries = textwrap.dedent(rest).replace("\n    ", " ").splitlines()
            yield "\n".join(f"- {' '.join(entry.split())}" for entry in entries) + "\n"
        else:
            yield _wrapped(part) + "\n"


def _first(value: Any) -> str:
    return " ".join(_paragraphs(value.__doc__)[:1])


def _class(name: str, value: type) -> Iterator[str]:
    yield f"### {name}\n"
    if issubclass(value, BaseModel):
        yield from _text(value)
        yield _option_rows(value)
        return
    if not getattr(value, "_is_protocol", False) and not issubclass(value, Warning):
        yield f"`{_signature(name, value)}`\n"
    yield from _text(value)
    members = list(_members(value))
    if members:
        yield "\n".join(["| member | what |", "|---|---|", *members]) + "\n"


def _members(value: type) -> Iterator[str]:
    if getattr(value, "_is_protocol", False):
        for name, annotation in vars(value).get("__annotations__", {}).items():
            yield f"| `{_cell(f'{name}: {annotation}')}` | |"
    for name, member in vars(value).items():
        if name.startswith("_") or name in getattr(value, "__dataclass_fields__", {}):
            continue
        if inspect.isfunction(member):
            yield f"| `{_cell(_signature(name, member))}` | {_cell(_first(member))} |"
        elif isinstance(member, property):
            yield f"| `{name}` | {_cell(_first(member))} |"


PAGES: dict[str, Callable[[], str]] = {
    "command-line.md": command_line_page,
    "options.md": options_page,
    "api.md": api_page,
}

if __name__ == "__main__":
    for page, make in PAGES.items():
        (Path(__file__).parent / page).write_text(make(), encoding="utf-8")
