"""The YAML that recipes are written in: YAML 1.2 values, no tags, aliases or duplicate keys, bounded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import yaml

from fusionkit.errors import RecipeError

MAX_BYTES = 1 << 20
MAX_DEPTH = 50
MAX_NODES = 20_000
MAX_DIGITS = 18

_INT = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|(0|[1-9][0-9]*)(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.inf|\.nan")
_WORDS = {"true": True, "false": False, "null": None, "~": None, "": None}

# libyaml where PyYAML has it: the same events, several times as fast
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class Mapping(dict[str, Any]):
    """A mapping that knows where it and each of its keys were written.

    Keys are text, as in JSON: `{224: 40}` has the key '224'.
    """

    place: str
    places: dict[str, str]

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.places = {}


class Sequence(list[Any]):
    """A list that knows where each of its entries was written."""

    place: str
    places: list[str]

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self.places = []


def resolve_scalar(text: str) -> Any:
    """Returns the value of unquoted text; raises ValueError for a number that no recipe can mean."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        if len(text.lstrip("+-")) > MAX_DIGITS:
            raise ValueError(f"a whole number has at most {MAX_DIGITS} digits")
        return int(text)
    if _NOT_FINITE.fullmatch(text):
        raise ValueError("a number is finite")
    if _FLOAT.fullmatch(text):
        number = float(text)
        if not math.isfinite(number):
            raise ValueError("a number is finite")
        return number
    return text


@dataclass
class _Frame:
    """One collection that is still open."""

    container: Mapping | Sequence
    key: str | None = None


@dataclass
class _Builder:
    """Makes a tree from YAML events without recursion, so that no depth of nesting can exhaust the stack."""

    place_of: Callable[[int], str]
    problems: list[str] = field(default_factory=list)
    stack: list[_Frame] = field(default_factory=list)
    roots: list[Any] = field(default_factory=list)
    n_nodes: int = 0

    def feed(self, event: yaml.Event) -> None:
        """Takes one event."""
        place = self.place_of(event.start_mark.line + 1 if event.start_mark else 1)
        if isinstance(event, yaml.AliasEvent):
            raise RecipeError(f"{place}: aliases are not read (*{event.anchor}). Write the value out.")
        if isinstance(event, yaml.NodeEvent):
            self._refuse(event, place)
        if isinstance(event, yaml.ScalarEvent):
            self._attach(self._scalar(event, place), place, text=event.value)
        elif isinstance(event, yaml.CollectionStartEvent):
            container = Mapping(place) if isinstance(event, yaml.MappingStartEvent) else Sequence(place)
            self._attach(container, place, text=None)
            self.stack.append(_Frame(container))
            if len(self.stack) > MAX_DEPTH:
                raise RecipeError(_too_deep(place))
        elif isinstance(event, yaml.CollectionEndEvent):
            self.stack.pop()

    def _refuse(self, event: yaml.NodeEvent, place: str) -> None:
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            raise RecipeError(f"{place}: more than {MAX_NODES} values. This is no recipe.")
        if event.anchor is not None:
            self.problems.append(f"{place}: anchors are not read (&{event.anchor}). Write the value out.")
        tag = getattr(event, "tag", None)
        if tag is not None:
            shown = tag.replace("tag:yaml.org,2002:", "!!")
            self.problems.append(
                f"{place}: YAML tags are not read ({shown}). A recipe holds plain values; `use:` names code."
            )

    def _scalar(self, event: yaml.ScalarEvent, place: str) -> Any:
        if event.style not in (None, "") or event.tag is not None:
            return event.value
        try:
            return resolve_scalar(event.value)
        except ValueError as error:
            self.problems.append(f"{place}: {error} ({event.value[:40]}). Put it in quotes if it is text.")
            return None

    def _attach(self, value: Any, place: str, text: str | None) -> None:
        if not self.stack:
            self.roots.append(value)
            if len(self.roots) > 1:
                self.problems.append(f"{place}: a second document starts here. One file holds one recipe.")
            return
        frame = self.stack[-1]
        container = frame.container
        if isinstance(container, Sequence):
            container.append(value)
            container.places.append(place)
        elif frame.key is not None:
            container[frame.key] = value
            frame.key = None
        else:
            frame.key = self._key(container, text, place)

    def _key(self, container: Mapping, text: str | None, place: str) -> str:
        if text is None:
            self.problems.append(f"{place}: a key is a word, not a list or a mapping.")
            return ""
        if text in container.places:
            first = container.places[text]
            self.problems.append(f"{place}: the key '{text}' is written twice (first at {first}). Keep one.")
        container.places.setdefault(text, place)
        return text


def _too_deep(place: str) -> str:
    return f"{place}: nested more than {MAX_DEPTH} deep. A recipe needs about 6 levels."


def parse(text: str, place_of: Callable[[int], str]) -> Any:
    """Returns the tree of a YAML text; its collections remember their places.

    Args:
        text: The YAML.
        place_of: Names a line, counted from 1, in messages.

    Raises:
        RecipeError: It is not YAML, or uses what recipes do not; every problem up to one that stops reading.
    """
    builder = _Builder(place_of)
    try:
        for event in yaml.parse(text, Loader=_Loader):
            builder.feed(event)
    except RecipeError as error:
        builder.problems += error.problems
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = place_of(mark.line + 1 if mark else 1)
        # libyaml counts brackets while it looks ahead, before it hands over any of them
        is_deep = "nesting depth" in str(error.problem)
        problem = _too_deep(place) if is_deep else f"{place}: not valid YAML ({error.problem})."
        builder.problems.append(problem)
    except (yaml.YAMLError, UnicodeEncodeError):
        builder.problems.append(f"{place_of(1)}: not valid YAML (a character that no text file holds).")
    if builder.problems:
        raise RecipeError(builder.problems)
    return builder.roots[0] if builder.roots else None


def place_at(tree: Any, path: Iterable[str | int]) -> str:
    """Returns where a path was written, or else the nearest written thing above it."""
    place = getattr(tree, "place", "")
    for step in path:
        if isinstance(tree, Mapping) and step in tree:
            place = tree.places.get(str(step), place)
        elif isinstance(tree, Sequence) and isinstance(step, int) and step < len(tree.places):
            place = tree.places[step]
        else:
            break
        tree = tree[step]
    return place


class _Dumper(yaml.SafeDumper):
    """Writes what `parse` reads back unchanged."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = None
    try:
        if resolve_scalar(text) is not text:
            style = "'"
    except ValueError:
        style = "'"
    if not text.replace("\n", "").isprintable():
        style = '"'  # PyYAML loses some line separators in other styles
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.SequenceNode:
    is_flat = not any(isinstance(item, (list, dict)) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_flat)


_Dumper.add_representer(str, _represent_text)
_Dumper.add_representer(list, _represent_list)


def dump_yaml(node: dict[str, Any]) -> str:
    """Returns a tree as YAML that loads back equal."""
    return str(yaml.dump(node, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100))
