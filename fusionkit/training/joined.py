"""What comes into a head that is fitted: the joined features of all modalities, after scaling."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fusionkit.data.batches import Units, make_units
from fusionkit.specs import HeadSpec
from fusionkit.training.checks import find_not_finite_before_head, not_finite
from fusionkit.training.experiment import Experiment, Feed, Origins

if TYPE_CHECKING:
    from fusionkit.training.stages import Step

ROWS_AT_ONCE = 256

Joined = tuple[dict[str, Tensor], dict[str, Tensor]]
"""What comes into a head: features and presence by modality, as in its `forward`, absent rows filled."""


def head_units(experiment: Experiment, step: Step) -> Units:
    """Returns what a head is fitted on: every view and stored draw of its rows, as in a train stage."""
    stored = Feed(experiment, step.used).stored
    return make_units(step.rows, experiment.n_views(training=True), experiment.n_draws(stored))


def head_samples(experiment: Experiment, path: str, units: Units) -> dict[str, Tensor]:
    """Returns `samples`, which sample each row is of, (n,), if the part is a head that asks; else nothing."""
    plan = experiment.factory.loaded.parts.get(path)
    if plan is None or not isinstance(plan.card, HeadSpec) or not plan.card.takes_samples(plan.config):
        return {}
    return {"samples": torch.from_numpy(units.rows)}


def head_inputs(experiment: Experiment, origins: Origins, units: Units) -> Joined:
    """Returns what comes into a head in training, all of it at once.

    Raises:
        PluginError, TrainingError: A part before the head gives values that are not finite.
    """
    feed = Feed(experiment, origins)
    feed.ensure(units, training=True)
    model = feed.model({})
    found: list[Joined] = []
    for part in units.chunks(ROWS_AT_ONCE):
        batch = feed.batch(part, training=True)
        with torch.no_grad():  # not inference_mode: what comes out may go into a loss
            features, present = model.join(batch)
        if not all(bool(torch.isfinite(values).all()) for values in features.values()):
            path, bad = find_not_finite_before_head(experiment, model, batch) or ("head", slice(None))
            raise not_finite(experiment, origins, path, part.rows[bad])
        found.append((features, present))
    return (
        {name: torch.cat([features[name] for features, _ in found]) for name in experiment.modalities},
        {name: torch.cat([present[name] for _, present in found]) for name in experiment.modalities},
    )
