from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
import toy_images
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fusionkit import AugmentOptions, ImageInput, ImageOptions, ViewOptions
from fusionkit.data.batches import Keys, ModalityReader, make_units
from fusionkit.errors import IntegrityError, PluginError
from fusionkit.store import Store
from fusionkit.training import features
from fusionkit.training.features import BATCH, FeatureTable, ensure_features, fill_up, prefix_address

OPTIONS = ImageOptions(
    size=8, augment=AugmentOptions(), views=ViewOptions(patches={4: 2}), eval_views=ViewOptions(), draws=2
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    toy_images.make_pictures(folder)
    return toy_images.make_manifest(folder)


@pytest.fixture
def reader(manifest):
    return ModalityReader("image", manifest, ImageInput(OPTIONS, ("picture",)), 3)


class Encode:
    """Maps pictures to features, counts its rows, and may fail at one of them."""

    def __init__(self, fail_after: int | None = None) -> None:
        self.n_rows = 0
        self.seen: Counter[bytes] = Counter()
        self.fail_after = fail_after

    def __call__(self, raw: torch.Tensor) -> torch.Tensor:
        if self.fail_after is not None and self.n_rows + len(raw) > self.fail_after:
            raise KeyboardInterrupt
        self.n_rows += len(raw)
        self.seen.update(bytes(picture.numpy().tobytes()) for picture in raw)
        return torch.stack([raw.float().mean((1, 2, 3)), raw.float().amax((1, 2, 3))], 1) / 3


def keys_of(*keys: bytes) -> np.ndarray:
    return np.frombuffer(b"".join(keys), Keys)


def ensure(table, reader, units, encode, training=True, tell=lambda done, total: None) -> int:
    return ensure_features(table, reader, units, lambda raw, _: encode(raw), tell, training=training)


def direct(reader, units, training=True) -> torch.Tensor:
    return torch.cat([Encode()(reader.read(units.take([i]), training=training)) for i in range(len(units))])


def test_features_are_computed_once_and_equal_the_direct_computation(tmp_path, reader):
    table, encode, told = FeatureTable(Store(tmp_path), "p"), Encode(), []
    units = make_units(range(36), 3, 2)
    assert ensure(table, reader, units, encode, tell=lambda *n: told.append(n)) == encode.n_rows == 216
    assert told == [(done, 216) for done in [*range(32, 216, 32), 216]]
    assert ensure(table, reader, units, encode) == 0
    assert encode.n_rows == 216
    assert torch.equal(table.gather(reader.feature_keys(units, training=True)), direct(reader, units))


def test_another_process_finds_them_and_computes_only_what_is_new(tmp_path, reader):
    ensure(FeatureTable(Store(tmp_path), "p"), reader, make_units(range(20), 3), Encode())
    table, encode = FeatureTable(Store(tmp_path), "p"), Encode()
    units = make_units(range(21), 3)
    assert ensure(table, reader, units, encode) == 3
    assert torch.equal(table.gather(reader.feature_keys(units, training=True)), direct(reader, units))


def test_what_another_process_computes_meanwhile_is_not_computed_again(tmp_path, reader):
    late = FeatureTable(Store(tmp_path), "p")
    ensure(FeatureTable(Store(tmp_path), "p"), reader, make_units(range(5), 3), Encode())
    encode = Encode()
    assert ensure(late, reader, make_units(range(5), 3), encode) == encode.n_rows == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=20, deadline=None)
@given(st.lists(st.integers(0, 107), min_size=1, max_size=40))
def test_gather_gives_rows_in_any_order_and_as_often_as_asked(tmp_path, reader, index):
    store = Store(tmp_path)
    units = make_units(range(36), 3)
    table = FeatureTable(store, "p")
    for start in (0, 50):  # two files
        ensure(table, reader, units.take(slice(start, start + 60)), Encode())
    keys = reader.feature_keys(units, training=True)
    assert torch.equal(table.gather(keys[index]), direct(reader, units)[index])


def test_stopped_in_the_middle_it_keeps_what_was_computed(tmp_path, reader):
    units = make_units(range(36), 3)
    with pytest.raises(KeyboardInterrupt):
        ensure(FeatureTable(Store(tmp_path), "p"), reader, units, Encode(fail_after=70))
    encode = Encode()
    table = FeatureTable(Store(tmp_path), "p")
    assert ensure(table, reader, units, encode) == encode.n_rows == 108 - 64
    assert torch.equal(table.gather(reader.feature_keys(units, training=True)), direct(reader, units))


def test_what_is_computed_reaches_the_disk_every_few_seconds(tmp_path, reader, monkeypatch):
    """A kill leaves no time to write: then only what was flushed before is kept."""
    monkeypatch.setattr(features, "FLUSH_SECONDS", 0.0)
    units, n_files = make_units(range(36), 3), []
    folder = tmp_path / "features" / "p"
    ensure(
        FeatureTable(Store(tmp_path), "p"),
        reader,
        units,
        Encode(),
        tell=lambda done, total: n_files.append(len(list(folder.glob("*.safetensors")))),
    )
    assert n_files == [1, 2, 3, 4]


def test_a_file_is_named_by_its_own_sum_and_never_appended_to(tmp_path, reader):
    import hashlib

    store = Store(tmp_path)
    for rows in (range(3), range(6)):
        ensure(FeatureTable(store, "p"), reader, make_units(rows, 1), Encode())
    files = list((tmp_path / "features" / "p").glob("*.safetensors"))
    assert len(files) == 2
    assert all(hashlib.sha256(file.read_bytes()).hexdigest() == file.stem for file in files)


def test_a_broken_file_is_set_aside_and_its_rows_computed_again(tmp_path, reader):
    units = make_units(range(6), 3)
    ensure(FeatureTable(Store(tmp_path), "p"), reader, units, Encode())
    (path,) = (tmp_path / "features" / "p").glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-5] ^= 64
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="set aside in broken/ and computed again"):
        table = FeatureTable(Store(tmp_path), "p")
    assert ensure(table, reader, units, Encode()) == 18
    assert torch.equal(table.gather(reader.feature_keys(units, training=True)), direct(reader, units))


def test_values_stay_on_the_disk_until_their_rows_are_asked_for(tmp_path, reader):
    table, units = FeatureTable(Store(tmp_path), "p"), make_units(range(36), 3)
    ensure(table, reader, units, Encode())
    (file,) = table._files
    data = file.path.read_bytes()
    last = file._start + 107 * 8  # of 108 rows of two floats
    file.path.write_bytes(data[:last] + bytes(8) + data[last + 8 :])
    keys = reader.feature_keys(units, training=True)
    assert table.gather(keys[-1:]).flatten().tolist() == [0, 0]
    assert torch.equal(table.gather(keys[:-1]), direct(reader, units)[:-1])
    file.path.write_bytes(data[: last + 4])
    with pytest.raises(IntegrityError, match=r"shorter than what was written\. Run again"):
        table.gather(keys)


def test_what_is_computed_reaches_the_disk_before_it_fills_the_memory(tmp_path, reader, monkeypatch):
    monkeypatch.setattr(features, "FLUSH_BYTES", 3 * 32 * 2 * 4)  # more than three batches of two floats
    table = FeatureTable(Store(tmp_path), "p")
    ensure(table, reader, make_units(range(36), 3, 2), Encode())  # 216 rows: seven batches
    assert [file.n_rows for file in table._files] == [128, 88]


def test_features_that_are_not_stored_are_never_made_up(tmp_path):
    table = FeatureTable(Store(tmp_path), "p")
    table.add(keys_of(b"k" * 32), torch.ones(1, 2))
    table.flush()
    with pytest.raises(KeyError, match=r"1 of 2 features are not stored in features/p"):
        table.gather(keys_of(b"k" * 32, b"l" * 32))


def test_keys_that_end_in_zeros_are_told_apart(tmp_path):
    table = FeatureTable(Store(tmp_path), "p")
    keys = keys_of(*(b"k" * (32 - n) + bytes(n) for n in (0, 1, 2, 31)))
    table.add(keys, torch.arange(4.0)[:, None])
    table.flush()
    assert table.gather(keys[::-1]).flatten().tolist() == [3, 2, 1, 0]


def test_the_same_picture_under_another_name_is_the_same_row(tmp_path, manifest):
    (manifest.root / "twin.png").write_bytes((manifest.root / "05.png").read_bytes())
    names = ["twin.png" if row == 9 else name for row, name in enumerate(manifest.cells["picture"])]
    twins = replace(manifest, cells=manifest.cells.with_columns(pl.Series("picture", names)))
    reader = ModalityReader("image", twins, ImageInput(OPTIONS, ("picture",)), 3)
    encode = Encode()
    assert ensure(FeatureTable(Store(tmp_path), "p"), reader, make_units([5, 9], 3, 2), encode) == 6
    assert max(encode.seen.values()) == 1


def test_one_more_row_costs_one_row_and_a_changed_picture_one_row(tmp_path, manifest, reader):
    table, plain = FeatureTable(Store(tmp_path), "p"), make_units(range(35), 1)
    ensure(table, reader, plain, Encode(), training=False)
    assert ensure(table, reader, make_units(range(36), 1), Encode(), training=False) == 1


def test_training_and_evaluation_share_views_that_are_not_random(tmp_path, manifest):
    options = OPTIONS.model_copy(update={"augment": None})
    reader = ModalityReader("image", manifest, ImageInput(options, ("picture",)), 3)
    table = FeatureTable(Store(tmp_path), "p")
    assert ensure(table, reader, make_units([4], 3), Encode(), training=True) == 3
    assert ensure(table, reader, make_units([4], 1), Encode(), training=False) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_the_plugins_mistake(tmp_path, reader, value):
    table = FeatureTable(Store(tmp_path), "p")
    with pytest.raises(PluginError) as error:
        ensure(table, reader, make_units([1], 1), lambda raw: torch.full((len(raw), 2), value))
    assert str(error.value) == (
        "image.encoder: its features are not finite for sample sample01 (subject subject00). "
        "Look at this row's file, mend the plugin or the weights."
    )
    assert table.missing(reader.feature_keys(make_units([1], 1), training=True)).tolist() == [0]


def test_missing_names_each_key_once(tmp_path):
    table = FeatureTable(Store(tmp_path), "p")
    keys = keys_of(*(bytes([number]) * 32 for number in (1, 2, 1, 3)))
    table.add(keys[1:2], torch.ones(1, 2))
    table.flush()
    assert table.missing(keys).tolist() == [0, 3]


def test_half_precision_is_stored_as_single(tmp_path):
    table = FeatureTable(Store(tmp_path), "p")
    key = keys_of(b"k" * 32)
    table.add(key, torch.tensor([[0.1, 7]], dtype=torch.bfloat16))
    table.flush()
    stored = FeatureTable(Store(tmp_path), "p").gather(key)
    assert stored.dtype == torch.float32
    assert torch.equal(stored, torch.tensor([[0.1, 7]], dtype=torch.bfloat16).float())


def test_the_address_of_a_prefix_follows_what_computes_it():
    one = prefix_address({"encoder": {"use": "a"}, "precision": "fp32"})
    assert one == prefix_address({"precision": "fp32", "encoder": {"use": "a"}})
    assert one != prefix_address({"encoder": {"use": "a"}, "precision": "bf16"})


@pytest.mark.parametrize("is_bf16", [False, True])
@pytest.mark.parametrize("n_rows", [1, 2, 3, 5, 8, 11, 20, 31])
def test_a_rows_features_do_not_depend_on_how_many_rows_are_missing(n_rows, is_bf16):
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 64, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(64, 128, 3, padding=1)]
    encoder = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(128 * 16 * 16, 64)).eval()
    images = torch.rand(BATCH, 3, 16, 16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):
        expected = encoder(images)[:n_rows]
        found = encoder(fill_up(images[:n_rows]))[:n_rows]
    assert torch.equal(found, expected)


def test_a_batch_is_filled_up_with_its_last_row_and_only_if_it_is_a_tensor():
    assert fill_up(torch.tensor([[1.0], [2.0]])).tolist() == [[1.0]] + [[2.0]] * (BATCH - 1)
    whole = torch.zeros(BATCH, 1)
    assert fill_up(whole) is whole
    words = [["a"], ["b"]]
    assert fill_up(words) is words
    assert len(fill_up(torch.zeros(0, 3))) == 0
