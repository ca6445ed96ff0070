"""What must hold of every card."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from fusionkit.recipe.shape import validate_strictly
from fusionkit.specs import ComponentConfig, describe
from fusionkit.testing.case import BreachError, Case, DoesNotApplyError, check, require

HEAVY = (
    "torch",
    "torchvision",
    "numpy",
    "polars",
    "sklearn",
    "PIL",
    "safetensors",
    "skimage",
    "timm",
    "lightgbm",
    "matplotlib",
)
"""What takes long to import."""
EVERY = ("source", "encoder", "raiser", "head")
READ_CARDS = """
import importlib, sys
sys.path[:] = sys.argv[2].split(sys.argv[3])
importlib.import_module(sys.argv[1])
print(*[name for name in sys.argv[4:] if name in sys.modules])
"""


@check(*EVERY, of_card=True)
def check_card(case: Case) -> None:
    """The card is complete: `name` in snake_case, `summary` one line, `source` given, at least one example.

    Options are a `ComponentConfig`, and each has a docstring.
    """
    card = case.card
    require(case, bool(re.fullmatch(r"[a-z][a-z0-9_]*", card.name)), "its `name` is not in snake_case.")
    summary = card.summary.strip()
    require(case, bool(summary) and "\n" not in summary, "its `summary` is not one line.")
    require(case, bool(card.source.strip()), "its `source` is empty. Name a paper or a page, or say `ours`.")
    is_config = isinstance(card.config, type) and issubclass(card.config, ComponentConfig)
    require(case, is_config, "its `config` is no ComponentConfig.")
    bare = list(_undescribed(card.config))
    require(case, not bare, f"options without a docstring: {', '.join(bare)}.")
    require(case, bool(card.examples), "it has no `examples`, so that nothing else can be checked.")
    strange = [example for example in card.examples if not isinstance(example, card.config)]
    require(case, not strange, f"an example is no {card.config.__name__} ({strange[:1]}).")


def _undescribed(config: type[BaseModel], path: str = "") -> Iterator[str]:
    describe(config)
    for name, field in config.model_fields.items():
        if not field.description:
            yield path + name
        for inner in (field.annotation, *get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _undescribed(inner, f"{path}{name}.")


@check(*EVERY, of_card=True)
def check_card_is_light(case: Case) -> None:
    """Reading the card imports neither torch nor numpy, nor anything else that takes long."""
    name = getattr(getattr(case.card, "build", None), "__module__", "")
    file = getattr(sys.modules.get(name.split(".")[0]), "__file__", None)
    if file is None or name == "__main__":
        raise DoesNotApplyError(f"its module cannot be imported anew ({name or 'none'})")
    folder = Path(file).parent.parent if Path(file).name == "__init__.py" else Path(file).parent
    code, out, err = _import_anew(name, os.pathsep.join([str(folder), *sys.path]))
    if code:
        raise BreachError(f"{case.id}: {name} cannot be imported ({err.splitlines()[-1:]}).")
    found = ", ".join(out.split())
    require(case, not found, f"importing {name} imports {found}. Import inside `build`.")


@cache
def _import_anew(name: str, paths: str) -> tuple[int, str, str]:
    """Imports a module in a process of its own; returns exit code, what heavy it found, standard error."""
    command = [sys.executable, "-c", READ_CARDS, name, paths, os.pathsep, *HEAVY]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@check(*EVERY)
def check_options_round_trip(case: Case) -> None:
    """Options survive a recipe: written as JSON and validated again, they are equal."""
    tree: Any = json.loads(json.dumps(case.config.model_dump(mode="json")))
    try:
        again = validate_strictly(case.card.config, tree)
    except ValidationError as error:
        said = error.errors()[0]
        raise BreachError(
            f"{case.id}: options that were written as JSON are refused ({said['loc']}: {said['msg']})."
        ) from None
    require(case, again == case.config, f"options come back from JSON changed ({tree}).")
