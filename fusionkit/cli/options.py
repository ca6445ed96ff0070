"""Describes a component's options for people, from the JSON Schema of its config class."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fusionkit.specs import ComponentConfig

_TYPES = {
    "integer": "whole number",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "null": "null",
    "object": "mapping",
    "array": "list",
}
_BOUNDS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "more than {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "less than {}",
}


@dataclass(frozen=True)
class Option:
    """One option of a component.

    Args:
        name: Its key; keys of a nested mapping are joined by dots.
        type: What it may hold, in words.
        default: Its default as it is written in a recipe; None where it must be given.
        help: One sentence.
    """

    name: str
    type: str
    default: str | None
    help: str


def describe_options(config: type[ComponentConfig]) -> list[Option]:
    """Returns every option of a component, nested ones included."""
    schema = config.model_json_schema()
    return list(_describe(schema, schema.get("$defs", {}), "", {}))


def _describe(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], prefix: str, defaults: Mapping[str, Any]
) -> Iterator[Option]:
    for name, node in schema.get("properties", {}).items():
        has_default = name in defaults or "default" in node
        default = defaults.get(name, node.get("default"))
        help_text = " ".join(node.get("description", "").split())
        nested = _nested(node, definitions)
        if nested is None or default is None:
            shown = json.dumps(default) if has_default else None
            yield Option(prefix + name, _type(node, definitions), shown, help_text)
        if nested is not None:
            yield from _describe(nested, definitions, f"{prefix}{name}.", default or {})


def _nested(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the schema of a nested mapping of options, if the node is one."""
    for candidate in (node, *node.get("anyOf", ()), *node.get("allOf", ())):
        target = _follow(candidate, definitions)
        if "properties" in target:
            return target
    return None


def _follow(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = definitions[node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    return found


def _type(node: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    node = _follow(node, definitions)
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_type(member, definitions) for member in node["anyOf"]))
    if "enum" in node or "const" in node:
        return " or ".join(str(value) for value in node.get("enum", [node.get("const")]))
    if "prefixItems" in node:
        entry, comma, limits = _type(node["prefixItems"][0], definitions).partition(",")
        return f"list of {len(node['prefixItems'])} {entry}s{comma}{limits}"
    if node.get("type") == "array" and "items" in node:
        inner = _type(node["items"], definitions)
        return f"list of {inner}" if " or " not in inner else f"list of ({inner})"
    bounds = [text.format(node[key]) for key, text in _BOUNDS.items() if key in node]
    return ", ".join([_TYPES.get(node.get("type", ""), "anything"), *bounds])
