"""A sweep file: a base recipe and its variants, each a name and overrides; how a paper's table is written."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, ValidationError

from fusionkit.errors import FusionkitError, RecipeError, suggest
from fusionkit.recipe import dialect
from fusionkit.recipe.findings import Findings
from fusionkit.recipe.load import LoadedRecipe, load_recipe, read_text
from fusionkit.recipe.node import Node
from fusionkit.recipe.schema import FUSED, PRETRAINED, Name, missing_name
from fusionkit.recipe.shape import TreePath, explain, show, validate_strictly, without
from fusionkit.recipe.task_nodes import SHOWN, UNBOUNDED, WITH_CLASSES, outcome_columns
from fusionkit.registry import Registry
from fusionkit.specs import MAX_SEED

Metric = Literal[
    "roc_auc",
    "accuracy",
    "sensitivity",
    "specificity",
    "average_precision",
    "concordance",
    "quadratic_kappa",
    "rank_error",
    "r2",
    "mae",
    "rmse",
    "spearman",
]
WITH_ROC = ("classification",)
Overrides = dict[str, JsonValue]


def _check_line(text: str) -> str:
    if text != text.strip() or any(unicodedata.category(c).startswith("C") for c in text):
        raise ValueError("must be one line without control characters, and without blanks at its ends")
    return text


Line = Annotated[str, Field(min_length=1), AfterValidator(_check_line)]
"""A text that stands in tables and messages as it is."""
MAX_VARIANTS = 500


class VariantNode(Node):
    """One row: a recipe with some of its keys changed, and which of its models the row reads."""

    name: Annotated[Line, Field(max_length=80)]
    """The row's name, as the table shows it."""
    base: Line | None = None
    """A recipe file of its own, beside the sweep file; null for the sweep's `base`."""
    overrides: Overrides = Field({})
    """Full path -> value, as `fusionkit run` takes them: each `use` first, null removes a part."""
    model: str | None = None
    """The model of the run that the row reads, as its report names it; null for the fused or only one."""
    against: str | None = None
    """The variant that this one is compared with; null for the sweep's `reference`."""
    paper: dict[Metric, Annotated[float, Field(allow_inf_nan=False)]] = Field({})
    """What a paper reports for this row; stands in a column of its own. From 0 to 1, but of r2, mae, rmse,
    spearman, rank_error and quadratic_kappa."""


class Sweep(Node):
    """Several variants of a recipe, computed once each and compared."""

    name: Name
    """Names the folder of its results."""
    description: str = ""
    """One paragraph for people."""
    base: Line | None = None
    """The recipe file that variants change, beside the sweep file."""
    overrides: Overrides = Field({})
    """Full path -> value, for every variant, before its own."""
    seeds: tuple[Annotated[int, Field(ge=0, le=MAX_SEED)], ...] = Field((), max_length=100)
    """The recipe's `seed` of each repetition; none for the base's own."""
    metric: Metric | None = None
    """What is compared and drawn; null for the task's first: roc_auc, quadratic_kappa, r2 or concordance."""
    reference: str | None = None
    """The variant that all others are compared with; null for no comparison but those by `against`."""
    curve: str | None = None
    """A modality of `evaluation.missing`: each variant becomes a curve over the rates of blanked cells."""
    roc: bool = False
    """Whether ROC curves are drawn, too."""
    variants: tuple[VariantNode, ...] = Field(min_length=1, max_length=MAX_VARIANTS)
    """The rows, in order."""

    def references(self) -> dict[str, str]:
        """Returns which variant each one is compared with, by name, where it is with any."""
        found = {one.name: one.against or self.reference for one in self.variants}
        return {name: other for name, other in found.items() if other is not None and other != name}


@dataclass(frozen=True)
class SweepExperiment:
    """One experiment of a sweep: a variant with one seed."""

    variant: VariantNode
    seed: int
    loaded: LoadedRecipe


@dataclass(frozen=True)
class LoadedSweep:
    """A sweep of which every variant has been checked as a recipe.

    Args:
        sweep: The file, typed.
        text: The file as given.
        overrides: What the command line changed in every variant.
        experiments: Every variant with every seed, in the order of the file.
    """

    sweep: Sweep
    text: str
    overrides: tuple[str, ...]
    experiments: tuple[SweepExperiment, ...]

    @property
    def metric(self) -> str:
        """What is compared and drawn."""
        return self.sweep.metric or SHOWN[self.experiments[0].loaded.recipe.task.kind][0]


def is_sweep(path: Path) -> bool:
    """Says whether a file has the `variants` of a sweep; what cannot be read is none."""
    try:
        return re.search(r"^variants\s*:", path.read_text(encoding="utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False


def load_sweep(
    path: str | Path, registry: Registry, overrides: Sequence[str] = (), *, data_root: Path | None = None
) -> LoadedSweep:
    """Loads a sweep file and every recipe that it describes; `overrides` change all of them, last.

    Raises:
        RecipeError: The file or a variant is wrong; carries every problem found.
        PluginError: Only plugins are wrong.
        DataError: Only what a source knows of its data is wrong.
    """
    path = Path(path)
    text = read_text(path, "sweep")
    tree = dialect.parse(text, lambda line: f"{path}:{line}")
    if not isinstance(tree, dialect.Mapping):
        raise RecipeError(
            f"{path}: a sweep is a mapping of keys to values ({show(tree)}). Start with `name:`."
        )
    if "stages" in tree and "variants" not in tree:
        raise RecipeError(f"{path}:1: a recipe, not a sweep. Say `fusionkit run`.")
    findings = Findings(tree)
    sweep, wrong = _check_shape(tree, findings)
    _check_variants(sweep, wrong, findings)
    if not any(place[2:] == ("name",) for place in wrong):  # else who is meant is not known
        _check_names(sweep, findings)
    experiments, errors = _load_experiments(path, sweep, wrong, tree, registry, overrides, data_root)
    _check_runs(sweep, experiments, findings)
    findings.others += errors
    findings.raise_all()
    return LoadedSweep(sweep, text, tuple(overrides), tuple(experiments))


def _check_shape(tree: dialect.Mapping, findings: Findings) -> tuple[Sweep, frozenset[TreePath]]:
    """Returns the sweep without what is wrong with its shape, and those keys; raises if too little is left.

    A name that is wrong has another in its place, so that all else can be checked, too.
    """
    try:
        return validate_strictly(Sweep, tree), frozenset()
    except ValidationError as error:
        found = explain(error, Sweep, tree, "key")
    for place, sentence in found:
        findings.add(place, sentence)
    repaired = without(tree, [place for place, _ in found])
    repaired.setdefault("name", "sweep")
    variants = repaired.get("variants")
    lost: set[TreePath] = set()  # what stands for a variant that is none changes nothing that is known
    for number, variant in enumerate(variants if isinstance(variants, list) else ()):
        if not isinstance(variant, dict):
            variants[number] = variant = {}
            lost.add(("variants", number, "overrides"))
        variant.setdefault("name", f"variant {number + 1}")
    try:
        sweep = validate_strictly(Sweep, repaired)
    except ValidationError:
        findings.raise_all()
        raise
    wrong = {place[: 3 if place[0] == "variants" else 1] for place, _ in found if place}
    return sweep, frozenset(wrong | lost)


def _is_doubtful(index: int, variant: VariantNode, wrong: Collection[TreePath]) -> bool:
    """Says whether what a variant changes, or of what, is not known."""
    keys = ["overrides", *(["base"] if variant.base is None else [])]
    return any((key,) in wrong or ("variants", index, key) in wrong for key in keys)


def _check_names(sweep: Sweep, findings: Findings) -> None:
    names = [variant.name for variant in sweep.variants]
    for index, name in enumerate(names):
        if name in names[:index]:
            findings.add(("variants", index, "name"), f"there are two variants of this name ('{name}').")
    if sweep.reference is not None and sweep.reference not in names:
        findings.add(
            ("reference",), f"no such variant ({show(sweep.reference)}). {suggest(sweep.reference, names)}"
        )
    for index, variant in enumerate(sweep.variants):
        path = ("variants", index, "against")
        if variant.against == variant.name:
            findings.add(
                path, f"a variant is not compared with itself ({show(variant.against)}). Name another."
            )
        elif variant.against is not None and variant.against not in names:
            findings.add(
                path, f"no such variant ({show(variant.against)}). {suggest(variant.against, names)}"
            )


def _check_variants(sweep: Sweep, wrong: Collection[TreePath], findings: Findings) -> None:
    if len(set(sweep.seeds)) < len(sweep.seeds):
        findings.add(("seeds",), f"a seed is named twice ({show(list(sweep.seeds))}). Name each once.")
    for index, variant in enumerate(sweep.variants):
        if variant.base is None and sweep.base is None and not _is_doubtful(index, variant, wrong):
            findings.add(
                ("variants", index), "there is no recipe to change. Give it, or the sweep, a `base`."
            )
        if "seed" in variant.overrides and sweep.seeds:
            path = ("variants", index, "overrides", "seed")
            findings.add(path, "the sweep's `seeds` set it. Leave one of them out.")
        for metric, value in variant.paper.items():
            if metric not in UNBOUNDED and not 0 <= value <= 1:
                findings.add(("variants", index, "paper", metric), f"must be from 0 to 1 ({value:g}).")


def _load_experiments(
    path: Path,
    sweep: Sweep,
    wrong: Collection[TreePath],
    tree: dialect.Mapping,
    registry: Registry,
    given: Sequence[str],
    data_root: Path | None,
) -> tuple[list[SweepExperiment], list[FusionkitError]]:
    """Loads each variant with each seed; what is wrong in several of them is said once, a recipe's first."""
    experiments: list[SweepExperiment] = []
    errors: dict[str, list[tuple[str, FusionkitError]]] = {}
    for index, variant in enumerate(sweep.variants):
        if (variant.base is None and sweep.base is None) or _is_doubtful(index, variant, wrong):
            continue  # said already
        place = dialect.place_at(tree, ("variants", index))
        base = path.parent / str(variant.base or sweep.base)
        words = [*_as_words(sweep.overrides), *_as_words(variant.overrides)]
        for seed in sweep.seeds or (None,):
            seeded = [f"seed={seed}"] if seed is not None else []
            try:
                loaded = load_recipe(base, registry, [*words, *seeded, *given], data_root=data_root)
            except FusionkitError as error:
                for problem in error.problems:
                    errors.setdefault(problem, []).append((f"{place}: {variant.name}", error))
                break  # the other seeds fail alike
            experiments.append(SweepExperiment(variant, loaded.recipe.seed, loaded))
    found = []
    for problem, where in errors.items():
        places = ", ".join(place for place, _ in where)
        if len(where) == len(sweep.variants) and len(where) > 1:
            # what is wrong in a base that all share has its place there
            has_place = re.match(r".*\.ya?ml:[0-9]+: ", problem) is not None
            places = "" if has_place else str(path)
        found.append(type(where[0][1])(f"{places}: {problem}" if places else problem))
    return experiments, sorted(found, key=lambda error: error.exit_code != 3)


def _as_words(overrides: Mapping[str, Any]) -> list[str]:
    """Returns overrides as the command line writes them; JSON is YAML."""
    return [f"{path}={json.dumps(value, ensure_ascii=False)}" for path, value in overrides.items()]


def _check_runs(sweep: Sweep, experiments: Sequence[SweepExperiment], findings: Findings) -> None:
    """Checks what can be said only when every variant's recipe is known."""
    classes = {
        one.loaded.source.classes for one in experiments if one.loaded.recipe.task.kind in WITH_CLASSES
    }
    if len(classes) > 1:
        findings.add(("variants",), f"variants have different classes ({show(sorted(map(list, classes)))}).")
    _check_tasks(sweep, experiments, findings)
    by_name = {one.variant.name: one.loaded for one in experiments}
    for index, variant in enumerate(sweep.variants):
        loaded = by_name.get(variant.name)
        if loaded is None:  # why is said elsewhere
            continue
        if variant.model is not None and variant.model not in (known := models_of(loaded)):
            findings.add(
                ("variants", index, "model"),
                f"its run has no such model ({show(variant.model)}). {suggest(variant.model, known)}",
            )
        elif sweep.curve is not None:
            _check_curve(sweep.curve, index, variant.model, loaded, findings)


def _check_tasks(sweep: Sweep, experiments: Sequence[SweepExperiment], findings: Findings) -> None:
    """Checks that all variants predict the same, and that the sweep's metrics are of that task."""
    nodes = [one.loaded.recipe.task for one in experiments]
    predicted = {(node.kind, *outcome_columns(node).values()) for node in nodes}
    kinds = sorted({node.kind for node in nodes})
    if len(predicted) > 1:
        findings.add(("variants",), f"variants have different tasks ({', '.join(kinds)}).")
    known = {metric for kind in kinds for metric in SHOWN[kind]}
    if kinds and sweep.metric is not None and sweep.metric not in known:
        sentence = f"no metric of the task {kinds[0]} ({show(sweep.metric)}). {suggest(sweep.metric, known)}"
        findings.add(("metric",), sentence)
    if sweep.roc and kinds and kinds[0] not in WITH_ROC:
        able = " and ".join(WITH_ROC)
        findings.add(("roc",), f"the task {kinds[0]} has no ROC curves; {able} has. Leave it out.")
    for index, variant in enumerate(sweep.variants):
        for metric in set(variant.paper) - known if kinds else ():
            findings.add(
                ("variants", index, "paper", metric),
                f"no metric of the task {kinds[0]} ({show(metric)}). {suggest(metric, known)}",
            )


def _check_curve(curve: str, index: int, model: str | None, loaded: LoadedRecipe, findings: Findings) -> None:
    """Checks that a variant's run tests its model with cells of the curve's modality blanked."""
    recipe = loaded.recipe
    if curve not in recipe.evaluation.missing:
        sentence = f"has no modality of that name ({show(curve)}). {suggest(curve, recipe.modalities)}"
        if curve in recipe.modalities:
            sentence = (
                f"`evaluation.missing` has no rates of the sweep's `curve` ({curve}). Give some, such as "
                f"evaluation.missing: {{{curve}: [0, 0.5]}}."
            )
        findings.add(("variants", index), sentence)
    elif (reads := model or models_of(loaded)[0]) not in (FUSED, curve):
        findings.add(("variants", index, "model"), f"it does not read the sweep's `curve` ({show(reads)}).")


def models_of(loaded: LoadedRecipe) -> list[str]:
    """Returns the names of the models that a run of a recipe scores, the main one first."""
    recipe = loaded.recipe
    modalities = list(recipe.modalities)
    names = [FUSED] if len(modalities) > 1 else modalities
    if len(modalities) > 1 and recipe.evaluation.modalities_alone:
        names = [*names, *modalities]
    pretrained = [stage.pretrain.split(".")[0] for stage in recipe.stages if hasattr(stage, "pretrain")]
    blanked = [
        missing_name(model, modality, rate)
        for modality, rates in recipe.evaluation.missing.items()
        for rate in rates
        for model in names
        if model in (names[0], modality)
    ]
    return [*names, *dict.fromkeys(name + PRETRAINED for name in pretrained), *blanked]
