"""The tasks, one file each; `fusionkit.task` says what they have in common."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit.recipe.task_nodes import (
    ClassificationNode,
    MultiLabelNode,
    OrdinalNode,
    RegressionNode,
    SurvivalNode,
)
from fusionkit.task import Classification, Task


def make_task(
    node: ClassificationNode | OrdinalNode | MultiLabelNode | RegressionNode | SurvivalNode,
    classes: Sequence[str],
) -> Task:
    """Returns the task that a recipe names.

    Args:
        node: The recipe's.
        classes: The source's, for the tasks that predict one of them.
    """
    if isinstance(node, ClassificationNode):
        return Classification(classes, node.focal_gamma if node.loss == "focal" else None)
    if isinstance(node, SurvivalNode):
        from fusionkit.tasks.survival import Survival

        return Survival(node)
    if isinstance(node, RegressionNode):
        from fusionkit.tasks.regression import Regression

        return Regression(node)
    if isinstance(node, MultiLabelNode):
        from fusionkit.tasks.multi_label import MultiLabel

        return MultiLabel(node)
    from fusionkit.tasks.ordinal import Ordinal

    return Ordinal(classes)
