"""The tasks, one file each; `fusionkit.task` says what they have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from fusionkit.recipe.task_nodes import (
    ClassificationNode,
    MultiLabelNode,
    OrdinalNode,
    RegressionNode,
    SurvivalNode,
)
from fusionkit.task import Classification, Task
from fusionkit.tasks.multi_label import MultiLabel
from fusionkit.tasks.ordinal import Ordinal
from fusionkit.tasks.regression import Regression
from fusionkit.tasks.survival import Survival


def make_task(
    node: ClassificationNode | OrdinalNode | MultiLabelNode | RegressionNode | SurvivalNode,
    classes: Sequence[str],
) -> Task:
    """Returns the task that a recipe names.

    Args:
        node: The recipe's.
        classes: The source's, for the tasks that predict one of them.
    """
    match node:
        case ClassificationNode():
            return Classification(classes, node.focal_gamma if node.loss == "focal" else None)
        case OrdinalNode():
            return Ordinal(classes)
        case MultiLabelNode():
            return MultiLabel(node)
        case RegressionNode():
            return Regression(node)
        case SurvivalNode():
            return Survival(node)
    assert_never(node)
