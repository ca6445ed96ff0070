"""Values that are not finite, rows that depend on their neighbours, modalities of one class: the units.

What a user sees of them stands in test_bad_plugins.py and test_bad_training.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_images import make_experiment, make_manifest, make_pictures

from fusionkit.data.batches import make_units
from fusionkit.errors import PluginError
from fusionkit.training.checks import (
    CHECKED_ROWS,
    check_alone,
    check_finite,
    find_not_finite,
    name_rows,
)
from fusionkit.training.experiment import Feed

OTHER = "gives other values for the same rows in another batch"


@pytest.mark.parametrize(
    ("path", "spoil"),
    [
        ("image.scale", lambda part: part.std.fill_(0)),
        ("record.encoder", lambda part: part.linear.weight.fill_(torch.inf)),
        ("head", lambda part: part.linear.bias.fill_(torch.nan)),
    ],
)
def test_the_first_part_that_is_not_finite_is_found_and_its_rows(tmp_path, path, spoil):
    make_pictures(tmp_path / "pictures")
    manifest = make_manifest(tmp_path / "pictures", blanks=True)
    experiment = make_experiment(tmp_path, manifest=manifest)
    origins = {path: experiment.initial(path, 0) for path in experiment.factory.paths()}
    feed, units = Feed(experiment, origins), make_units(range(8), 1)
    feed.ensure(units, training=False)
    batch = feed.batch(units, training=False)
    assert find_not_finite(experiment, feed.model({}), batch) is None
    with torch.no_grad():
        spoil(experiment.module(path, origins[path]))
    found = find_not_finite(experiment, feed.model({}), batch)
    assert found is not None
    present = {"image.scale": [3, 4, 5, 6], "record.encoder": [0, 1, 2, 6, 7], "head": list(range(8))}
    assert (found[0], found[1].tolist()) == (path, present[path])


def test_missing_is_allowed_where_a_card_says_so_and_infinity_nowhere(tmp_path):
    experiment = make_experiment(tmp_path, "modalities.record.encoder.missing=keep")
    origins = {path: experiment.initial(path, 0) for path in experiment.factory.paths()}
    rows, values = np.array([4, 7]), torch.zeros(2, 3)
    values[1, 0] = torch.nan
    check_finite(experiment, origins, "record.encoder", values, rows)
    for path, value in (("record.raiser", torch.nan), ("record.encoder", torch.inf)):
        values[1, 0] = value
        with pytest.raises(PluginError) as error:
            check_finite(experiment, origins, path, values, rows)
        assert str(error.value) == (
            f"{path}: gives values that are not finite for sample sample07 (subject subject02). "
            "Mend the plugin, or look at these rows."
        )


def test_three_rows_are_named_and_the_others_counted(tmp_path):
    experiment = make_experiment(tmp_path)
    assert name_rows(experiment, np.arange(3)).endswith(", sample sample02 (subject subject00)")
    assert name_rows(experiment, np.arange(5)).endswith(", sample sample02 (subject subject00) and 2 more")


def test_rounding_is_no_dependence_and_a_part_is_looked_at_once(tmp_path):
    experiment, seen = make_experiment(tmp_path), []
    raw = torch.rand(8, 4)

    def look(change: float) -> None:
        def encode(some: torch.Tensor) -> torch.Tensor:
            seen.append(some)
            return some + change

        check_alone(experiment, "image.encoder", raw, lambda places: raw[list(places)], encode)

    look(0.005 * float(raw.max()))
    assert torch.equal(seen[0], raw[:CHECKED_ROWS].flip(0)), "fewer rows, in reverse"
    look(9.0)
    assert len(seen) == 1
    experiment.shared.checked.clear()
    with pytest.raises(PluginError, match=OTHER):
        look(0.03 * float(raw.max()))


def test_a_batch_is_made_anew_so_that_what_joins_rows_counts(tmp_path):
    """Padding that leaks cannot be seen in a batch that is only cut."""
    experiment, raw = make_experiment(tmp_path), torch.rand(8, 4)

    def join(rows: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"values": rows, "longest": rows.max()}

    def encode(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return batch["values"] + batch["longest"]

    raw[-1] = 5.0
    with pytest.raises(PluginError, match=OTHER):
        check_alone(
            experiment, "image.encoder", encode(join(raw)), lambda places: join(raw[list(places)]), encode
        )
