"""What determines a step's result; its sha256 is the step's address."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fusionkit.interfaces import InputSpec
from fusionkit.recipe.schema import PretrainStage
from fusionkit.store import FORMAT, address_of
from fusionkit.tokens import PACKED_VERSION
from fusionkit.training.experiment import Experiment
from fusionkit.training.pretrain import auxiliary_values
from fusionkit.training.train import LOOP_VERSION

if TYPE_CHECKING:
    from fusionkit.training.stages import Step


def describe_step(experiment: Experiment, step: Step) -> dict[str, Any]:
    """Returns all that determines a step's result; its sha256 is the address."""
    modalities = sorted({path.split(".")[0] for path in step.used} - {"head"})
    is_closed_form = step.verb == "fit" and experiment.factory.learns(step.learned[0]) == "closed_form"
    left_out = {"name", "fit", "train", "pretrain"}
    # the address of a stage without them is older than these options
    if getattr(step.stage, "auxiliary", None) is None:
        left_out |= {"auxiliary", "auxiliary_weight"}
    if getattr(step.stage, "sampling", None) is None:
        left_out |= {"sampling"}
    options = {} if is_closed_form else step.stage.model_dump(mode="json", exclude=left_out)
    readers = {name: experiment.reader(name) for name in modalities}
    return {
        "format": FORMAT,
        "loop": LOOP_VERSION,
        "verb": step.verb,
        "options": options,
        "learned": sorted(step.learned),
        "parts": {
            path: experiment.describe_part(path, origin, is_pretrained=step.verb == "pretrain")
            for path, origin in step.used.items()
        },
        # a head may join its modalities in the recipe's order, and keys are sorted
        "order": [[name, experiment.factory.dim(name)] for name in experiment.modalities]
        if "head" in step.used
        else [],
        "inputs": {name: _describe_input(reader.spec, step) for name, reader in readers.items()},
        "rows": _digest_rows(experiment, step.rows, modalities),
        "validation": _digest_rows(experiment, step.validation, modalities),
        "task": experiment.task.identity(),
        "seed": step.seed,
        **_describe_auxiliary(experiment, step),
        **_describe_dropout(experiment, step),
        **_describe_tokens(experiment, step, modalities),
        **experiment.device.identity(),
    }


def _describe_auxiliary(experiment: Experiment, step: Step) -> dict[str, Any]:
    """Returns the values that a second task learns; nothing without one."""
    if not isinstance(step.stage, PretrainStage) or step.stage.auxiliary is None:
        return {}
    return {"auxiliary": address_of(list(auxiliary_values(experiment, step.stage, step.rows).values()))}


def _describe_dropout(experiment: Experiment, step: Step) -> dict[str, Any]:
    """Returns what a train stage takes away; nothing where it takes nothing: such addresses are older."""
    shares = experiment.factory.loaded.recipe.dropouts if step.verb == "train" else {}
    return {"dropout": shares} if shares else {}


def _describe_tokens(experiment: Experiment, step: Step, modalities: Sequence[str]) -> dict[str, Any]:
    """Returns how many tokens are read of which encoders; nothing where none are, or nothing reads them."""
    if not any(path == "head" or path.endswith(".scale") for path in step.used):
        return {}
    found = {name: n for name in modalities if (n := experiment.factory.n_tokens(name))}
    return {"tokens": found, "packed": PACKED_VERSION} if found else {}


def _describe_input(spec: InputSpec, step: Step) -> dict[str, Any]:
    views = {"views": list(spec.views(training=True)), "draws": spec.draws}
    if step.validation:  # early stopping looks at evaluation views
        views["validation_views"] = list(spec.views(training=False))
    return {"spec": dict(spec.identity()), **views}


def _digest_rows(experiment: Experiment, rows: Sequence[int], modalities: Sequence[str]) -> str:
    manifest = experiment.manifest
    answers = [manifest.cells[name] for name in experiment.task.columns]
    readers = [experiment.reader(name) for name in modalities]
    digest = hashlib.sha256()
    for row in rows:  # one by one: as one value, the rows of a large cohort would fill the memory
        keys = [key.hex() if (key := reader.key(row)) else None for reader in readers]
        line = [manifest.samples[row], manifest.subjects[row], manifest.outcomes[row], keys]
        line += [cells[row] for cells in answers]
        digest.update(bytes.fromhex(address_of(line)))
    return digest.hexdigest()
