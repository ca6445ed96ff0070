"""Turns pydantic's errors into house sentences, with the place of the key and the nearest known name."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, Tag, ValidationError
from pydantic_core import ErrorDetails

from fusionkit.errors import LONGEST_SHOWN, shorten, suggest
from fusionkit.specs import describe

TreePath = tuple[str | int, ...]
ModelT = TypeVar("ModelT", bound=BaseModel)

_SHOWN_KEYS = 12
_KINDS = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing": "must be a whole number",
    "float_type": "must be a number",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a mapping of keys to values",
    "model_type": "must be a mapping of keys to values",
    "model_attributes_type": "must be a mapping of keys to values",
    "none_required": "must be null",
    "finite_number": "must be finite",
}
_BOUNDS = {
    "greater_than": ("must be more than {}", "gt"),
    "greater_than_equal": ("must be at least {}", "ge"),
    "less_than": ("must be less than {}", "lt"),
    "less_than_equal": ("must be at most {}", "le"),
    "too_short": ("must have at least {} entry", "min_length"),
    "too_long": ("must have at most {} entries", "max_length"),
    "string_too_short": ("must have at least {} characters", "min_length"),
    "string_pattern_mismatch": ("must match {}", "pattern"),
}


def show(value: Any) -> str:
    """Returns a given value, short enough for a message; of a large mapping its keys."""
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    shown = f"'{text}'" if isinstance(value, str) else text
    if len(shown) > LONGEST_SHOWN and isinstance(value, dict):
        more = f" and {len(value) - _SHOWN_KEYS} more" if len(value) > _SHOWN_KEYS else ""
        return f"keys: {', '.join(map(shorten, list(value)[:_SHOWN_KEYS]))}{more}"
    return shorten(shown)


def validate_strictly(model: type[ModelT], tree: Any) -> ModelT:
    """Validates as JSON, strictly: no text becomes a number, nothing becomes true by being 'yes'."""
    return model.model_validate_json(json.dumps(tree), strict=True)


def explain(
    error: ValidationError, model: type[BaseModel], tree: Any, owner: str
) -> list[tuple[TreePath, str]]:
    """Returns one sentence for each wrong node, with the node's path in `tree`.

    Args:
        error: What pydantic found.
        model: The model that was asked for.
        tree: What was validated.
        owner: What the keys belong to, for "no such ...": key of a recipe, option of a component.
    """
    found: dict[TreePath, list[tuple[str, str]]] = {}
    for details in error.errors(include_url=False):
        if details["type"] == "too_short" and len(details["input"]) >= details["ctx"]["min_length"]:
            continue  # pydantic counts only the entries that are right
        path, fields = _locate(model, tree, details)
        sentence = _sentence(details, path, fields, owner)
        if sentence not in found.setdefault(path, []):
            found[path].append(sentence)
    return [(path, _join(sentences)) for path, sentences in found.items()]


def _join(sentences: list[tuple[str, str]]) -> str:
    """Joins what the members of a union each say about one value."""
    wrong = " or ".join(dict.fromkeys(sentence for sentence, _ in sentences)).replace(" or must be ", " or ")
    return wrong + sentences[0][1]


def _sentence(details: ErrorDetails, path: TreePath, fields: dict[str, Any], owner: str) -> tuple[str, str]:
    """Returns what is wrong, and then what was given with what is known."""
    kind, given, context = details["type"], details["input"], details.get("ctx", {})
    if kind == "extra_forbidden":
        return f"no such {owner}", f" ({show(given)}). {suggest(str(path[-1]), fields)}"
    if kind in ("missing", "union_tag_not_found"):
        field = fields.get(str(path[-1]))
        return "is required", f". {field.description}" if field is not None and field.description else "."
    if kind == "union_tag_invalid":
        tags = context["expected_tags"].split(", ")
        return f"must be {', '.join(tags[:-1])} or {tags[-1]}", f" ({show(context['tag'])})."
    if kind == "literal_error":
        return f"must be {context['expected']}", f" ({show(given)})."
    if kind == "value_error" and not path:
        return str(context["error"]), "."  # of the recipe as a whole
    if kind == "value_error":
        return str(context["error"]), f" ({show(given)})."
    if kind in _BOUNDS:
        text, key = _BOUNDS[kind]
        return text.format(_number(context[key])), f" ({show(given)})."
    return _KINDS.get(kind, details["msg"][:1].lower() + details["msg"][1:]), f" ({show(given)})."


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _locate(model: type[BaseModel], tree: Any, details: ErrorDetails) -> tuple[TreePath, dict[str, Any]]:
    """Returns the path in `tree` that an error is about, free of union tags, and the fields known there."""
    annotation: Any = model
    step: Any
    path: list[str | int] = []
    holder: type[BaseModel] | None = model
    for step in details["loc"]:
        member = _member(annotation, step)
        if member is not None:
            annotation = member
            continue
        if isinstance(tree, (dict, list)) and has_step(tree, step):
            holder = _model_of(annotation)
            annotation, tree = _inside(annotation, step), tree[step]
            path.append(step)
        elif details["type"] == "missing":
            holder = _model_of(annotation)
            path.append(step)
    if details["type"].startswith("union_tag"):
        holder = _model_of(_members(annotation)[0])
        path.append(details["ctx"]["discriminator"].strip("'()"))  # a function's has brackets
    if holder is None:
        return tuple(path), {}
    describe(holder)
    return tuple(path), dict(holder.model_fields)


def has_step(tree: Any, step: str | int) -> bool:
    """Whether a key or entry is there."""
    return step in tree if isinstance(tree, dict) else isinstance(step, int) and step < len(tree)


def without(tree: Any, paths: Iterable[TreePath]) -> Any:
    """Returns a copy of a tree without the keys at some paths; entries of lists stay."""
    repaired = copy.deepcopy(tree)
    for path in paths:
        node: Any = repaired
        step: Any
        for step in path[:-1]:
            node = node[step] if has_step(node, step) else None
        if isinstance(node, dict) and path:
            node.pop(str(path[-1]), None)
    return repaired


def _members(annotation: Any) -> tuple[Any, ...]:
    """Returns the members of a union, `Annotated` removed around it."""
    while get_origin(annotation) is Annotated and _tag(annotation) is None:
        annotation = get_args(annotation)[0]
    return get_args(annotation) if get_origin(annotation) in (Union, UnionType) else ()


def _tag(annotation: Any) -> str | None:
    tags = [extra.tag for extra in get_args(annotation)[1:] if isinstance(extra, Tag)]
    return tags[0] if tags else None


def _model_of(annotation: Any) -> type[BaseModel] | None:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = [member for member in _members(annotation) if _model_of(member)]
    return _model_of(models[0]) if len(models) == 1 else None


def _member(annotation: Any, step: str | int) -> Any:
    """Returns the union's member that pydantic means by a step: its tag, or the value that tells it apart."""
    for member in _members(annotation):
        model = _model_of(member)
        if model is None:
            continue
        literals = [
            get_args(field.annotation) for field in model.model_fields.values() if field.is_required()
        ]
        if step in (_tag(member), model.__name__) or any(step in values for values in literals):
            return member
    return None


def _inside(annotation: Any, step: str | int) -> Any:
    """Returns the annotation of what lies inside one key or entry."""
    model = _model_of(annotation)
    if model is not None:
        field = model.model_fields.get(str(step))
        return field.annotation if field is not None else None
    for candidate in (_unwrapped(annotation), *map(_unwrapped, _members(annotation))):
        inner = [argument for argument in get_args(candidate) if argument is not Ellipsis]
        if inner and get_origin(candidate) not in (Union, UnionType):
            return inner[-1]
    return None


def _unwrapped(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated and _tag(annotation) is None:
        annotation = get_args(annotation)[0]
    return annotation
