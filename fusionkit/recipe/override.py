"""Overrides: `full.path=value` changes a recipe before it is checked."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fusionkit.errors import RecipeError, suggest
from fusionkit.recipe import dialect
from fusionkit.recipe.shape import show


@dataclass(frozen=True)
class _Override:
    """One override, read."""

    place: str
    keys: tuple[str, ...]
    value: Any

    def fail(self, sentence: str) -> RecipeError:
        return RecipeError(f"{self.place}: {sentence}")


def apply_overrides(tree: dict[str, Any], overrides: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Returns the tree with the overrides applied: each `use` first, then the rest in order; and problems.

    A new `use` discards the old options; a mapping replaces its node; null removes a modality or a raiser and
    what names it; stages are addressed by name. An override that cannot be read or applied
    is a problem, and changes nothing.
    """
    tree = copy.deepcopy(tree)
    read, problems = _read_all(overrides)
    removed: set[str] = set()
    for override in sorted(read, key=lambda override: override.keys[-1] != "use"):
        try:
            _apply(tree, override, removed)
        except RecipeError as error:
            problems += error.problems
    drop_parts(tree.get("stages"), lambda part: part in removed or part.split(".")[0] + "." in removed)
    _drop_blanking(tree.get("evaluation"), removed)
    return tree, problems


def unreadable(overrides: Sequence[str]) -> list[str]:
    """Returns what is wrong with overrides by themselves, where there is no tree to apply them to."""
    return _read_all(overrides)[1]


def _read_all(overrides: Sequence[str]) -> tuple[list[_Override], list[str]]:
    read: list[_Override] = []
    problems: list[str] = []
    for text in overrides:
        try:
            read.append(_read(text))
        except RecipeError as error:
            problems += error.problems
    return read, problems


def drop_parts(stages: Any, is_removed: Callable[[str], bool]) -> None:
    """Takes parts out of the stages that name them; a stage left without parts goes."""
    for index in reversed(range(len(stages) if isinstance(stages, list) else 0)):
        stage = stages[index]
        if isinstance(stage, dict) and _drop_from(stage, is_removed):
            _delete(stages, index)


def _drop_blanking(evaluation: Any, removed: set[str]) -> None:
    """Takes removed modalities out of those that are tested with cells blanked."""
    rates = evaluation.get("missing") if isinstance(evaluation, dict) else None
    if isinstance(rates, dict):
        for name in [name for name in rates if f"{name}." in removed]:
            del rates[name]


def _drop_from(stage: dict[str, Any], is_removed: Callable[[str], bool]) -> bool:
    """Returns whether the stage is left without parts."""
    if isinstance(stage.get("pretrain"), str):
        return is_removed(stage["pretrain"])
    is_emptied = False
    for verb in ("fit", "train"):
        parts = stage.get(verb)
        if not isinstance(parts, list):
            continue
        for index in reversed(range(len(parts))):
            if isinstance(parts[index], str) and is_removed(parts[index]):
                _delete(parts, index)
                is_emptied = not parts
    return is_emptied


def _delete(entries: list[Any], index: int) -> None:
    del entries[index]
    if isinstance(entries, dialect.Sequence):
        del entries.places[index]


def _read(text: str) -> _Override:
    place = f"override '{text}'"
    path, equals, value = text.partition("=")
    keys = tuple(key.strip() for key in path.split("."))
    if not equals:
        raise RecipeError(f"{place}: there is no '='. Write full.path=value.")
    if not all(keys):
        raise RecipeError(f"{place}: the path has an empty part ({path}). Write full.path=value.")
    if len(keys) > dialect.MAX_DEPTH:
        raise RecipeError(f"{place}: the path is more than {dialect.MAX_DEPTH} deep. Write full.path=value.")
    if not value.strip():
        raise RecipeError(f"{place}: there is no value. Write null to remove, or '' for an empty text.")
    return _Override(place, keys, dialect.parse(value, lambda _: place))


def _apply(tree: dict[str, Any], override: _Override, removed: set[str]) -> None:
    node: Any = tree
    for depth in range(len(override.keys) - 1):
        node = _descend(node, override, depth)
    key = override.keys[-1]
    if isinstance(node, list):
        _replace_stage(node, override)
    elif not isinstance(node, dict):
        raise override.fail(
            f"'{'.'.join(override.keys[:-1])}' has no keys ({show(node)}). Override it as a whole."
        )
    elif key == "use":
        _replace_use(node, override)
    elif override.value is None and override.keys[0] == "modalities" and len(override.keys) == 2:
        if key not in node:
            raise override.fail(f"there is no modality '{key}'. {suggest(key, node)}")
        del node[key]
        removed.add(f"{key}.")
    else:
        _set(node, key, override)
        if override.value is None and override.keys[0] == "modalities" and override.keys[2:] == ("raiser",):
            removed.add(f"{override.keys[1]}.raiser")


def _descend(node: Any, override: _Override, depth: int) -> Any:
    """Returns what lies under one key of the path; a mapping that is not written yet is made."""
    key = override.keys[depth]
    if isinstance(node, list):
        return node[_stage_index(node, override, depth)]
    if not isinstance(node, dict):
        raise override.fail(
            f"'{'.'.join(override.keys[:depth])}' has no keys ({show(node)}). Override it as a whole."
        )
    if node.get(key) is None:
        if override.keys[:depth] == ("modalities",):
            raise override.fail(f"there is no modality '{key}'. {suggest(key, node)}")
        modalities = node.get("modalities")
        if depth == 0 and isinstance(modalities, dict) and key in modalities:
            raise override.fail(
                f"a path is full. Write modalities.{override.place.split(chr(39), 1)[1][:-1]}."
            )
        made = dialect.Mapping(override.place)
        node[key] = made
        if isinstance(node, dialect.Mapping):
            node.places[key] = override.place
    return node[key]


def _stage_index(stages: list[Any], override: _Override, depth: int) -> int:
    if override.keys[:depth] != ("stages",):
        raise override.fail(f"'{'.'.join(override.keys[:depth])}' is a list. Override it as a whole.")
    names = [stage.get("name") if isinstance(stage, dict) else None for stage in stages]
    if override.keys[depth] not in names:
        known = suggest(override.keys[depth], [name for name in names if isinstance(name, str)])
        raise override.fail(f"there is no stage '{override.keys[depth]}'. {known}")
    return names.index(override.keys[depth])


def _replace_stage(stages: list[Any], override: _Override) -> None:
    index = _stage_index(stages, override, len(override.keys) - 1)
    if override.value is None:
        _delete(stages, index)
    elif isinstance(override.value, dict):
        override.value.setdefault("name", override.keys[-1])
        stages[index] = override.value
        if isinstance(stages, dialect.Sequence):
            stages.places[index] = override.place
    else:
        raise override.fail(f"a stage is a mapping or null ({show(override.value)}).")


def _replace_use(node: dict[str, Any], override: _Override) -> None:
    if node.get("use") != override.value:
        node.clear()
        if isinstance(node, dialect.Mapping):
            node.places.clear()
            node.place = override.place
    _set(node, "use", override)


def _set(node: dict[str, Any], key: str, override: _Override) -> None:
    node[key] = override.value
    if isinstance(node, dialect.Mapping):
        node.places[key] = override.place
