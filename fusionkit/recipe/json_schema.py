"""The JSON Schema (draft 7) of recipes, with the options of every component."""

from __future__ import annotations

from typing import Any

from fusionkit.recipe.schema import MAX_NAME, MISSING, NAME, PRETRAINED, RESERVED, Recipe
from fusionkit.registry import Registry
from fusionkit.specs import COMPONENT_KINDS, Spec

_DRAFT = "http://json-schema.org/draft-07/schema#"


def recipe_schema(registry: Registry) -> dict[str, Any]:
    """Returns a schema by which an editor completes keys, component names and their options."""
    schema = Recipe.model_json_schema()
    definitions: dict[str, Any] = schema["$defs"]
    del definitions["Use"]
    for kind in COMPONENT_KINDS:
        cards = {card.name: card for card, _ in registry.cards(kind)}
        definitions[kind] = _any_of(kind, cards)
        for card in cards.values():
            _add_component(kind, card, definitions)
    schema["properties"]["modalities"]["propertyNames"] = {
        "pattern": f"^{NAME.pattern}$",
        "maxLength": MAX_NAME,
        "not": {"anyOf": [{"enum": list(RESERVED)}, {"pattern": f"{PRETRAINED}$|{MISSING}"}]},
    }
    modality = definitions["ModalityNode"]["properties"]
    for kind, place in {
        "source": schema["properties"],
        "head": schema["properties"],
        "encoder": modality,
        "raiser": modality,
    }.items():
        _point(place[kind], kind)
    schema["properties"]["stages"]["items"] = _any_stage()
    plain: dict[str, Any] = _to_draft7({"$schema": _DRAFT, **schema})
    return plain


def _any_stage() -> dict[str, Any]:
    """Returns the schema of a stage, chosen by its verb."""
    models = {"fit": "FitStage", "pretrain": "PretrainStage", "train": "TrainStage"}
    return {
        "type": "object",
        "oneOf": [{"required": [verb]} for verb in models],
        "allOf": [
            {"if": {"required": [verb]}, "then": {"$ref": f"#/$defs/{model}"}}
            for verb, model in models.items()
        ],
    }


def _any_of(kind: str, cards: dict[str, Spec]) -> dict[str, Any]:
    """Returns the schema of a node that names a component of one kind."""
    return {
        "type": "object",
        "required": ["use"],
        "properties": {"use": {"enum": sorted(cards), "description": f"The {kind}'s name."}},
        "allOf": [
            {
                "if": {"properties": {"use": {"const": name}}},
                "then": {"$ref": f"#/$defs/{kind}.{name}"},
            }
            for name in sorted(cards)
        ],
    }


def _add_component(kind: str, card: Spec, definitions: dict[str, Any]) -> None:
    """Adds one component's options; its own definitions get a prefix, since two plugins may share a name."""
    prefix = f"{kind}.{card.name}"
    try:
        options = card.config.model_json_schema(ref_template=f"#/$defs/{prefix}.{{model}}")
    except Exception as error:  # a plugin's type may have no schema; the other components still have theirs
        reason = f"{card.summary} Its options cannot be described ({type(error).__name__})."
        definitions[prefix] = {"type": "object", "title": card.name, "description": reason}
        return
    for name, definition in options.pop("$defs", {}).items():
        definitions[f"{prefix}.{name}"] = definition
    definitions[prefix] = {
        **options,
        "title": card.name,
        "description": card.summary,
        "properties": {"use": {"const": card.name}, **options.get("properties", {})},
        "required": ["use", *options.get("required", ())],
    }


def _point(node: dict[str, Any], kind: str) -> None:
    """Lets a node of the recipe's own schema refer to the components instead of to any `use`."""
    for candidate in (node, *node.get("anyOf", ())):
        if candidate.get("$ref") == "#/$defs/Use":
            candidate["$ref"] = f"#/$defs/{kind}"


def _to_draft7(node: Any) -> Any:
    """Returns the schema without the keywords that draft 7 lacks."""
    if isinstance(node, list):
        return [_to_draft7(entry) for entry in node]
    if not isinstance(node, dict):
        return node
    plain = {key: _to_draft7(value) for key, value in node.items() if key != "discriminator"}
    if isinstance(plain.get("prefixItems"), list):
        plain["items"] = plain.pop("prefixItems")
    return plain
