"""What a task asks of the source, the head, the stages and the evaluation."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit.recipe.components import PartPlan
from fusionkit.recipe.findings import Findings
from fusionkit.recipe.schema import Recipe, SupervisedOptions
from fusionkit.recipe.task_nodes import WITH_CLASSES, ClassificationNode
from fusionkit.specs import HeadSpec

_OF_CLASSES = {
    "views": ("vote",),
    "samples": ("mean_logit", "max_probability", "vote"),
    "threshold": ("validation",),
    "subject_outcome": ("any_positive",),
}
"""Options of the evaluation -> the values that mean something to classes alone."""


def check_task(
    recipe: Recipe,
    classes: Sequence[str],
    source: PartPlan | None,
    head: PartPlan | None,
    findings: Findings,
) -> None:
    """Checks what the task asks of all else.

    Args:
        recipe: The recipe, typed.
        classes: The source's classes.
        source: The source's plan; one with an option `outcome` needs it for classes.
        head: The head's plan; None where it is wrong.
        findings: Where problems go.
    """
    kind = recipe.task.kind
    _check_classes(kind, classes, source, findings)
    if head is not None and isinstance(head.card, HeadSpec):
        if not head.card.can_do(kind):
            able = ", ".join(head.card.tasks or ("classification",))
            findings.add(("head",), f"{head.use} cannot do this task ({kind}). It does: {able}.")
        elif kind == "regression" and head.card.learns == "nothing":
            findings.add(("head",), f"{head.use} learns nothing, and regression needs a head that learns.")
    _check_focal(recipe, findings)
    _check_stages(recipe, findings)
    if kind not in WITH_CLASSES:
        for option, values in _OF_CLASSES.items():
            if (value := getattr(recipe.evaluation, option)) in values:
                findings.add(
                    ("evaluation", option), f"is for classes ({value}), and the task is {kind}. Leave it out."
                )


def _check_classes(kind: str, classes: Sequence[str], source: PartPlan | None, findings: Findings) -> None:
    if kind not in WITH_CLASSES:
        return
    least = 3 if kind == "ordinal" else 2
    if source is not None and source.options.get("outcome", "") is None:
        findings.add(
            ("source", "outcome"),
            f"{kind} needs the column of the outcome (null). Name it here, or set another task.kind.",
        )
    elif len(classes) < least:
        findings.add(
            ("task",),
            f"{kind} needs {least} classes or more, and the source names {len(classes)}. "
            "Name them in the source, or set another task.kind.",
        )


def _check_focal(recipe: Recipe, findings: Findings) -> None:
    task = recipe.task
    if isinstance(task, ClassificationNode) and task.loss != "focal" and task.focal_gamma != 2:
        findings.add(
            ("task", "focal_gamma"),
            f"the loss is {task.loss} ({task.focal_gamma:g}). Set loss: focal, or leave it out.",
        )


def _check_stages(recipe: Recipe, findings: Findings) -> None:
    kind = recipe.task.kind
    for index, stage in enumerate(recipe.stages):
        if not isinstance(stage, SupervisedOptions):
            continue
        for option in ("class_weights", "sampling"):
            if getattr(stage, option) is not None and kind not in WITH_CLASSES:
                findings.add(
                    ("stages", index, option), f"is for classes, and the task is {kind}. Set null here."
                )
        if stage.class_weights is not None and stage.sampling is not None:
            findings.add(
                ("stages", index, "sampling"),
                "with class_weights, classes would be balanced twice. Keep one of them.",
            )
        if kind == "survival" and stage.batch_size == 1:
            findings.add(
                ("stages", index, "batch_size"),
                "who has the event is compared with the others of the batch (1). Set more, such as 64.",
            )
