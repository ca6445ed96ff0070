"""The second pass: every `use` is looked up, and its options checked by the component's own config class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from fusionkit.errors import FusionkitError, RecipeError, suggest
from fusionkit.recipe.findings import Findings
from fusionkit.recipe.shape import TreePath, explain, show, validate_strictly
from fusionkit.registry import Plugin, Registry
from fusionkit.specs import COMPONENT_KINDS, ComponentConfig, DataFileMarker, EncoderSpec, SourceSpec, Spec

if TYPE_CHECKING:
    from fusionkit.interfaces import Source


@dataclass(frozen=True)
class PartPlan:
    """One component of a recipe, checked.

    Args:
        path: Its part path, such as image.encoder, emr.raiser, head; or source.
        modality: The modality it belongs to.
        use: The component's name.
        options: Its options as JSON values, defaults filled in.
        config: Its options, typed.
        card: What the plugin says about it.
        plugin: The plugin that offers it.
    """

    path: str
    modality: str | None
    use: str
    options: dict[str, Any]
    config: ComponentConfig
    card: Spec
    plugin: Plugin


def plan_components(
    tree: dict[str, Any], registry: Registry, findings: Findings
) -> dict[str, PartPlan | None]:
    """Returns the plan of every component of the tree, in data-flow order; None where one is wrong."""
    return {
        part: _plan(part, kind, path, node, registry, findings) for part, kind, path, node in _use_nodes(tree)
    }


def _use_nodes(tree: dict[str, Any]) -> Iterator[tuple[str, str, TreePath, Any]]:
    """Yields part path, kind, path in the tree, and node of everything that names a component."""
    yield "source", "source", ("source",), tree.get("source")
    modalities = tree.get("modalities")
    for name, modality in modalities.items() if isinstance(modalities, dict) else ():
        for kind in ("encoder", "raiser"):
            node = modality.get(kind) if isinstance(modality, dict) else None
            if node is not None or kind == "encoder":
                yield f"{name}.{kind}", kind, ("modalities", name, kind), node
    yield "head", "head", ("head",), tree.get("head")


def _plan(
    part: str, kind: str, path: TreePath, node: Any, registry: Registry, findings: Findings
) -> PartPlan | None:
    use = node.get("use") if isinstance(node, dict) else None
    if not isinstance(use, str):
        return None  # the first pass has said so
    found = _find(kind, use, path, registry, findings)
    if found is None:
        return None
    card, plugin = found
    options = {key: value for key, value in node.items() if key != "use"}
    try:
        config = validate_strictly(card.config, options)
        options = config.model_dump(mode="json")
    except ValidationError as error:
        for inner, sentence in explain(error, card.config, options, f"option of {use}"):
            findings.add((*path, *inner), sentence)
        return None
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        findings.add_plugin(
            path, f"plugin {plugin.name} fails to check the options of {use} ({_reason(error)})."
        )
        return None
    modality = part.split(".")[0] if "." in part else None
    return PartPlan(part, modality, use, options, config, card, plugin)


def _find(
    kind: str, use: str, path: TreePath, registry: Registry, findings: Findings
) -> tuple[Spec, Plugin] | None:
    claims = [(card, plugin) for card, plugin in registry.cards(kind) if card.name == use]
    if len(claims) == 1:
        return claims[0]
    if claims:
        owners = " and ".join(plugin.name for _, plugin in claims)
        findings.add_plugin((*path, "use"), f"{kind} '{use}' is claimed by {owners}. Uninstall one of them.")
        return None
    others = [other for other in COMPONENT_KINDS if use in registry.names(other)]
    hint = f"It is {'an' if others[0] == 'encoder' else 'a'} {others[0]}. " if others else ""
    known = registry.hint(use, [kind])
    findings.add((*path, "use"), f"there is no {kind} of that name ({show(use)}). {hint}{known}")
    return None


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def data_files(config: ComponentConfig, data_root: Path) -> dict[str, Path]:
    """Returns the path of every DataFile option that is neither empty nor one of the class's `not_files`."""
    return {
        name: data_root.absolute() / value
        for name in file_options(config)
        if (value := getattr(config, name)) and value not in config.not_files
    }


def file_options(config: ComponentConfig) -> list[str]:
    """Returns the names of the DataFile options."""
    return [
        name
        for name, field in type(config).model_fields.items()
        if any(isinstance(marker, DataFileMarker) for marker in field.metadata)
    ]


def resolve_files(config: ComponentConfig, data_root: Path) -> ComponentConfig:
    """Returns a config whose DataFile options are paths under the data root; words such as `none` stay."""
    return config.model_copy(update={name: str(path) for name, path in data_files(config, data_root).items()})


def build_source(plan: PartPlan, data_root: Path, findings: Findings) -> Source | None:
    """Builds the source, which is cheap and reads no data; its file options resolve under the data root."""
    assert isinstance(plan.card, SourceSpec)
    try:
        return plan.card.build(resolve_files(plan.config, data_root))
    except RecipeError as error:
        for problem in error.problems:
            findings.add(("source",), problem)
    except FusionkitError as error:
        findings.others.append(error)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        findings.add_plugin(
            ("source", "use"), f"plugin {plan.plugin.name} fails to build {plan.use} ({_reason(error)})."
        )
    return None


def resolve_columns(
    tree: dict[str, Any],
    parts: Mapping[str, PartPlan | None],
    source: Source,
    outcome: Mapping[str, str],
    findings: Findings,
) -> dict[str, tuple[str, ...]]:
    """Returns the columns that each modality reads.

    By default all of the kinds that its encoder reads, but those of the outcome.

    Args:
        tree: The recipe as written.
        parts: Part path -> plan.
        source: Whose columns they are.
        outcome: Key of the task -> the column that it names.
        findings: Where problems go.
    """
    columns = {}
    answers = {name: key for key, name in outcome.items()}
    for part, plan in parts.items():
        if plan is None or not isinstance(plan.card, EncoderSpec):
            continue
        modality = part.split(".")[0]
        named = tree["modalities"][modality].get("columns")
        path: TreePath = ("modalities", modality, "columns")
        kinds = " or ".join(plan.card.reads)
        if named is None:
            columns[modality] = tuple(
                name
                for name, spec in source.schema.items()
                if spec.kind in plan.card.reads and name not in answers
            )
            if not columns[modality]:
                findings.add(path, f"the data have no column of kind {kinds}, which {plan.use} reads.")
        elif isinstance(named, list) and all(isinstance(name, str) for name in named):
            columns[modality] = tuple(named)
            _check_named(named, path, plan, source, answers, findings)
            for index, name in enumerate(named):
                if name in answers:
                    findings.add(
                        (*path, index), f"an outcome cannot be an input ('{name}' is task.{answers[name]})."
                    )
    return columns


def _check_named(
    named: list[str],
    path: TreePath,
    plan: PartPlan,
    source: Source,
    answers: Mapping[str, str],
    findings: Findings,
) -> None:
    assert isinstance(plan.card, EncoderSpec)
    kinds = " or ".join(plan.card.reads)
    for index, name in enumerate(named):
        spec = source.schema.get(name)
        if name in answers:  # which is wrong enough
            continue
        if spec is None:
            findings.add(
                (*path, index), f"the data have no such column ({show(name)}). {suggest(name, source.schema)}"
            )
        elif spec.kind not in plan.card.reads:
            fitting = suggest(
                name, [other for other, spec in source.schema.items() if spec.kind in plan.card.reads]
            )
            findings.add(
                (*path, index), f"{plan.use} reads columns of kind {kinds} ({name} is {spec.kind}). {fitting}"
            )
        elif name in named[:index]:
            findings.add((*path, index), f"the column is named twice ({show(name)}). Keep one.")
