"""The third pass: stages against parts, and what one option asks of another."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from fusionkit.errors import suggest
from fusionkit.recipe.components import PartPlan
from fusionkit.recipe.findings import Findings
from fusionkit.recipe.schema import (
    MAX_TESTS,
    MAX_TRAININGS,
    SETS,
    ColumnSplit,
    FitStage,
    FoldSplit,
    PretrainStage,
    Recipe,
    Stage,
    SupervisedOptions,
    TrainStage,
    wrong_name,
)
from fusionkit.recipe.shape import TreePath, show
from fusionkit.registry import Registry
from fusionkit.specs import EncoderSpec, HeadSpec, Learns, RaiserSpec, may_say

Parts = Mapping[str, PartPlan | None]
FITTED = ("closed_form", "self_supervised")
"""How a part learns that learns in a fit stage."""
BY_GRADIENT = ("gradient", "self_supervised")
"""How a part learns that a train stage can teach by gradient."""


def verb_of(stage: Stage) -> str:
    """Returns fit, pretrain or train."""
    return {FitStage: "fit", PretrainStage: "pretrain", TrainStage: "train"}[type(stage)]


def parts_of(stage: Stage) -> tuple[str, ...]:
    """Returns the part paths that a stage names."""
    if isinstance(stage, PretrainStage):
        return (stage.pretrain,)
    return stage.fit if isinstance(stage, FitStage) else stage.train


def learns(plan: PartPlan) -> Learns:
    """Returns how a part learns."""
    assert isinstance(plan.card, EncoderSpec | RaiserSpec | HeadSpec)
    return plan.card.learns


def _is_ready(plan: PartPlan, *, is_scaled: bool) -> bool:
    """Whether a part may be used without a stage that names it."""
    if learns(plan) == "nothing":
        # the stage that names the head is where what comes into it is scaled
        return plan.path != "head" or not is_scaled
    return isinstance(plan.card, EncoderSpec | RaiserSpec) and plan.card.is_pretrained(plan.config)


def check_stages(stages: Mapping[int, Stage], parts: Parts, findings: Findings) -> None:
    """Checks the stages' names and the parts that they name; `stages` is by position."""
    seen: set[str] = set()
    for index, stage in stages.items():
        path: TreePath = ("stages", index)
        if sentence := wrong_name(stage.name):
            findings.add((*path, "name"), f"{sentence} ({show(stage.name)}).")
        if stage.name in seen:
            findings.add((*path, "name"), f"another stage has this name ({show(stage.name)}). Rename one.")
        seen.add(stage.name)
        _check_parts(stage, path, parts, findings)


def _check_parts(stage: Stage, path: TreePath, parts: Parts, findings: Findings) -> None:
    verb, named = verb_of(stage), parts_of(stage)
    for index, part in enumerate(named):
        where: TreePath = (*path, verb) if isinstance(stage, PretrainStage) else (*path, verb, index)
        if part not in parts:
            findings.add(where, f"no such part ({show(part)}). {suggest(part, parts)}")
        elif part in named[:index]:
            findings.add(where, f"the part is named twice ({show(part)}). Keep one.")
        elif isinstance(stage, PretrainStage) and not part.endswith(".encoder"):
            encoders = [other for other in parts if other.endswith(".encoder")]
            findings.add(
                where, f"only an encoder can be pretrained ({show(part)}). {suggest(part, encoders)}"
            )
        else:
            _check_verb(verb, parts[part], where, findings)
    if isinstance(stage, TrainStage):
        _check_closed_head(stage, path, parts, findings)


def _check_closed_head(stage: TrainStage, path: TreePath, parts: Parts, findings: Findings) -> None:
    """Reports what a train stage asks of a head that learns in closed form, and no such head can do."""
    head = parts.get("head")
    if head is None or learns(head) != "closed_form":
        return
    for index, part in enumerate(stage.train):
        plan = parts.get(part)
        if part != "head" and plan is not None and learns(plan) in BY_GRADIENT:
            other = "a pretrain" if learns(plan) == "gradient" else "a fit"
            findings.add(
                (*path, "train", index),
                f"{part} would learn by gradient through {head.use}, which learns in closed form and passes "
                f"none on. Name it in {other} stage.",
            )
    for option in ("class_weights", "sampling", "subject_weights"):
        if getattr(stage, option) is not None and "head" in stage.train:
            findings.add(
                (*path, option),
                f"{head.use} learns in closed form, and not from a stage's loss. Set null here, and look at "
                f"the options of {head.use}.",
            )


def _check_verb(verb: str, plan: PartPlan | None, where: TreePath, findings: Findings) -> None:
    how = learns(plan) if plan is not None else "nothing"
    if verb == "fit" and how == "gradient":
        assert plan is not None
        other = "a train stage" if isinstance(plan.card, HeadSpec) else "a pretrain or train stage"
        findings.add(
            where, f"{plan.use} learns from outcomes, which a fit stage does not see. Name it in {other}."
        )
    if verb == "fit" and how == "nothing" and plan is not None and isinstance(plan.card, HeadSpec):
        findings.add(where, f"{plan.use} is a head, which no fit stage reaches. Name it in a train stage.")
    if verb == "pretrain" and plan is not None and how != "gradient":
        cure = "Remove the stage" if how == "nothing" else "Name it in a fit stage"
        findings.add(where, f"{plan.use} does not learn by gradient from outcomes. {cure}.")


def check_order(stages: Mapping[int, Stage], parts: Parts, findings: Findings, *, is_scaled: bool) -> None:
    """Checks that every part that learns is named, and first named before any stage that uses it.

    Args:
        stages: The stages, by position.
        parts: Part path -> plan; None where one is wrong.
        findings: Where problems go.
        is_scaled: Whether any modality is standardised before the head.
    """
    first: dict[str, int] = {}
    for index, stage in stages.items():
        for part in parts_of(stage):
            first.setdefault(part, index)
    for part, plan in parts.items():
        if plan is None or _is_ready(plan, is_scaled=is_scaled):
            continue
        path: TreePath = ("head",) if part == "head" else ("modalities", *part.split("."))
        if part not in first:
            what = "learns" if learns(plan) != "nothing" else "needs standardised features"
            findings.add(path, f"{plan.use} {what}, and no stage names it. {_advice(part, plan)}")
            continue
        for index, stage in stages.items():
            if index < first[part] and _uses(stage, part, parts):
                later = stages[first[part]].name
                what = "learns" if learns(plan) != "nothing" else "gets standardised features"
                sentence = f"uses {part}, which {what} only later, in {show(later)}. Move {show(later)} up."
                findings.add(("stages", index), sentence)
                break


def check_taught(stages: Mapping[int, Stage], parts: Parts, findings: Findings) -> None:
    """Checks that a head that learns without outcomes is also taught what to answer."""
    plan = parts.get("head")
    if plan is None or learns(plan) != "self_supervised":
        return
    named = [stage for stage in stages.values() if "head" in parts_of(stage)]
    if named and not any(isinstance(stage, TrainStage) for stage in named):
        findings.add(
            ("head",),
            f"{plan.use} learns what to answer from outcomes, which a fit stage does not see. "
            + _advice("head", plan),
        )


def _uses(stage: Stage, part: str, parts: Parts) -> bool:
    """Whether a stage computes with the result of a part."""
    if isinstance(stage, TrainStage):
        return True
    head = parts.get("head")
    if "head" in parts_of(stage) and head is not None and learns(head) in FITTED:
        return True
    modality, _, role = part.partition(".")
    return role == "encoder" and f"{modality}.raiser" in parts_of(stage)


def _advice(part: str, plan: PartPlan) -> str:
    if isinstance(plan.card, HeadSpec):
        other = ", or set standardize: false in every modality" if learns(plan) == "nothing" else ""
        return f"Add a stage with `train: [{part}]`{other}."
    if learns(plan) != "gradient":
        return f"Add it to a stage, such as `fit: [{part}]`."
    if isinstance(plan.card, EncoderSpec):
        return f"Add a stage with `pretrain: {part}` or `train: [head, {part}]`."
    return f"Add a stage with `train: [head, {part}]`."


def check_auxiliary(stages: Mapping[int, Stage], findings: Findings) -> None:
    """Checks that a weight of a second task has one."""
    for index, stage in stages.items():
        if isinstance(stage, PretrainStage) and stage.auxiliary is None and stage.auxiliary_weight != 1:
            findings.add(
                ("stages", index, "auxiliary_weight"),
                f"there is no second task to weigh ({stage.auxiliary_weight:g}). "
                "Name its column in `auxiliary`, or leave the weight out.",
            )


def check_missing(parts: Parts, registry: Registry, findings: Findings) -> None:
    """Checks that what may emit NaN is followed by what accepts it."""
    for plan in parts.values():
        if plan is None or not isinstance(plan.card, EncoderSpec) or not plan.card.emits_missing(plan.config):
            continue
        name = f"{plan.modality}.raiser"
        follower = parts.get(name)
        is_accepted = (
            follower is not None and isinstance(follower.card, RaiserSpec) and follower.card.accepts_missing
        )
        if is_accepted or (name in parts and follower is None):
            continue
        accepting = [
            card.name for card, _ in registry.cards("raiser") if getattr(card, "accepts_missing", False)
        ]
        who = follower.use if follower is not None else "the head"
        cure = _option_without_missing(plan.card, plan)
        raisers = f"use a raiser that accepts them ({', '.join(accepting)})" if accepting else ""
        options = " or ".join(choice for choice in (cure, raisers) if choice)
        sentence = f"{plan.use} may emit missing values, which {who} does not accept. "
        findings.add(
            ("modalities", str(plan.modality), "encoder"), sentence + f"{options[:1].upper()}{options[1:]}."
        )


def _option_without_missing(card: EncoderSpec, plan: PartPlan) -> str:
    """Finds the one option whose change stops an encoder from emitting missing values."""
    for name, field in type(plan.config).model_fields.items():
        choices = (True, False) if field.annotation is bool else get_args(field.annotation)
        for choice in choices:
            if isinstance(choice, str | bool) and not card.emits_missing(
                plan.config.model_copy(update={name: choice})
            ):
                shown = str(choice).lower() if isinstance(choice, bool) else choice
                return f"set modalities.{plan.path}.{name}: {shown}"
    return ""


def reads_tokens(parts: Parts, modality: str) -> bool:
    """Says whether the head reads the tokens of a modality's encoder, in place of a feature vector."""
    head, encoder = parts.get("head"), parts.get(f"{modality}.encoder")
    if head is None or encoder is None or f"{modality}.raiser" in parts:
        return False
    assert isinstance(head.card, HeadSpec)
    assert isinstance(encoder.card, EncoderSpec)
    return head.card.takes_tokens(head.config) and encoder.card.gives_tokens(encoder.config)


def check_token_readers(parts: Parts, registry: Registry, findings: Findings) -> None:
    """Checks that a head that takes tokens gets some."""
    head = parts.get("head")
    takes = head is not None and isinstance(head.card, HeadSpec) and head.card.takes_tokens(head.config)
    encoders = {path.partition(".")[0]: plan for path, plan in parts.items() if path.endswith(".encoder")}
    if head is None or not takes or None in encoders.values():
        return
    if any(reads_tokens(parts, modality) for modality in encoders):
        return
    given = ", ".join(
        f"{modality}: {plan.use}{_why_vector(plan, f'{modality}.raiser' in parts)}"
        for modality, plan in encoders.items()
        if plan is not None
    )
    able = [card.name for card, _ in registry.cards("encoder") if may_say(card, "gives_tokens")]
    findings.add(
        ("head",),
        f"{head.use} would read tokens, and no modality gives any ({given}). Look at its options, or use an "
        f"encoder that gives them, without a raiser{': ' if able else ''}{', '.join(able)}.",
    )


def _why_vector(plan: PartPlan, is_raised: bool) -> str:
    """Says why an encoder that may give tokens gives a vector here."""
    if is_raised:
        return " with a raiser"
    return " with these options" if may_say(plan.card, "gives_tokens") else ""


def check_validation(recipe: Recipe, findings: Findings) -> None:
    """Checks that what needs validation subjects has them, and that leakage is asked for in words."""
    split = recipe.split
    if not split.validation:
        cure = (
            "Name its values in split.validation"
            if isinstance(split, ColumnSplit)
            else "Set split.validation: 0.2"
        )
        for index, stage in enumerate(recipe.stages):
            if isinstance(stage, SupervisedOptions) and stage.early_stopping is not None:
                path: TreePath = ("stages", index, "early_stopping")
                findings.add(
                    path, f"needs validation subjects, and the split keeps none. {cure}, or null here."
                )
        if recipe.evaluation.threshold == "validation":
            sentence = f"needs validation subjects, and the split keeps none. {cure}, or a number here."
            findings.add(("evaluation", "threshold"), sentence)
    if not isinstance(split, ColumnSplit) and split.unit == "sample" and not split.accept_leakage:
        findings.add(
            ("split", "unit"),
            "by sample, one subject's samples fall on both sides, which is leakage. "
            "Write `unit: subject`, or also `accept_leakage: true`; the report will say so.",
        )


def check_absence(recipe: Recipe, parts: Parts, findings: Findings) -> None:
    """Checks that what is asked for absent modalities has a stage, and a head, that learn by gradient."""
    head = parts.get("head")
    in_train = [
        parts.get(part) for stage in recipe.stages if isinstance(stage, TrainStage) for part in stage.train
    ]
    is_trained = any(plan is None or learns(plan) in BY_GRADIENT for plan in in_train)
    for name, node in recipe.modalities.items():
        path: TreePath = ("modalities", name)
        if node.absent == "learned" and head is not None and learns(head) not in BY_GRADIENT:
            findings.add(
                (*path, "absent"),
                f"the vector learns by gradient through the head, and {head.use} passes none on (learned). "
                "Use another head, or write zero.",
            )
        if node.dropout and not is_trained:
            findings.add(
                (*path, "dropout"),
                f"train stages that learn by gradient take a modality away, and there is none "
                f"({node.dropout:g}). Train a head that learns by gradient, or write 0.",
            )


def check_blanking(tree: Mapping[str, Any], findings: Findings) -> None:
    """Checks which modalities are tested with cells blanked, and at which rates, in the tree as written."""
    modalities, evaluation = tree.get("modalities"), tree.get("evaluation")
    given = evaluation.get("missing") if isinstance(evaluation, dict) else None
    if not isinstance(given, dict) or not isinstance(modalities, dict):
        return  # the shape pass has said what is wrong
    for name, rates in given.items():
        path: TreePath = ("evaluation", "missing", name)
        if name not in modalities:
            findings.add(path, f"no such modality ({show(name)}). {suggest(str(name), modalities)}")
        if rates == []:
            findings.add(path, "there is no rate ([]). Give shares from 0 to 1, such as [0.1, 0.3, 0.5].")
        seen: set[str] = set()
        for index, rate in enumerate(rates if isinstance(rates, list) else []):
            text = f"{rate:g}" if isinstance(rate, int | float) else ""
            if text in seen:
                findings.add((*path, index), f"the rate is given twice ({text}). Keep one.")
            seen |= {text} - {""}


def check_sets(recipe: Recipe, findings: Findings) -> None:
    """Checks that no value of a split's column stands for two sets."""
    split = recipe.split
    if not isinstance(split, ColumnSplit):
        return
    sets: dict[str, list[str]] = {}
    for name in SETS:
        for value in getattr(split, name):
            sets.setdefault(value, []).append(name)
    for value, names in sets.items():
        if len(names) > 1:
            findings.add(("split",), f"the value '{value}' stands for {' and '.join(names)}. Name it once.")


def check_size(recipe: Recipe, findings: Findings) -> None:
    """Checks that folds, repeats and seeds, each of them sensible, make no absurd number together."""
    split = recipe.split
    repeats = 1 if isinstance(split, ColumnSplit) else split.repeats
    folds = split.folds if isinstance(split, FoldSplit) else 1
    if recipe.n_trainings > MAX_TRAININGS:
        findings.add(
            ("split",),
            f"too many trainings of one model ({folds} folds x {repeats} repeats x {recipe.seeds} seeds = "
            f"{recipe.n_trainings}). At most {MAX_TRAININGS} are run.",
        )
    draws = recipe.evaluation.missing_draws
    rates = sum(map(len, recipe.evaluation.missing.values()))
    if folds * repeats * rates * draws > MAX_TESTS:
        findings.add(
            ("evaluation", "missing"),
            f"too many tests of one model ({folds} folds x {repeats} repeats x {rates} rates x {draws} draws "
            f"= {folds * repeats * rates * draws}). At most {MAX_TESTS} are run.",
        )
