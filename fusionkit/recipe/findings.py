"""Collects what is wrong with a recipe, so that all of it is reported at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from fusionkit.errors import FusionkitError, PluginError, RecipeError
from fusionkit.recipe.dialect import place_at
from fusionkit.recipe.shape import TreePath


@dataclass
class Findings:
    """What the passes found.

    Args:
        tree: The recipe as parsed, overrides applied; it knows the places.
        recipe: Mistakes in the recipe.
        plugins: Mistakes of plugins, which no change of the recipe mends.
        others: What else a source has to say, such as a schema file that is not there.
        overrides: Overrides that could not be applied, in whole sentences.
    """

    tree: Any
    recipe: list[tuple[str, str]] = field(default_factory=list)
    plugins: list[tuple[str, str]] = field(default_factory=list)
    others: list[FusionkitError] = field(default_factory=list)
    overrides: list[str] = field(default_factory=list)

    def add(self, path: TreePath, sentence: str) -> None:
        """Notes what is wrong at a path."""
        self.recipe.append((place_at(self.tree, path), f"{self._shown(path)}{sentence}"))

    def add_plugin(self, path: TreePath, sentence: str) -> None:
        """Notes what a plugin does wrong at a path."""
        self.plugins.append((place_at(self.tree, path), f"{self._shown(path)}{sentence}"))

    def raise_all(self) -> None:
        """Raises every problem found, by line, if there is one."""
        found = sorted(self.recipe + self.plugins, key=lambda problem: _line(problem[0]))
        problems = list(dict.fromkeys([*self.overrides, *(f"{place}: {text}" for place, text in found)]))
        problems += [problem for error in self.others for problem in error.problems]
        if self.recipe or self.overrides:
            raise RecipeError(problems)
        if self.plugins:
            raise PluginError(problems)
        if self.others:
            raise type(self.others[0])(problems)

    def _shown(self, path: TreePath) -> str:
        """Returns a path for people: stages by name, entries of lists in brackets."""
        text = ""
        for depth, step in enumerate(path):
            if path[0] == "stages" and depth == 1 and isinstance(step, int):
                text += f".{self._stage_name(step)}"
            else:
                text += f"[{step}]" if isinstance(step, int) else f".{step}"
        return text[1:] + ": " if text else ""

    def _stage_name(self, index: int) -> str:
        stage = self.tree["stages"][index]
        name = stage.get("name") if isinstance(stage, dict) else None
        return name if isinstance(name, str) else f"[{index}]"


def _line(place: str) -> int:
    """Returns the line number of a place; 0 for an override."""
    number = place.rpartition(":")[2]
    return int(number) if number.isdecimal() else 0
