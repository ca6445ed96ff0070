"""Pretraining: an encoder learns through a temporary classifier, which also predicts by itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import adaptive_max_pool2d, cross_entropy

from fusionkit.data.batches import Units, make_units
from fusionkit.errors import DataError, PluginError
from fusionkit.model import calling, check_features, describe, seed_of, to_fp32
from fusionkit.recipe.schema import PretrainStage
from fusionkit.training.experiment import Experiment, Origin
from fusionkit.training.features import ensure_features, fill_up
from fusionkit.training.supervised import Result, Supervised, finish

if TYPE_CHECKING:
    from fusionkit.training.stages import Step

VGG_POOL, VGG_WIDTH = 7, 4096
MAX_VALUES = 100
"""Most values of a second task's column: beyond, it is a number or an id, and no class."""


class Classifier(nn.Module):
    """A temporary classifier on an encoder's pretraining features.

    Args:
        kind: linear, on features averaged over the image; or vgg, VGG's own 4096-4096 on 7 x 7 of them.
        dim: Width of the features (channels, where they are (n, c, h, w)).
        is_spatial: Whether they are (n, c, h, w).
        output_dim: Number of classes.
        n_values: Number of classes of the second task, which shares all but the last layer; 0 for none.
    """

    def __init__(self, kind: str, dim: int, is_spatial: bool, output_dim: int, n_values: int = 0) -> None:
        super().__init__()
        self.kind = kind
        if kind == "linear":
            self.layers = nn.Sequential(nn.Linear(dim, output_dim))
        else:
            width = dim * VGG_POOL * VGG_POOL if is_spatial else dim
            self.layers = nn.Sequential(
                nn.Linear(width, VGG_WIDTH),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(VGG_WIDTH, VGG_WIDTH),
                nn.ReLU(),
                nn.Dropout(),
                nn.Linear(VGG_WIDTH, output_dim),
            )
        # last, so that the other layers start as they would without it
        if n_values:
            self.auxiliary = nn.Linear(dim if kind == "linear" else VGG_WIDTH, n_values)

    def forward(self, features: Tensor) -> Tensor:
        """Maps (n, c, h, w) or (n, d) to the outcome's logits (n, output_dim)."""
        return cast(Tensor, self.layers[-1](self._hidden(features)))

    def both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Maps (n, c, h, w) or (n, d) to the logits of both tasks, (n, output_dim) and (n, n_values)."""
        hidden = self._hidden(features)
        return self.layers[-1](hidden), self.auxiliary(hidden)

    def _hidden(self, features: Tensor) -> Tensor:
        if features.ndim == 4:
            # 14 x 14 pooled to 7 x 7 is VGG's own last pooling
            features = (
                features.mean((2, 3)) if self.kind == "linear" else adaptive_max_pool2d(features, VGG_POOL)
            )
        return cast(Tensor, self.layers[:-1](features.flatten(1)))


def build_classifier(
    experiment: Experiment, stage: PretrainStage, encoder: Any, seed: int, n_values: int = 0
) -> Classifier:
    """Builds a stage's temporary classifier in its initial state; what predicts needs no second output."""
    dim = getattr(encoder, "pretraining_dim", encoder.output_dim)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "init", f"{stage.pretrain}.classifier"))
        classifier = Classifier(
            stage.classifier,
            dim,
            hasattr(encoder, "pretraining_features"),
            experiment.task.output_dim,
            n_values,
        )
    classifier.eval().requires_grad_(False)
    return cast(Classifier, experiment.device.place(classifier))


def auxiliary_values(
    experiment: Experiment, stage: PretrainStage, rows: Sequence[int]
) -> Mapping[int, str | None]:
    """Returns the value of the second task's column in each row, None where it is missing; empty without one.

    Raises:
        DataError: There is no such column, or it has nothing to tell apart in these rows.
    """
    if stage.auxiliary is None:
        return {}
    where, manifest = f"stages.{stage.name}.auxiliary", experiment.manifest
    manifest.require_columns([stage.auxiliary], where)
    cells = {int(row): manifest.cells_of(row, [stage.auxiliary])[stage.auxiliary] for row in rows}
    found = {row: None if cell is None else str(cell) for row, cell in cells.items()}
    known = known_values(found)
    if not 2 <= len(known) <= MAX_VALUES:
        given = ", ".join(known[:3]) + (", ..." if len(known) > 3 else "") or "none"
        raise DataError(
            f"{where}: the column {stage.auxiliary} does not have 2 to {MAX_VALUES} values in the training "
            f"rows ({given}). Name another column, or set null."
        )
    return found


def known_values(found: Mapping[int, str | None]) -> list[str]:
    """Returns the values of a second task in the order of its output."""
    return sorted({value for value in found.values() if value is not None})


def pretraining_logits(
    experiment: Experiment, modality: str, encoder: Any, classifier: nn.Module, raw: Any
) -> Tensor:
    """Returns a temporary classifier's logits of a raw batch, (n, output_dim)."""
    with _precision(experiment, modality):
        features = pretraining_features(modality, encoder, raw)
        return cast(Tensor, classifier(features).float())


def _precision(experiment: Experiment, modality: str) -> AbstractContextManager[Any]:
    return experiment.device.autocast() if experiment.reader(modality).is_stored else nullcontext()


def pretraining_features(modality: str, encoder: Any, raw: Any) -> Tensor:
    """Returns what a pretrain stage classifies, (n, d) or (n, d, height, width); checks its width."""
    path, method = f"{modality}.encoder", "pretraining_features"
    if not hasattr(encoder, method):
        with calling(path):
            features = encoder(raw)
        check_features(path, encoder, to_fp32(features))
        return cast(Tensor, features)
    with calling(path, method):
        features = encoder.pretraining_features(raw)
    dim = getattr(encoder, "pretraining_dim", encoder.output_dim)
    is_right = isinstance(features, Tensor) and features.ndim in (2, 4) and features.shape[1] == dim
    if not is_right or not features.is_floating_point():
        raise PluginError(
            f"{path}: `{method}` gives {describe(features)}, and (n, {dim}) or (n, {dim}, height, width) "
            "floats are due. Mend the plugin."
        )
    return cast(Tensor, features)


def run_pretrain(experiment: Experiment, stage: PretrainStage, step: Step) -> Result:
    """Trains an encoder through a temporary classifier; the artefact holds both."""
    path = stage.pretrain
    modality = path.split(".")[0]
    reader = experiment.reader(modality)
    encoder = experiment.fresh(path, step.used[path])
    values = auxiliary_values(experiment, stage, step.rows)
    known = known_values(values)
    code_of = {row: -1 if value is None else known.index(value) for row, value in values.items()}
    classifier = build_classifier(experiment, stage, encoder, step.used[path].seed, len(known))

    def find(raw: Any) -> tuple[str, NDArray[Any]] | None:
        with torch.no_grad():
            is_bad = ~torch.isfinite(pretraining_features(modality, encoder, raw)).flatten(1).all(1)
        return (path, is_bad.nonzero().squeeze(1).cpu().numpy()) if bool(is_bad.any()) else None

    def loss_of_both(units: Units, raw: Any, targets: Tensor, weights: Tensor) -> Tensor:
        with _precision(experiment, modality):
            outcome, auxiliary = classifier.both(pretraining_features(modality, encoder, raw))
        codes = torch.tensor([code_of[int(row)] for row in units.rows])
        # a row whose value is missing has a loss of zero here
        losses = cross_entropy(auxiliary.float(), codes.to(targets.device), reduction="none", ignore_index=-1)
        loss = loop.task.loss(outcome.float(), targets, weights)
        return loss + stage.auxiliary_weight * (losses * weights).mean()

    loop = Supervised(
        experiment,
        stage,
        step,
        read=lambda units, training: experiment.to_device(
            experiment.device.pin(reader.read(units, training=training))
        ),
        logits=lambda raw: pretraining_logits(experiment, modality, encoder, classifier, raw),
        stored=(),
        raw=[reader] if reader.is_stored else [],
        n_views=(reader.n_views(training=True), reader.n_views(training=False)),
        find=find,
        loss_of=loss_of_both if stage.auxiliary else None,
    )
    return loop.run({path: encoder, f"{path}.classifier": classifier})


def predict_pretrained(
    experiment: Experiment, stage: PretrainStage, origin: Origin, rows: Sequence[int]
) -> NDArray[Any]:
    """Returns a pretrain stage's own logits (n rows, n views, output_dim), stored as features are."""
    modality = stage.pretrain.split(".")[0]
    reader = experiment.reader(modality)
    n_views = reader.n_views(training=False)
    units = make_units(rows, n_views)
    table = experiment.output_table(modality, origin, {"output": "pretraining_logits"})
    keys = reader.feature_keys(units, training=False)
    if not len(keys):
        return np.zeros((0, n_views, experiment.task.output_dim), dtype=np.float32)
    if len(table.missing(keys)):
        encoder: Any = experiment.module(stage.pretrain, origin)
        classifier = build_classifier(experiment, stage, encoder, origin.seed)
        experiment.restore(classifier, f"{stage.pretrain}.classifier", origin)

        def compute_part(raw: Any) -> Tensor:
            with torch.inference_mode():
                return pretraining_logits(experiment, modality, encoder, classifier, raw)

        def compute(raw: Any) -> Tensor:
            logits = experiment.in_portions(f"pretrained {modality}", fill_up(raw), compute_part)
            return logits[: len(raw)] if isinstance(raw, Tensor) else logits

        tell = experiment.tell
        ensure_features(
            table,
            reader,
            units,
            lambda raw, _: compute(raw),
            lambda done, total: tell("features", {"modality": modality, "done": done, "total": total}),
            training=False,
            pin=experiment.device.pin,
        )
    said = table.gather(keys).numpy().reshape(len(rows), n_views, experiment.task.output_dim)
    return finish(experiment, said, origin)
