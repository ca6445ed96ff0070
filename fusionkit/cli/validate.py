"""`fusionkit validate`: everything that can be checked without data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fusionkit.errors import counted

if TYPE_CHECKING:
    from fusionkit.recipe.load import LoadedRecipe
    from fusionkit.recipe.sweep import LoadedSweep


def run(
    context: typer.Context,
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="The recipe or sweep file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="PATH=VALUE", help="Changes to the recipe.")
    ] = None,
    data_root: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where the data lie; else $FUSIONKIT_DATA, else data/."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the resolved recipe, or the problems, as JSON.")
    ] = False,
) -> None:
    """Check a recipe or a sweep without reading data, and say what it does."""
    from fusionkit.errors import FusionkitError
    from fusionkit.recipe.load import load_recipe
    from fusionkit.recipe.sweep import is_sweep, load_sweep

    try:
        if is_sweep(recipe):
            sweep = load_sweep(recipe, context.obj.registry, overrides or [], data_root=data_root)
            _print_sweep(recipe, sweep, as_json=as_json)
            return
        loaded = load_recipe(recipe, context.obj.registry, overrides or [], data_root=data_root)
    except FusionkitError as error:
        if not as_json:
            raise
        print(json.dumps({"valid": False, "problems": list(error.problems)}, indent=2))
        raise typer.Exit(error.exit_code) from None
    if as_json:
        columns = {modality: list(names) for modality, names in loaded.columns.items()}
        print(json.dumps({"valid": True, "columns": columns, "resolved": loaded.resolved}, indent=2))
    else:
        print("\n".join([f"{recipe} is valid.", *summarize(loaded)]))


def _print_sweep(path: Path, loaded: LoadedSweep, *, as_json: bool) -> None:
    if as_json:
        experiments = [
            {"variant": one.variant.name, "seed": one.seed, "resolved": one.loaded.resolved}
            for one in loaded.experiments
        ]
        print(json.dumps({"valid": True, "experiments": experiments}, indent=2))
        return
    names = [variant.name for variant in loaded.sweep.variants]
    n_experiments = counted(len(loaded.experiments), "experiment")
    print(f"{path} is valid: {counted(len(names), 'variant')}, {n_experiments}.")
    print("\n".join(f"  {name}" for name in names))


def summarize(loaded: LoadedRecipe) -> list[str]:
    """Returns a recipe in a few lines."""
    from fusionkit.recipe.checks import parts_of, verb_of

    source = loaded.source_plan.use + (" (simulated)" if loaded.source.simulated else "")
    lines = [("source", source), _describe_task(loaded)]
    for modality, columns in loaded.columns.items():
        chain = [plan.use for plan in loaded.parts.values() if plan.modality == modality]
        chain += ["its tokens"] if loaded.reads_tokens(modality) else []
        lines.append((modality, " -> ".join([counted(len(columns), "column"), *chain, "head"])))
    lines.append(("head", loaded.parts["head"].use))
    for number, stage in enumerate(loaded.recipe.stages, 1):
        lines.append((f"stage {number}", f"{stage.name}: {verb_of(stage)} {', '.join(parts_of(stage))}"))
    lines.append(("split", _describe_split(loaded)))
    width = max(len(label) for label, _ in lines)
    return [f"  {label:<{width}}  {text}" for label, text in lines]


def _describe_task(loaded: LoadedRecipe) -> tuple[str, str]:
    from fusionkit.recipe.task_nodes import outcome_columns

    task, classes = loaded.recipe.task, ", ".join(loaded.source.classes)
    columns = ", ".join(outcome_columns(task).values())
    return (
        ("classes", classes)
        if task.kind == "classification"
        else ("task", f"{task.kind}: {columns or classes}")
    )


def _describe_split(loaded: LoadedRecipe) -> str:
    from fusionkit.recipe.schema import ColumnSplit, FoldSplit

    split = loaded.recipe.split
    if isinstance(split, ColumnSplit):
        return f"by the column {split.column}"
    what = f"{split.folds} folds" if isinstance(split, FoldSplit) else f"{split.test:.0%} held out"
    repeats = f", {split.repeats} times" if split.repeats > 1 else ""
    validation = (
        f", {split.validation:.0%} of the training {split.unit}s for validation" if split.validation else ""
    )
    leakage = " (leakage: one subject on both sides)" if split.unit == "sample" else ""
    return f"{what} by {split.unit}{repeats}{validation}{leakage}"
