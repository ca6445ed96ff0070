"""`fusionkit schema`: the JSON Schema of recipes, for editors."""

from __future__ import annotations

import json

import typer


def run(context: typer.Context) -> None:
    """Print the JSON Schema of recipes, for editors."""
    from fusionkit.recipe.json_schema import recipe_schema

    print(json.dumps(recipe_schema(context.obj.registry), indent=2))
