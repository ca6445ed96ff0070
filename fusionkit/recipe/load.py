"""Loads a recipe in whole-tree passes (shape; components; stages against parts); all problems at once."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from fusionkit.errors import FusionkitError, RecipeError, suggest
from fusionkit.recipe import checks, dialect
from fusionkit.recipe.components import PartPlan, build_source, plan_components, resolve_columns
from fusionkit.recipe.dialect import dump_yaml
from fusionkit.recipe.findings import Findings
from fusionkit.recipe.override import apply_overrides, drop_parts, unreadable
from fusionkit.recipe.schema import Recipe, Stage
from fusionkit.recipe.shape import explain, show, validate_strictly, without
from fusionkit.recipe.task_checks import check_task
from fusionkit.recipe.task_nodes import outcome_columns
from fusionkit.registry import Registry

if TYPE_CHECKING:
    from fusionkit.interfaces import Source

__all__ = ["LoadedRecipe", "PartPlan", "dump_yaml", "load_recipe", "load_text"]


@dataclass(frozen=True)
class LoadedRecipe:
    """A recipe in which everything has been checked that can be without data.

    Two are equal when they resolve to the same.

    Args:
        recipe: The recipe, typed, defaults filled in.
        text: The file as given.
        path: The file.
        resolved: Everything with defaults filled in, as JSON values; loads again as an equal recipe.
        source: Where the data come from; nothing has been read.
        source_plan: The source as a component.
        parts: Part path -> plan, in data-flow order: each modality's encoder and raiser, then the head.
        columns: Modality -> the columns that it reads.
    """

    recipe: Recipe
    text: str = field(compare=False)
    path: Path | None = field(compare=False)
    resolved: dict[str, Any]
    source: Source = field(compare=False)
    source_plan: PartPlan
    parts: dict[str, PartPlan]
    columns: dict[str, tuple[str, ...]]

    @property
    def used_columns(self) -> list[str]:
        """The columns that any modality reads, each once."""
        return list(dict.fromkeys(name for columns in self.columns.values() for name in columns))

    def reads_tokens(self, modality: str) -> bool:
        """Says whether the head reads the tokens of a modality's encoder, in place of a feature vector."""
        return checks.reads_tokens(self.parts, modality)

    def alone(self, modality: str) -> LoadedRecipe:
        """Returns the same recipe without the other modalities and the stage entries that name them."""
        resolved = copy.deepcopy(self.resolved)
        resolved["modalities"] = {modality: resolved["modalities"][modality]}
        drop_parts(resolved["stages"], lambda part: part != "head" and part.split(".")[0] != modality)
        if not resolved["stages"]:
            raise RecipeError(
                f"modalities.{modality}: alone, it leaves nothing to learn. "
                "Set evaluation.modalities_alone: false."
            )
        return LoadedRecipe(
            recipe=validate_strictly(Recipe, resolved),
            text=self.text,
            path=self.path,
            resolved=resolved,
            source=self.source,
            source_plan=self.source_plan,
            parts={path: plan for path, plan in self.parts.items() if plan.modality in (modality, None)},
            columns={modality: self.columns[modality]},
        )


def load_recipe(
    path: str | Path, registry: Registry, overrides: Sequence[str] = (), *, data_root: Path | None = None
) -> LoadedRecipe:
    """Loads a recipe file; the source finds its files under `data_root` (else $FUSIONKIT_DATA, else data/).

    Raises:
        RecipeError: The recipe is wrong; carries every problem found.
        PluginError: Only plugins are wrong: a name claimed twice, a source that cannot be built.
        DataError: Only what the source knows of its data is wrong: a schema file that is not there.
    """
    path = Path(path)
    return load_text(
        read_text(path), registry, name=str(path), overrides=overrides, path=path, data_root=data_root
    )


def load_text(
    text: str,
    registry: Registry,
    *,
    name: str = "<recipe>",
    overrides: Sequence[str] = (),
    path: Path | None = None,
    data_root: Path | None = None,
) -> LoadedRecipe:
    """Loads a recipe from text; `name` stands for the file in messages. Raises as load_recipe does."""

    def load(given: Sequence[str]) -> LoadedRecipe:
        return _load(text, registry, name, given, path, data_root)

    try:
        return load(overrides)
    except FusionkitError as error:
        if not overrides:
            raise
        raise type(error)(_blame_overrides(error.problems, overrides, name, load)) from None


def _blame_overrides(
    problems: Sequence[str],
    overrides: Sequence[str],
    name: str,
    load: Callable[[Sequence[str]], LoadedRecipe],
) -> list[str]:
    """Returns the problems; one that the file as written has not is said of the override that makes it."""
    place = re.compile(re.escape(name) + r":\d+: ")
    if not any(place.match(problem) for problem in problems):
        return list(problems)

    def problems_with(given: Sequence[str]) -> set[str]:
        try:
            load(given)
        except FusionkitError as error:
            return set(error.problems)
        return set()

    as_written = problems_with(())
    # beyond that many, all of them are named
    singly = {text: problems_with([text]) for text in (overrides if 1 < len(overrides) <= 8 else ())}
    told = []
    for problem in problems:
        written_at = place.match(problem)
        if written_at is None or problem in as_written:
            told.append(problem)
            continue
        makers = [text for text, found in singly.items() if problem in found] or overrides
        named = ", ".join(f"'{text}'" for text in makers)
        noun = "override" if len(makers) == 1 else "overrides"
        told.append(f"{noun} {named}: {problem[written_at.end() :]}")
    return list(dict.fromkeys(told))


def _load(
    text: str,
    registry: Registry,
    name: str,
    overrides: Sequence[str],
    path: Path | None,
    data_root: Path | None,
) -> LoadedRecipe:
    try:
        tree = _parse(text, name)
    except RecipeError as error:
        raise RecipeError([*unreadable(overrides), *error.problems]) from None
    tree, problems = apply_overrides(tree, overrides)
    findings = Findings(tree, overrides=problems)
    shape = _check_shape(tree, findings)
    plans = plan_components(tree, registry, findings)
    source_plan = plans.pop("source")
    root = data_root or Path(os.environ.get("FUSIONKIT_DATA", "data"))
    source = build_source(source_plan, root, findings) if source_plan is not None else None
    outcome = outcome_columns(shape.recipe.task) if shape.recipe is not None else {}
    columns = resolve_columns(tree, plans, source, outcome, findings) if source is not None else {}
    checks.check_missing(plans, registry, findings)
    checks.check_token_readers(plans, registry, findings)
    checks.check_blanking(tree, findings)
    stages = _read_stages(shape.tree)
    checks.check_stages(stages, plans, findings)
    checks.check_auxiliary(stages, findings)
    if shape.recipe is not None:
        is_scaled = any(node.standardize for node in shape.recipe.modalities.values())
        checks.check_order(stages, plans, findings, is_scaled=is_scaled)
        checks.check_taught(stages, plans, findings)
        checks.check_absence(shape.recipe, plans, findings)
        if not shape.doubtful & {"task", "evaluation", "stages"} and source is not None:
            check_task(shape.recipe, source.classes, source_plan, plans.get("head"), findings)
        if not shape.doubtful & {"split", "evaluation"}:
            checks.check_validation(shape.recipe, findings)
        if "split" not in shape.doubtful:
            checks.check_sets(shape.recipe, findings)
        if not shape.doubtful & {"split", "seeds", "evaluation"}:
            checks.check_size(shape.recipe, findings)
    findings.raise_all()
    assert shape.recipe is not None
    assert source is not None
    assert source_plan is not None
    parts = {part: plan for part, plan in plans.items() if plan is not None}
    resolved = _resolve(shape.recipe, source_plan, parts, columns)
    final = validate_strictly(Recipe, resolved)
    return LoadedRecipe(final, text, path, resolved, source, source_plan, parts, columns)


def _parse(text: str, name: str) -> dict[str, Any]:
    tree = dialect.parse(text, lambda line: f"{name}:{line}")
    if tree is None:
        raise RecipeError(f"{name}: the recipe is empty. A recipe needs {', '.join(_required())}.")
    if not isinstance(tree, dialect.Mapping):
        raise RecipeError(
            f"{name}:1: a recipe is a mapping of keys to values ({show(tree)}). Start with `name:`."
        )
    if "variants" in tree and "stages" not in tree:
        raise RecipeError(f"{name}:1: a sweep, not a recipe. Say `fusionkit sweep`.")
    return tree


def _required() -> list[str]:
    return [name for name, field in Recipe.model_fields.items() if field.is_required()]


def read_text(path: Path, what: str = "recipe") -> str:
    """Returns the text of a recipe or sweep file; raises RecipeError."""
    if path.is_dir():
        raise RecipeError(f"{path}: a folder, not a {what} file. {suggest(path.name, _recipes_in(path))}")
    if path.exists() and not path.is_file():
        raise RecipeError(f"{path}: a pipe or a device, not a {what} file. Give a file.")
    try:
        with path.open("rb") as file:
            data = file.read(dialect.MAX_BYTES + 1)
    except FileNotFoundError:
        hint = suggest(path.name, _recipes_in(path.parent))
        raise RecipeError(f"{path}: there is no such {what} file. {hint}") from None
    except OSError as error:
        raise RecipeError(f"{path}: cannot be read ({error.strerror}).") from None
    if len(data) > dialect.MAX_BYTES:
        raise RecipeError(f"{path}: larger than {dialect.MAX_BYTES >> 20} MiB. This is no {what}.")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 text (byte {error.start}). Save it as UTF-8.") from None
    if "\0" in text:
        raise RecipeError(f"{path}: a binary file, not a {what} (byte {text.index(chr(0))} is zero).")
    return text


def _recipes_in(folder: Path) -> list[str]:
    """Returns the names of the recipe files in a folder."""
    if not folder.is_dir():
        return []
    return [file.name for file in folder.iterdir() if file.suffix in (".yaml", ".yml")]


@dataclass(frozen=True)
class _Shape:
    """What the first pass leaves to the later ones: the tree without what is wrong in it.

    Args:
        tree: The tree without the keys that are wrong.
        recipe: It, typed; None if too little is left.
        doubtful: The top-level keys under which something was left out.
    """

    tree: dict[str, Any]
    recipe: Recipe | None
    doubtful: frozenset[str] = frozenset()


def _check_shape(tree: dict[str, Any], findings: Findings) -> _Shape:
    """Reports what is wrong with the shape, and returns the rest."""
    try:
        return _Shape(tree, validate_strictly(Recipe, tree))
    except ValidationError as error:
        wrong = explain(error, Recipe, tree, "key")
    for path, sentence in wrong:
        findings.add(path, sentence)
    repaired = without(tree, [path for path, _ in wrong])
    doubtful = frozenset(str(path[0]) for path, _ in wrong if path)
    try:
        return _Shape(repaired, validate_strictly(Recipe, repaired), doubtful)
    except ValidationError:
        return _Shape(repaired, None, doubtful)


@functools.cache
def _stage_adapter() -> TypeAdapter[Stage]:
    return TypeAdapter(Stage)


def _read_stages(tree: dict[str, Any]) -> dict[int, Stage]:
    """Returns the stages that can be read, by position."""
    adapter = _stage_adapter()
    stages = {}
    written = tree.get("stages")
    for index, node in enumerate(written if isinstance(written, list) else []):
        with contextlib.suppress(ValidationError):  # the shape pass has said what is wrong
            stages[index] = adapter.validate_json(json.dumps(node), strict=True)
    return stages


def _resolve(
    recipe: Recipe, source: PartPlan, parts: dict[str, PartPlan], columns: dict[str, tuple[str, ...]]
) -> dict[str, Any]:
    """Returns the recipe with the components' defaults and the columns written out."""
    resolved: dict[str, Any] = recipe.model_dump(mode="json")
    for plan in (source, *parts.values()):
        node = resolved if plan.modality is None else resolved["modalities"][plan.modality]
        node[plan.path.split(".")[-1]] = {"use": plan.use, **plan.options}
    for modality, names in columns.items():
        resolved["modalities"][modality]["columns"] = list(names)
    return resolved
