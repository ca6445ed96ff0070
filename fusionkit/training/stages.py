"""Stages as steps with addresses: planned without computing, computed once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionkit.core_parts import Scale
from fusionkit.data.batches import Units, cut_batches, make_units
from fusionkit.data.splits import Fold
from fusionkit.errors import DataError, PluginError
from fusionkit.interfaces import Fittable, SelfSupervised
from fusionkit.model import calling, seed_of, state_digest
from fusionkit.recipe.checks import parts_of
from fusionkit.recipe.schema import FitStage, PretrainStage, TrainStage
from fusionkit.store import Artefact, address_of
from fusionkit.training.addresses import describe_step
from fusionkit.training.experiment import Experiment, Origin, Origins, chain_inputs
from fusionkit.training.joined import head_inputs, head_samples, head_units
from fusionkit.training.memory import take_rows
from fusionkit.training.pretrain import run_pretrain
from fusionkit.training.supervised import run_train
from fusionkit.training.train import Loop, delete_checkpoint, run_loop

EXTRA_STATE = "_extra_state"
"""Torch's key of what get_extra_state gives."""


@dataclass(frozen=True)
class Step:
    """One artefact to be: what learns, from what, on which rows.

    Args:
        verb: fit, pretrain or train.
        stage: The recipe's stage.
        learned: Paths of the parts that learn.
        used: Where every part that takes part comes from.
        rows: Training rows.
        validation: Validation rows.
        seed: What its randomness derives from.
        address: Its place in the store.
    """

    verb: str
    stage: FitStage | PretrainStage | TrainStage
    learned: tuple[str, ...]
    used: Origins
    rows: tuple[int, ...]
    validation: tuple[int, ...]
    seed: int
    address: str = ""


@dataclass(frozen=True)
class Plan:
    """The steps of one model, and where every part's state comes from when they are done."""

    steps: tuple[Step, ...]
    origins: dict[str, Origin]


def plan_steps(experiment: Experiment, fold: Fold, member: int) -> Plan:
    """Plans the stages of a recipe for one fold and one initialisation; computes nothing that learns."""
    planner = _Planner(experiment, fold, member)
    for stage in experiment.factory.loaded.recipe.stages:
        planner.add(stage)
    return Plan(tuple(planner.steps), planner.origins)


class _Planner:
    def __init__(self, experiment: Experiment, fold: Fold, member: int) -> None:
        recipe = experiment.factory.loaded.recipe
        self.experiment, self.fold = experiment, fold
        self.seed = recipe.seed
        # the first initialisation has the recipe's own seed; what learns in closed form has no other
        self.member_seed = recipe.seed if member == 0 else seed_of(recipe.seed, "member", member)
        self.absent = [path for path in experiment.factory.paths() if path.endswith(".absent")]
        named = {*self.absent, *(path for stage in recipe.stages for path in parts_of(stage))}
        self.origins = {
            path: experiment.initial(path, self._seed(path) if path in named else self.seed)
            for path in experiment.factory.paths()
        }
        self.steps: list[Step] = []

    def add(self, stage: FitStage | PretrainStage | TrainStage) -> None:
        if isinstance(stage, FitStage):
            for path in self._in_order(stage.fit):
                self._tell_skipped(path, stage)
                self._add_fit(path, stage)
        elif isinstance(stage, PretrainStage):
            modality = stage.pretrain.split(".")[0]
            rows, validation = (
                self._rows([modality], rows) for rows in (self.fold.train, self.fold.validation)
            )
            self._append("pretrain", stage, [stage.pretrain], [stage.pretrain], rows, validation)
        else:
            self._add_train(stage)

    def _add_fit(self, path: str, stage: FitStage | TrainStage) -> None:
        if self._learns(path) not in ("closed_form", "self_supervised"):
            return
        if path == "head":
            self._add_scales(stage)
            modalities, chain = self.experiment.modalities, self.experiment.factory.paths()
        else:
            modalities = [path.split(".")[0]]
            chain = self.experiment.factory.chain(modalities[0])
        rows = self._rows(modalities, self.fold.train)
        if isinstance(stage, FitStage) and stage.rows == "subject":
            rows = self._one_per_subject(rows)
        self._append("fit", stage, [path], chain[: chain.index(path) + 1], rows, ())

    def _add_scales(self, stage: FitStage | TrainStage) -> None:
        """Fits the scales that are not fitted yet: the head is about to see what they give."""
        for name in self.experiment.modalities:
            path = f"{name}.scale"
            if path in self.origins and not self.origins[path].is_learned:
                chain = self.experiment.factory.chain(name)
                self._append("fit", stage, [path], chain, self._rows([name], self.fold.train), ())

    def _add_train(self, stage: TrainStage) -> None:
        for path in self._in_order(stage.train):
            self._tell_skipped(path, stage)
        learning = [path for path in self._in_order(stage.train) if self._learns(path) != "nothing"]
        for path in [path for path in learning if self._learns(path) == "closed_form"]:
            self._add_fit(path, stage)
            learning.remove(path)
        modalities = self.experiment.modalities
        # a head that learns nothing is named so that what comes into it is scaled
        if "head" in stage.train:
            self._add_scales(stage)
        if "head" in learning:  # what stands for the absent means something to this head alone
            learning = self._in_order([*learning, *self.absent])
        rows, validation = (self._rows(modalities, rows) for rows in (self.fold.train, self.fold.validation))
        if learning:
            self._append("train", stage, learning, self.experiment.factory.paths(), rows, validation)

    def _seed(self, path: str) -> int:
        return self.member_seed if self._learns(path) in ("self_supervised", "gradient") else self.seed

    def _learns(self, path: str) -> str:
        return self.experiment.factory.learns(path)

    def _tell_skipped(self, path: str, stage: FitStage | TrainStage) -> None:
        """Says, once per run, that a stage names a part which has nothing to learn."""
        skipped, mark = self.experiment.shared.skipped, (stage.name, path)
        is_scaled_head = path == "head" and any(other.endswith(".scale") for other in self.origins)
        if self._learns(path) == "nothing" and not is_scaled_head and mark not in skipped:
            skipped.add(mark)
            self.experiment.tell("part_skipped", {"stage": stage.name, "part": path})

    def _in_order(self, paths: Sequence[str]) -> list[str]:
        return [path for path in self.experiment.factory.paths() if path in paths]

    def _rows(self, modalities: Sequence[str], rows: Sequence[int]) -> tuple[int, ...]:
        """Returns the rows that have any of the modalities, by sample: the data's order has no influence."""
        readers = [self.experiment.reader(name) for name in modalities]
        here = [row for row in rows if any(reader.key(row) is not None for reader in readers)]
        return tuple(sorted(here, key=lambda row: self.experiment.manifest.samples[row]))

    def _one_per_subject(self, rows: Sequence[int]) -> tuple[int, ...]:
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(self.experiment.manifest.subjects[row], row)
        return tuple(first.values())

    def _append(
        self,
        verb: str,
        stage: FitStage | PretrainStage | TrainStage,
        learned: Sequence[str],
        used: Sequence[str],
        rows: tuple[int, ...],
        validation: tuple[int, ...],
    ) -> None:
        if not rows:
            where = (
                f"stage {stage.name}, {', '.join(learned)}: repeat {self.fold.repeat}, fold {self.fold.fold}"
            )
            raise DataError(
                f"{where}: no training row has the modality (0 rows). Use more data or fewer folds."
            )
        stops_early = getattr(stage, "early_stopping", None) is not None and verb != "fit"
        if stops_early and not validation:
            raise DataError(
                f"stage {stage.name}: repeat {self.fold.repeat}, fold {self.fold.fold}: no validation row "
                "has the modality (0 rows), and `early_stopping` needs some. Use more data or a larger share."
            )
        if verb != "fit":  # what the task refuses of these rows is said before anything learns
            self.experiment.task.fitted(self.experiment.targets(rows))
        seed = self._seed(learned[0])
        # without what comes with the head: with and without it, all else is drawn alike
        seeded = sorted(path for path in learned if path not in self.absent)
        step = Step(
            verb,
            stage,
            tuple(learned),
            {path: self.origins[path] for path in used},
            rows,
            validation if stops_early else (),
            seed_of(seed, verb, *seeded),
        )
        step = replace(step, address=address_of(describe_step(self.experiment, step)))
        self.steps.append(step)
        for path in learned:
            self.origins[path] = Origin(step.address, self.origins[path].seed, is_learned=True)


def run_steps(experiment: Experiment, plan: Plan, **place: int) -> int:
    """Computes the steps that the store lacks, in order; returns how many were computed.

    Args:
        experiment: The model's.
        plan: Its steps.
        place: What each event says beside its own data: fold and member, from 1.
    """

    def tell(name: str, data: Mapping[str, Any]) -> None:
        experiment.tell(name, {**place, **data})

    placed = replace(experiment, tell=tell)
    return sum(_run_step(placed, step) for step in plan.steps)


def _run_step(experiment: Experiment, step: Step) -> int:
    store = experiment.store
    if store.has(step.address):
        return 0
    with store.lock(step.address, f"{step.stage.name}: {step.verb} {', '.join(step.learned)}"):
        if store.has(step.address):
            return 0
        described = {"verb": step.verb, "stage": step.stage.name, "parts": list(step.learned)}
        experiment.tell("stage_started", {**described, "address": step.address, "rows": len(step.rows)})
        tensors, history = _compute(experiment, step)
        metadata = {**described, "history": history, "n_rows": len(step.rows)}
        store.save(step.address, Artefact(tensors, metadata))
        delete_checkpoint(store, step.address)
        ends = {"first": history[0], "last": history[-1]} if history else {}
        experiment.tell("stage_finished", {**described, "address": step.address, **ends})
    return 1


def _compute(experiment: Experiment, step: Step) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    if step.verb == "pretrain":
        return run_pretrain(experiment, cast(PretrainStage, step.stage), step)
    if step.verb == "train":
        return run_train(experiment, cast(TrainStage, step.stage), step)
    path = step.learned[0]
    module = experiment.fresh(path, step.used[path])
    if experiment.factory.learns(path) == "closed_form":
        if not isinstance(module, Fittable):
            raise _without_method(experiment, path, "fit")
        _fit_closed_form(experiment, step, module)
        return {f"{path}.{name}": tensor for name, tensor in module.state_dict().items()}, []
    if not isinstance(module, SelfSupervised):
        raise _without_method(experiment, path, "loss")
    return _fit_self_supervised(experiment, step, module)


def _without_method(experiment: Experiment, path: str, method: str) -> PluginError:
    plan, how = experiment.factory.loaded.parts[path], experiment.factory.learns(path)
    return PluginError(
        f"{path}: {plan.use} has no method `{method}` (learns: {how}). Mend the card or the component."
    )


def _fit_closed_form(experiment: Experiment, step: Step, module: Fittable) -> None:
    path = step.learned[0]
    if isinstance(module, Scale):  # on what the head sees in training, one draw of it
        units = make_units(step.rows, experiment.reader(path.removesuffix(".scale")).n_views(training=True))
        module.fit_parts(chain_inputs(experiment, step.used, path, units))
        return
    units = _units_of(experiment, step)
    inputs = _all_inputs(experiment, step, units)
    targets = torch.from_numpy(experiment.targets(units.rows))
    before, shapes = state_digest(cast(nn.Module, module)), _shapes(module)
    with calling(path, "fit"):
        module.fit(inputs, targets, seed=step.seed, **head_samples(experiment, path, units))
    if _shapes(module) != shapes:
        raise PluginError(
            f"{path}: `fit` changes a width or a shape, which is known when a part is built. Mend the plugin."
        )
    if state_digest(cast(nn.Module, module)) == before:
        raise PluginError(
            f"{path}: `fit` changed nothing in state_dict(), so nothing of it would be kept. "
            "Keep all that is learned in parameters or buffers."
        )


def _shapes(module: Any) -> dict[str, Any]:
    """Returns what `fit` must not change: the width of the result, and the shapes of all that is kept.

    But not that of torch's extra state, the bytes of a foreign model: nobody knows their number beforehand.
    """
    shapes = {
        name: tuple(tensor.shape)
        for name, tensor in module.state_dict().items()
        if name.rpartition(".")[2] != EXTRA_STATE
    }
    return {"output_dim": getattr(module, "output_dim", None), **shapes}


def _units_of(experiment: Experiment, step: Step) -> Units:
    """Returns what a part is fitted on: a head sees what it would be trained on, others each row as it is."""
    return head_units(experiment, step) if step.learned == ("head",) else make_units(step.rows, 1, 0)


def _all_inputs(experiment: Experiment, step: Step, units: Units) -> Any:
    if step.learned == ("head",):
        return head_inputs(experiment, step.used, units)
    parts = list(chain_inputs(experiment, step.used, step.learned[0], units))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _fit_self_supervised(
    experiment: Experiment, step: Step, module: nn.Module
) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
    path = step.learned[0]
    stage = cast(FitStage, step.stage)
    units = _units_of(experiment, step)
    select = _selector(experiment, step, units)
    rows = units.rows
    parts = cut_batches(len(rows), stage.batch_size)

    def batches(epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.Generator(np.random.PCG64([step.seed, epoch])).permutation(len(rows))
        return [order[part] for part in parts]

    def loss(index: NDArray[np.int64], generator: torch.Generator) -> Tensor:
        inputs = select(index)
        with calling(path, "loss"):
            return cast(Tensor, cast(Any, module).loss(inputs, generator))

    loop = Loop(
        modules={path: module},
        batches=batches,
        n_batches=len(parts),
        loss=loss,
        name_of=lambda index: ", ".join(experiment.manifest.where(int(row)) for row in rows[index][:8]),
        options=stage,
        seed=step.seed,
        where=f"stage {stage.name}, {path}",
        device=experiment.device.torch,
    )
    history = run_loop(loop, experiment.store, step.address, experiment.tell)
    return {f"{path}.{name}": tensor for name, tensor in module.state_dict().items()}, history


def _selector(experiment: Experiment, step: Step, units: Units) -> Callable[[NDArray[np.int64]], Any]:
    """Returns what gives a batch of units to a part: of features, which are kept, or raw, which are read."""
    modality, _, kind = step.learned[0].partition(".")
    if kind == "encoder":
        reader = experiment.reader(modality)
        return lambda index: experiment.to_device(reader.read(units.take(index), training=True))
    inputs = _all_inputs(experiment, step, units)
    return lambda index: take_rows(inputs, torch.from_numpy(index))
