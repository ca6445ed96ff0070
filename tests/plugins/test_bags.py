from __future__ import annotations

import doors
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from strategies import bounded

import fusionkit_bags
from fusionkit import Cut
from fusionkit.errors import DataError, RecipeError
from fusionkit.registry import Registry
from fusionkit.specs import AugmentOptions, ColumnSpec, EncoderSpec, ImageOptions, ViewOptions
from fusionkit_bags.pooling import Pooling

VECTORS, IMAGES = fusionkit_bags.VECTOR_BAG, fusionkit_bags.IMAGE_BAG
FILE, TEXT = ColumnSpec(kind="file"), ColumnSpec(kind="text")
WHOLE = Cut("bag")


def build(card, columns=None, **options):
    torch.manual_seed(0)
    return card.build(card.config(**options), columns or {"tiles": FILE}).eval()


def save_bag(folder, n_tiles, width=5, seed=0, name="a.npy"):
    values = np.random.default_rng(seed).normal(size=(n_tiles, width)).astype(np.float32)
    np.save(folder / name, values)
    return folder / name, values


def test_the_cards_are_found_through_the_entry_point():
    registry = Registry.discover()
    assert registry.card(EncoderSpec, "vector_bag") is VECTORS
    assert registry.card(EncoderSpec, "image_bag") is IMAGES


# pooling


@pytest.mark.parametrize("kind", ["attention", "mean", "max"])
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
@bounded(30)
def test_order_of_tiles_padding_and_other_bags_do_not_matter(kind, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    pooling = Pooling(kind, 4, 3)
    bags = [torch.randn(size, 4, generator=generator) for size in sizes]
    alone = torch.cat([pooling(bag[None], torch.ones(1, len(bag), dtype=torch.bool)) for bag in bags])
    tiles, mask = torch.zeros(len(bags), 9, 4), torch.zeros(len(bags), 9, dtype=torch.bool)
    for row, bag in enumerate(bags):
        places = torch.randperm(9, generator=generator)[: len(bag)]
        tiles[row, places], mask[row, places] = bag, True
    torch.testing.assert_close(pooling(tiles, mask), alone, rtol=1e-4, atol=1e-5)


def test_attention_is_equation_9_by_hand():
    pooling = Pooling("attention", 4, 3)
    bag = torch.randn(5, 4, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        scores = []
        for tile in bag:
            content = torch.tanh(pooling.content.weight @ tile + pooling.content.bias)
            gate = torch.sigmoid(pooling.gate.weight @ tile + pooling.gate.bias)
            scores.append(float(pooling.score.weight[0] @ (content * gate)))
        weights = np.exp(scores) / np.exp(scores).sum()
        found = pooling(bag[None], torch.ones(1, 5, dtype=torch.bool))[0]
    np.testing.assert_allclose(found.numpy(), weights @ bag.numpy(), rtol=1e-4)


# bags of vectors


@pytest.mark.parametrize("pooling", ["mean", "max"])
def test_a_bag_of_vectors_is_pooled(tmp_path, pooling):
    paths = [save_bag(tmp_path, n, seed=n, name=f"{n}.npy") for n in (3, 1, 7)]
    encoder = build(VECTORS, width=5, pooling=pooling)
    spec = encoder.input_spec
    batch = spec.collate([spec.load({"tiles": path}, [WHOLE])[0] for path, _ in paths])
    assert batch["tiles"].shape == (3, 7, 5)
    expected = [values.mean(0) if pooling == "mean" else values.max(0) for _, values in paths]
    np.testing.assert_allclose(encoder(batch).numpy(), np.stack(expected), rtol=1e-4, atol=1e-5)
    assert VECTORS.is_pretrained(VECTORS.config(width=5, pooling=pooling))
    assert not VECTORS.is_pretrained(VECTORS.config(width=5))


def test_the_order_in_the_file_changes_neither_key_nor_tiles(tmp_path):
    path, values = save_bag(tmp_path, 9)
    save_file({"x": torch.from_numpy(values[::-1].copy())}, tmp_path / "b.safetensors")
    spec = build(VECTORS, width=5, max_tiles=4).input_spec
    cells = [{"tiles": path}, {"tiles": tmp_path / "b.safetensors"}]
    assert spec.content_key(cells[0]) == spec.content_key(cells[1])
    for cut in (WHOLE, Cut("bag", 7)):
        one, other = (spec.load(cell, [cut])[0] for cell in cells)
        assert len(one) == 4
        assert torch.equal(one, other)


def test_training_draws_tiles_by_its_seed_and_evaluation_never(tmp_path):
    path, _ = save_bag(tmp_path, 30)
    spec = build(VECTORS, width=5, max_tiles=4).input_spec
    assert (spec.is_random(training=True), spec.is_random(training=False)) == (True, False)
    assert not build(VECTORS, width=5).input_spec.is_random(training=True)
    cuts = [WHOLE, WHOLE, Cut("bag", 1), Cut("bag", 1), Cut("bag", 2)]
    plain, again, one, same, other = spec.load({"tiles": path}, cuts)
    assert torch.equal(plain, again)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_an_empty_bag_is_absent_and_a_wrong_one_a_sentence(tmp_path):
    spec = build(VECTORS, width=5).input_spec
    empty, _ = save_bag(tmp_path, 0, name="empty.npy")
    assert spec.content_key({"tiles": empty}) is None
    assert spec.content_key({"tiles": None}) is None
    narrow, _ = save_bag(tmp_path, 2, width=3, name="narrow.npy")
    with pytest.raises(DataError) as error:
        spec.content_key({"tiles": narrow})
    assert str(error.value) == (
        f"{narrow}: (2, 3) float32 is there, and (k, 5) numbers are due. Mend the file, or set `width`."
    )
    np.save(tmp_path / "nan.npy", np.array([[0.0] * 5, [np.nan] * 5]))
    with pytest.raises(DataError, match=r"nan\.npy: tile 1 has a value that is not finite"):
        spec.load({"tiles": tmp_path / "nan.npy"}, [WHOLE])
    np.save(tmp_path / "o.npy", np.array([[None]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"not a \.npy file of numbers"):
        spec.content_key({"tiles": tmp_path / "o.npy"})
    with pytest.raises(DataError) as error:
        build(VECTORS, width=5, tensor="a").input_spec.content_key({"tiles": empty})
    assert str(error.value) == f"{empty}: a .npy file has no tensor of a name ('a'). Leave `tensor` out."


# bags of images


def paint(path, level, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(level - 40, level + 40, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def tiles_in(folder, n=3):
    return [paint(folder / f"{i}.png", 60 + 50 * i, i) for i in range(n)]


def image_bag(columns, **options):
    return build(IMAGES, columns, hidden=4, input=ImageOptions(size=16), **options)


def test_a_folder_a_list_and_several_columns_are_one_bag(tmp_path):
    tiles = tiles_in(tmp_path / "case")
    (tmp_path / "case" / "notes.txt").write_text("no tile")
    listed = image_bag({"tiles": TEXT}, folder=str(tmp_path)).input_spec
    columns = {f"tile{i}": FILE for i in range(3)}
    several = image_bag(columns).input_spec
    keys = {
        listed.content_key({"tiles": "case"}),
        listed.content_key({"tiles": "case/2.png; case/0.png;case/1.png"}),
        several.content_key(dict(zip(columns, tiles, strict=True))),
    }
    assert len(keys) == 1
    assert keys != {None}
    one, other = (
        listed.load({"tiles": "case"}, [WHOLE])[0],
        listed.load({"tiles": "case/2.png;case/1.png;case/0.png"}, [WHOLE])[0],
    )
    assert one.shape == (3, 3, 16, 16)
    assert torch.equal(one, other)


def test_what_lacks_tiles_is_absent(tmp_path):
    (tmp_path / "empty").mkdir()
    spec = image_bag({"tiles": TEXT}, folder=str(tmp_path)).input_spec
    assert [spec.content_key({"tiles": cell}) for cell in (None, "empty", " ; ")] == [None] * 3
    several = image_bag({"one": FILE, "other": FILE}).input_spec
    assert several.content_key({"one": None, "other": None}) is None
    assert several.content_key({"one": None, "other": paint(tmp_path / "a.png", 90)}) is not None


def test_every_tile_that_is_none_is_named_and_none_is_read_from_elsewhere(tmp_path):
    paint(tmp_path / "outside.png", 90)
    spec = image_bag({"tiles": TEXT}, folder=str(tmp_path / "in")).input_spec
    paint(tmp_path / "in" / "a.png", 90)
    with pytest.raises(DataError) as error:
        spec.content_key({"tiles": f"a.png;b.png;../outside.png;{tmp_path}/outside.png;a\0"})
    found = error.value.problems
    assert found[0] == (
        f"there is no such tile ({tmp_path}/in/b.png). Check its name and the option `folder`."
    )
    assert found[1] == (
        f"a tile that leaves its folder (../outside.png). Only files in {tmp_path}/in are read."
    )
    assert found[2].startswith("a tile that leaves its folder (")
    assert found[3].startswith("a tile whose path cannot be followed (")
    (tmp_path / "in" / "broken.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png"):
        spec.load({"tiles": "a.png;broken.png"}, [WHOLE])


@pytest.mark.parametrize("network", ["small", "test_resnet"])
def test_features_do_not_depend_on_neighbours_and_every_parameter_learns(tmp_path, network):
    encoder = build(
        IMAGES, {"tiles": TEXT}, network=network, input=ImageOptions(size=32), folder=str(tmp_path)
    )
    tiles_in(tmp_path / "many", 5)
    tiles_in(tmp_path / "few", 2)
    spec = encoder.input_spec
    items = [spec.load({"tiles": name}, [WHOLE])[0] for name in ("many", "few")]
    with torch.inference_mode():
        both = encoder(spec.collate(items))
        alone = torch.cat([encoder(spec.collate([item])) for item in items])
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-4)
    encoder.train()(spec.collate(items)).square().sum().backward()
    assert [name for name, one in encoder.named_parameters() if one.grad is None] == []


def test_training_tiles_are_changed_by_the_bags_seed(tmp_path):
    tiles_in(tmp_path / "case")
    options = ImageOptions(size=16, augment=AugmentOptions())
    spec = build(IMAGES, {"tiles": TEXT}, folder=str(tmp_path), input=options).input_spec
    assert spec.is_random(training=True)
    cuts = [Cut("bag", 1), Cut("bag", 1), Cut("bag", 2)]
    one, same, other = spec.load({"tiles": "case"}, cuts)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    plain = build(IMAGES, {"tiles": TEXT}, folder=str(tmp_path)).input_spec
    assert plain.identity() != spec.identity()


def test_options_that_do_not_fit_are_one_sentence():
    with pytest.raises(RecipeError, match="tiles are files in columns of kind file, or listed in one of"):
        image_bag({"a": FILE, "b": TEXT})
    with pytest.raises(RecipeError, match="folder: a text lists paths, and what they are relative to"):
        image_bag({"a": TEXT})
    with pytest.raises(RecipeError, match=r"network: timm has no such network \(nonsense\)"):
        image_bag({"a": FILE}, network="nonsense")
    with pytest.raises(RecipeError, match="weights: the small network learns from scratch"):
        image_bag({"a": FILE}, weights="x.safetensors")
    for option, value in (("folder", "tiles"), ("separator", "|")):
        with pytest.raises(RecipeError) as error:
            image_bag({"a": FILE, "b": FILE}, **{option: value})
        assert str(error.value) == (
            f"{option}: of texts that list tiles, and the columns are of kind file ({value}). Leave it out."
        )
    with pytest.raises(ValidationError, match="a tile is seen whole"):
        IMAGES.config(input=ImageOptions(views=ViewOptions(patches={8: 2})))
    with pytest.raises(ValidationError, match="a bag is kept in one draw"):
        IMAGES.config(input=ImageOptions(draws=2))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"magnification": 10, "level": 2}, "(given: 10 and 2). Leave one out"),
        ({"magnification": 10, "level": 0}, None),  # as resolved.yaml has it
        ({"level": 2}, None),
    ],
)
def test_a_slide_is_read_at_a_magnification_or_from_a_level(options, said):
    if said is None:
        fusionkit_bags.SLIDE_BAG.config(**options)
        return
    with pytest.raises(ValidationError) as error:
        fusionkit_bags.SLIDE_BAG.config(**options)
    assert f"tiles are read at a `magnification` or from a `level` {said}" in str(error.value)


# beside a record


LEARN = [{"name": "learn_tiles", "pretrain": "extra.encoder", "epochs": 8, "batch_size": 8}]


@pytest.mark.slow
def test_bags_of_vectors_answer_beside_a_record_in_another_process(tmp_path):
    """One tile in a bag tells: what multiple-instance learning is for."""
    rng = np.random.default_rng(1)
    (tmp_path / "study").mkdir()

    def cell(row, is_ill):
        values = rng.normal(0, 1, (3 + row % 5, 6)).astype(np.float32)
        values[0, 0] += 8 * is_ill
        np.save(tmp_path / "study" / f"{row}.npy", rng.permutation(values))
        return {"tiles": f"{row}.npy"}

    rows = doors.rows_of(cell)
    doors.write_table(tmp_path / "study" / "rows.csv", rows)
    encoder = {"use": "vector_bag", "width": 6, "hidden": 8, "embed": 16, "max_tiles": 6}
    text = doors.recipe(encoder, {"tiles": {"kind": "file"}}, learns=LEARN)
    result = doors.run_beside_a_record(tmp_path, text)
    assert doors.auc(result) > 0.8
    doors.predict_in_another_process(tmp_path, result, rows)


@pytest.mark.slow
def test_bags_of_images_answer_beside_a_record_in_another_process(tmp_path):
    def cell(row, is_ill):
        for tile in range(2 + row % 3):
            paint(tmp_path / "study" / f"case{row}" / f"{tile}.png", 180 if is_ill else 80, 10 * row + tile)
        return {"tiles": f"case{row}"}

    rows = doors.rows_of(cell)
    doors.write_table(tmp_path / "study" / "rows.csv", rows)
    encoder = {"use": "image_bag", "folder": "study", "hidden": 4, "max_tiles": 3, "input": {"size": 16}}
    text = doors.recipe(encoder, {"tiles": {"kind": "text"}}, learns=LEARN)
    result = doors.run_beside_a_record(tmp_path, text)
    assert doors.auc(result) > 0.8
    doors.predict_in_another_process(tmp_path, result, rows)
