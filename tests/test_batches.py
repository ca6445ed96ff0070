from __future__ import annotations

import hashlib
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
import toy_images
from hypothesis import given
from hypothesis import strategies as st

from fusionkit import AugmentOptions, ImageInput, ImageOptions, TabularInput, ViewOptions
from fusionkit.data.batches import (
    BLOCK,
    ModalityReader,
    Units,
    cut_batches,
    draw_seed,
    epoch_order,
    make_units,
    read_ahead,
)
from fusionkit.data.threads import prefetch
from fusionkit.errors import DataError, PluginError


def triples(units: Units) -> list[tuple[int, int, int]]:
    return list(zip(units.rows.tolist(), units.views.tolist(), units.draws.tolist(), strict=True))


# units


def test_units_are_every_view_and_draw_row_by_row():
    units = make_units([7, 3], 2, 3)
    assert triples(units) == [(row, view, draw) for row in (7, 3) for view in range(2) for draw in range(3)]
    assert len(units) == 12


def test_units_without_draws_are_every_view_as_it_is():
    assert triples(make_units([7, 3], 2, 0)) == [(7, 0, -1), (7, 1, -1), (3, 0, -1), (3, 1, -1)]


def test_no_rows_are_no_units():
    units = make_units([], 3, 2)
    assert len(units) == 0
    assert list(units.chunks(5)) == []
    assert len(epoch_order(units, 0, 0)) == 0


@given(st.integers(0, 40), st.integers(1, 9))
def test_chunks_are_consecutive_and_complete(n_rows, size):
    units = make_units(range(n_rows), 1)
    parts = list(units.chunks(size))
    assert [triple for part in parts for triple in triples(part)] == triples(units)
    assert all(len(part) == size for part in parts[:-1])


# batches that learn


@given(st.integers(0, 200), st.integers(1, 40))
def test_batches_that_learn_are_consecutive_complete_and_none_is_a_single_row(n_rows, size):
    parts = cut_batches(n_rows, size)
    assert [row for part in parts for row in range(part.start, part.stop)] == list(range(n_rows))
    sizes = [part.stop - part.start for part in parts]
    assert all(length == size for length in sizes[:-1])
    if size > 1 and n_rows > 1:
        assert min(sizes) > 1
        assert max(sizes) <= size + 1


def test_a_last_batch_of_one_joins_the_one_before_and_no_other_batch_changes():
    def sizes(n_rows: int, size: int) -> list[int]:
        return [part.stop - part.start for part in cut_batches(n_rows, size)]

    assert sizes(33, 8) == [8, 8, 8, 9]
    assert sizes(34, 8) == [8, 8, 8, 8, 2]
    assert sizes(32, 8) == [8, 8, 8, 8]
    assert sizes(3, 1) == [1, 1, 1], "asked for"
    assert sizes(1, 8) == [1], "there is no other"
    assert sizes(0, 8) == []


@pytest.mark.parametrize(("learning", "sizes"), [(True, [4, 5]), (False, [4, 4, 1])])
def test_only_what_learns_joins_a_last_batch_of_one(manifest, learning, sizes):
    reader = record_reader(manifest)
    parts = read_ahead(make_units(range(9), 1), 4, [reader], training=True, learning=learning)
    assert [len(part) for part in parts] == sizes


# an epoch's order


rows_views_draws = (
    st.lists(st.integers(0, 1000), unique=True, max_size=40),
    st.integers(1, 5),
    st.integers(1, 3),
)


@given(*rows_views_draws, st.integers(0, 2**63 - 1), st.integers(0, 50))
def test_an_epoch_has_every_unit_once_and_its_draws_follow_the_earlier_epochs(
    rows, n_views, n_draws, seed, epoch
):
    units = make_units(rows, n_views, n_draws)
    expected = [(row, view, draw + epoch * n_draws) for row, view, draw in triples(units)]
    assert sorted(triples(epoch_order(units, seed, epoch))) == sorted(expected)


def test_the_order_is_a_pure_function_of_seed_and_epoch():
    units = make_units(range(50), 2)
    np.random.seed(1)
    torch.manual_seed(1)
    first = triples(epoch_order(units, 5, 3))
    assert triples(epoch_order(units, 5, 3)) == first
    assert triples(epoch_order(units, 6, 3)) != first
    assert triples(epoch_order(units, 5, 4)) != first


def test_the_order_is_pinned():
    """Another order would give other numbers: then the training loop's version must be raised."""
    digest = hashlib.sha256(
        str(triples(epoch_order(make_units(range(100), 3, 2), 7, 2))).encode()
    ).hexdigest()
    assert digest[:16] == "d7f81d031e50fbe8"


def test_single_units_are_shuffled_over_the_whole_epoch():
    order = epoch_order(make_units(range(5000), 1), 0, 0).rows
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05


def test_without_blocks_the_units_of_all_rows_are_mixed():
    """Stored features need no decoding: a batch of many rows teaches more than one of many views."""
    units = make_units(range(200), 75, 11)
    order = epoch_order(units, 0, 1, in_blocks=False)
    assert len(set(order.rows[:64].tolist())) > 40
    assert len(set(epoch_order(units, 0, 1).rows[:64].tolist())) <= 2
    assert sorted(triples(order)) == sorted((row, view, draw + 11) for row, view, draw in triples(units))


def test_all_views_of_a_row_stay_within_a_block():
    n_views = 75
    order = epoch_order(make_units(range(200), n_views), 0, 0)
    block = BLOCK // n_views * n_views
    for start in range(0, len(order), block):
        part = Counter(order.rows[start : start + block].tolist())
        assert set(part.values()) == {n_views}
    first = order.rows[:block]
    assert len(set(first[:n_views].tolist())) > 10, "a batch mixes rows"


# reading


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    toy_images.make_pictures(folder)
    return toy_images.make_manifest(folder, blanks=True)


class CountingInput(ImageInput):
    """Notes which files it opens."""

    def __init__(self, options: ImageOptions) -> None:
        super().__init__(options, ("picture",))
        self.loaded: list[str] = []

    def load(self, cells, cuts):
        self.loaded.append(cells["picture"].name)
        return super().load(cells, cuts)


AUGMENTED = ImageOptions(
    size=8, augment=AugmentOptions(), views=ViewOptions(patches={4: 2}), eval_views=ViewOptions()
)


def image_reader(manifest, options=AUGMENTED, seed=3) -> ModalityReader:
    return ModalityReader("image", manifest, CountingInput(options), seed)


def record_reader(manifest, columns=("number", "word")) -> ModalityReader:
    return ModalityReader(
        "record", manifest, TabularInput({name: manifest.schema[name] for name in columns}), 3
    )


def test_a_row_is_decoded_once_per_batch_and_once_per_epoch_of_many_views(manifest):
    reader = image_reader(manifest)
    rows = [row for row in range(36) if reader.key(row)]
    reader.read(make_units(rows[:4], 3), training=True)
    assert sorted(reader.spec.loaded) == [f"{row:02}.png" for row in rows[:4]]


@pytest.mark.parametrize("size", [4, 7, 1000])
def test_a_row_of_many_views_is_decoded_once_per_epoch(manifest, monkeypatch, size):
    monkeypatch.setattr("fusionkit.data.batches.BLOCK", 15)
    reader, plain = image_reader(manifest), image_reader(manifest)
    rows = [row for row in range(36) if reader.key(row)]
    order = epoch_order(make_units(rows, 3, 2), 0, 0)
    n_units = 0
    for part in read_ahead(order, size, [reader], training=True):
        assert torch.equal(reader.read(part, training=True), plain.read(part, training=True))
        n_units += len(part)
    assert n_units == len(order)
    assert sorted(reader.spec.loaded) == [f"{row:02}.png" for row in rows]
    assert not reader._ahead


def test_reading_ahead_leaves_absent_rows_out(manifest):
    reader = image_reader(manifest)
    parts = list(read_ahead(make_units(range(4), 2), 8, [reader], training=True))
    assert len(parts) == 1
    assert reader.spec.loaded == ["03.png"]


def test_an_epoch_that_was_given_up_leaves_nothing_behind(manifest):
    reader = image_reader(manifest)
    units = make_units([10, 12], 3)
    next(read_ahead(units, 2, [reader], training=True))
    assert len(reader._ahead) == 6
    list(read_ahead(make_units([10, 12], 1), 2, [reader], training=True))
    assert not reader._ahead


def test_a_batch_has_its_units_in_order(manifest):
    reader = image_reader(manifest)
    units = make_units([10, 12], 3, 2).take([5, 0, 11, 3, 8])
    batch = reader.read(units, training=True)
    for index in range(len(units)):
        assert torch.equal(batch[index : index + 1], reader.read(units.take([index]), training=True))


@given(order=st.permutations(range(12)))
def test_draw_seeds_do_not_depend_on_the_order(manifest, order):
    reader = image_reader(manifest)
    units = make_units([10, 12], 3, 2)
    cuts = reader.cuts(units, training=True)
    assert reader.cuts(units.take(order), training=True) == [cuts[index] for index in order]


def test_every_unit_has_its_own_draw(manifest):
    cuts = image_reader(manifest).cuts(make_units([10, 12], 3, 4), training=True)
    assert len({cut.seed for cut in cuts}) == len(cuts)
    assert {cut.view for cut in cuts} == {"whole", "patch4.0", "patch4.1"}


def test_a_draw_is_the_hash_of_seed_content_view_and_number(manifest):
    reader = image_reader(manifest, seed=3)
    (cut,) = reader.cuts(Units(np.array([10]), np.array([0]), np.array([5])), training=True)
    content = hashlib.sha256((manifest.root / "10.png").read_bytes()).digest()
    digest = hashlib.sha256(b"3\0" + content + b"\0whole\0" + b"5").digest()
    assert cut.seed == int.from_bytes(digest[:8], "big") >> 1 == draw_seed(3, content, "whole", 5)
    assert image_reader(manifest, seed=4).cuts(make_units([10], 1), training=True) != [cut]


def test_nothing_is_random_in_evaluation_without_augmentation_or_without_a_draw(manifest):
    reader = image_reader(manifest)
    assert [cut.seed for cut in reader.cuts(make_units([10], 1), training=False)] == [None]
    assert [cut.seed for cut in reader.cuts(make_units([10], 1, 0), training=True)] == [None]
    plain = image_reader(manifest, AUGMENTED.model_copy(update={"augment": None}))
    assert [cut.seed for cut in plain.cuts(make_units([10], 1), training=True)] == [None]


def test_the_same_picture_under_another_name_has_the_same_key_and_draws(manifest):
    (manifest.root / "copy.png").write_bytes((manifest.root / "10.png").read_bytes())
    cells = manifest.cells.with_columns(
        pl.Series(
            "picture",
            ["copy.png" if row == 12 else name for row, name in enumerate(manifest.cells["picture"])],
        )
    )
    reader = image_reader(replace(manifest, cells=cells))
    units = make_units([10, 12], 3, 2)
    keys = reader.feature_keys(units, training=True)
    assert np.array_equal(keys[:6], keys[6:])
    assert len(set(keys.tolist())) == 6
    assert reader.cuts(units, training=True)[:6] == reader.cuts(units, training=True)[6:]


def test_feature_keys_differ_by_view_and_draw_and_evaluation_shares_what_is_not_random(manifest):
    reader = image_reader(manifest)
    drawn = reader.feature_keys(make_units([10], 3, 2), training=True)
    plain = reader.feature_keys(make_units([10], 1), training=False)
    undrawn = reader.feature_keys(make_units([10], 1, 0), training=True)
    assert len({*drawn.tolist(), *plain.tolist()}) == 7
    assert np.array_equal(plain, undrawn)
    assert {len(key.tobytes()) for key in drawn} == {32}


def test_a_modality_with_fewer_views_repeats_them(manifest):
    reader = record_reader(manifest)
    cuts = reader.cuts(make_units([10], 3), training=True)
    assert [cut.view for cut in cuts] == ["record"] * 3


def test_presence_and_keys_follow_the_cells(manifest):
    image, record = image_reader(manifest), record_reader(manifest)
    rows = np.arange(36)
    assert np.flatnonzero(~image.present(rows)).tolist() == [0, 1, 2, 7, 14, 21, 28, 35]
    assert np.flatnonzero(~record.present(rows)).tolist() == [3, 4, 5, 11]
    assert record.key(20) is not None, "one cell is enough"
    assert image.present([]).dtype == bool


def test_features_of_files_and_texts_are_stored_those_of_records_are_not(manifest):
    assert image_reader(manifest).is_stored
    assert not record_reader(manifest).is_stored


def test_a_problem_names_the_sample(manifest):
    cells = manifest.cells.with_columns(pl.Series("number", ["many"] * 36))
    reader = record_reader(replace(manifest, cells=cells), ["number"])
    message = "sample sample08 (subject subject02): number: not a finite number ('many')."
    for call in (reader.key, lambda row: reader.read(make_units([row], 1), training=False)):
        with pytest.raises(DataError) as error:
            call(8)
        assert str(error.value).startswith(message)


class Failing(ImageInput):
    """Fails on one file in a way of its own."""

    def __init__(self, error: BaseException, method: str) -> None:
        super().__init__(AUGMENTED, ("picture",))
        self.error, self.method = error, method

    def _fail(self, cells, method):
        if cells["picture"] is not None and cells["picture"].name == "10.png" and method == self.method:
            raise self.error

    def content_key(self, cells):
        self._fail(cells, "content_key")
        return super().content_key(cells)

    def load(self, cells, cuts):
        self._fail(cells, "load")
        return super().load(cells, cuts)


WHERE = "sample sample10 (subject subject03)"


@pytest.mark.parametrize("method", ["load", "content_key"])
@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (
            OSError(5, "Input/output error"),
            DataError,
            f"{WHERE}: 10.png: cannot be read (OSError: [Errno 5] Input/output error). "
            "Check the file and its rights.",
        ),
        (
            ValueError("odd"),
            PluginError,
            f"image.encoder: `METHOD` of Failing fails on {WHERE}: 10.png (ValueError: odd). "
            "Mend the plugin, or look at this row.",
        ),
        (
            SystemExit(0),
            PluginError,
            f"image.encoder: `METHOD` of Failing fails on {WHERE}: 10.png (SystemExit: 0). "
            "Mend the plugin, or look at this row.",
        ),
        (PluginError("a: b."), PluginError, "a: b."),
        (MemoryError(), MemoryError, ""),
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
@pytest.mark.parametrize("workers", [0, 2])
def test_whatever_a_read_raises_names_subject_and_file(manifest, method, error, kind, said, workers):
    reader = ModalityReader("image", manifest, Failing(error, method), 3, workers)
    with pytest.raises(kind) as caught:
        list(prefetch(reader.read(make_units([row], 1), training=True) for row in (9, 10, 12)))
    assert str(caught.value) == said.replace("METHOD", method)


class Slow(ImageInput):
    """Waits on one file until it may go on."""

    def __init__(self) -> None:
        super().__init__(AUGMENTED, ("picture",))
        self.go_on = threading.Event()

    def load(self, cells, cuts):
        if cells["picture"].name == "10.png":
            self.go_on.wait(30)
        return super().load(cells, cuts)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_read_that_takes_long_is_told_with_subject_and_file_and_waited_for(manifest, monkeypatch, workers):
    monkeypatch.setattr("fusionkit.data.batches.SLOW_SECONDS", 0.05)
    monkeypatch.setattr("fusionkit.data.threads.LOOK_SECONDS", 0.01)
    spec, told = Slow(), []

    def tell(name, data):
        told.append((name, data))
        if len(told) == 2:
            spec.go_on.set()

    reader = ModalityReader("image", manifest, spec, 3, workers, tell)
    parts = (reader.read(make_units([9, row], 1), training=True) for row in (10, 12))
    assert len(list(prefetch(parts, look=reader.tell_slow))) == 2
    assert len(told) == 2
    for name, data in told:
        assert name == "still_reading"
        assert data.pop("seconds") >= 0
        assert data == {
            "modality": "image",
            "sample": "sample10",
            "subject": "subject03",
            "where": "sample sample10 (subject subject03)",
            "cells": "10.png",
        }
    assert reader._reading == {}
    reader.tell_slow()
    assert len(told) == 2


class OneByOne(TabularInput):
    """The same records; only the core's own spec is read into one array."""


@given(st.lists(st.integers(0, 35), min_size=1, max_size=50))
def test_a_table_in_one_array_equals_records_one_by_one(index):
    manifest = toy_images.make_manifest(Path(), blanks=True)
    columns = {name: manifest.schema[name] for name in ("number", "word")}
    quick, slow = (ModalityReader("record", manifest, spec(columns), 0) for spec in (TabularInput, OneByOne))
    for part in (index, index[::-1]):  # the second time from memory
        batches = [reader.read(make_units(part, 1, 0), training=True) for reader in (quick, slow)]
        assert torch.equal(batches[0].nan_to_num(-99), batches[1].nan_to_num(-99))
        assert batches[0].dtype == batches[1].dtype


class TwoViews(TabularInput):
    """Records with a view for training that evaluation lacks: the cell's negative."""

    def views(self, *, training):
        return ("record", "negative") if training else ("record",)

    def load(self, cells, cuts):
        (item,) = super().load(cells, cuts[:1])
        return [item if cut.view == "record" else -item for cut in cuts]


class OtherView(TwoViews):
    """Records that training sees in another view than evaluation."""

    def views(self, *, training):
        return ("negative",) if training else ("record",)


@pytest.mark.parametrize("kind", [TwoViews, OtherView])
def test_a_record_with_views_is_read_in_the_view_of_its_unit(manifest, kind):
    columns = {"number": manifest.schema["number"]}
    reader = ModalityReader("record", manifest, kind(columns), 0)
    plain = ModalityReader("record", manifest, TabularInput(columns), 0)
    n_views = reader.n_views(training=True)
    record = plain.read(make_units([10], 1), training=False)
    seen = reader.read(make_units([10], n_views), training=True)
    assert torch.equal(seen, torch.cat([record, -record])[-n_views:])
    assert torch.equal(reader.read(make_units([10], 1), training=False), record)


# workers and contracts


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(manifest, workers):
    reader = image_reader(manifest)
    units = make_units([row for row in range(36) if reader.key(row)], 3, 2)
    parallel = ModalityReader(reader.name, manifest, reader.spec, reader.seed, workers)
    assert torch.equal(parallel.read(units, training=True), reader.read(units, training=True))


def test_an_input_spec_that_lacks_members_is_named(manifest):
    class Half:
        columns = ("picture",)
        draws = 1

        def load(self, cells, cuts):
            return []

    with pytest.raises(PluginError) as caught:
        ModalityReader("image", manifest, Half(), 0)
    lacking = "identity, views, is_random, content_key, collate"
    assert str(caught.value) == f"image.encoder: Half lacks {lacking} (an InputSpec). Mend it."


def test_a_content_key_that_is_no_digest_is_named(manifest):
    class Text(ImageInput):
        def content_key(self, cells):
            return "abc"

    reader = ModalityReader("image", manifest, Text(AUGMENTED, ("picture",)), 0)
    with pytest.raises(PluginError, match=r"^image\.encoder: content_key gives str, and 32 bytes or None"):
        reader.key(0)


def test_a_balanced_epoch_has_as_many_rows_of_every_class_and_as_many_in_all():
    classes = np.array([0] * 16 + [1] * 5 + [2] * 2)
    units = make_units(np.arange(100, 123), 2)
    for epoch in range(3):
        order = epoch_order(units, 1, epoch, classes=classes)
        assert len(order) == len(units)
        rows, times = np.unique(order.rows, return_counts=True)
        of_class = np.bincount(classes[rows - 100], times / 2)
        assert sorted(of_class.tolist()) == [7, 8, 8]
        # both views of a row are always there together, and no row of a class comes twice more than another
        assert not (times % 2).any()
        spread = [np.ptp(times[classes[rows - 100] == c]) // 2 for c in (1, 2)]
        assert max(spread) <= 1


def test_a_balanced_epoch_follows_seed_and_epoch_alone():
    classes, units = np.array([0, 0, 0, 0, 0, 1]), make_units(range(6), 1)
    first = [epoch_order(units, 1, epoch, classes=classes).rows.tolist() for epoch in range(4)]
    again = [epoch_order(units, 1, epoch, classes=classes).rows.tolist() for epoch in range(4)]
    assert first == again
    assert len({tuple(sorted(rows)) for rows in first}) > 1
    assert {row for rows in first for row in rows} == set(range(6))
    assert all(rows.count(5) == 3 for rows in first)
