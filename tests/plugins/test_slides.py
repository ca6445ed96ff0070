from __future__ import annotations

import builtins
from dataclasses import replace

import doors
import numpy as np
import pytest
import tifffile
import torch

import fusionkit_bags
from fusionkit import Cut
from fusionkit.errors import DataError, RecipeError
from fusionkit.registry import Registry
from fusionkit.specs import ColumnSpec, EncoderSpec
from fusionkit.testing.kit import pair
from fusionkit_bags import slides

openslide = pytest.importorskip("openslide", reason="the extra `wsi` is not installed")
CARD = fusionkit_bags.SLIDE_BAG
COLUMNS = {"slide": ColumnSpec(kind="file")}
WHOLE = Cut("bag")
SIDE, TISSUE = 512, (slice(64, 320), slice(128, 448))
"""A slide of 512 x 512 pixels; its tissue is 256 x 320 of them."""


def paint(path, colour=(190, 60, 120), seed=0, *, tissue=TISSUE, power=None):
    """Writes a pyramid of two levels: glass that is a little noisy, and a box of stain."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    pixels = np.full((SIDE, SIDE, 3), 240.0) + rng.normal(0, 1, (SIDE, SIDE, 1))
    if tissue is not None:
        pixels[tissue] = np.array(colour) + rng.normal(0, 8, pixels[tissue].shape)
    pixels = pixels.clip(0, 255).astype(np.uint8)
    half = pixels.reshape(SIDE // 2, 2, SIDE // 2, 2, 3).mean((1, 3)).astype(np.uint8)
    said = f"Aperio Image Library v11.2.1 |AppMag = {power}|MPP = 0.5" if power else None
    options = {"photometric": "rgb", "tile": (64, 64), "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(path) as file:
        file.write(pixels, description=said, **options)
        file.write(half, subfiletype=1, description=said, **options)
    return path


@pytest.fixture(scope="module")
def slide(tmp_path_factory):
    return paint(tmp_path_factory.mktemp("slides") / "a.tiff")


def build(**options):
    torch.manual_seed(0)
    config = CARD.config(**{"tile": 64, "hidden": 4, **options})
    return CARD.build(config, COLUMNS).eval()


def load(encoder, path, *cuts):
    return encoder.input_spec.load({"slide": path}, cuts or [WHOLE])


def test_the_card_is_found_through_the_entry_point():
    assert Registry.discover().card(EncoderSpec, "slide_bag") is CARD


def test_with_slides_the_card_keeps_the_whole_contract():
    def samples(config, folder):
        colours = [(190, 60, 120), (120, 60, 190), (200, 90, 90), (90, 60, 120)]
        paths = [paint(folder / f"{row}.tiff", colour, row) for row, colour in enumerate(colours)]
        return COLUMNS, [{"slide": path} for path in paths]

    card = replace(CARD, example_files=samples)
    found = {check.name: check.look(case) for case, check in pair(card)}
    assert {name: said for name, said in found.items() if said[0] == "fail"} == {}
    assert found["check_tokens"][0] == found["check_content_key"][0] == "pass"


def test_tiles_are_the_pixels_of_tissue_and_no_glass(slide):
    (tiles,) = load(build(), slide)
    assert tiles.shape == (4 * 5, 3, 64, 64)
    whole = tifffile.imread(slide)[TISSUE]
    expected = [whole[y : y + 64, x : x + 64] for y in range(0, 256, 64) for x in range(0, 320, 64)]
    np.testing.assert_array_equal(tiles.permute(0, 2, 3, 1).numpy(), np.stack(expected))


def test_a_coarser_level_shows_more_on_fewer_tiles(slide):
    (tiles,) = load(build(level=1, tile=32), slide)
    assert len(tiles) == 4 * 5
    with pytest.raises(DataError, match=r"2 levels are there, and level 2 is due\. Set `level`"):
        load(build(level=2), slide)


def test_magnification_is_read_from_the_level_that_fits(tmp_path):
    path = paint(tmp_path / "a.svs", power=20)
    grids = {}
    for magnification in (20, 10, 5):
        config = CARD.config(tile=32, magnification=magnification)
        with slides.open_slide(path) as opened:
            assert opened.properties[slides.POWER] == "20"
            grid = slides.make_grid(path, opened, config)
        grids[magnification] = (grid.level, grid.side)
        (tiles,) = load(build(magnification=magnification, tile=32), path)
        assert tiles.shape[1:] == (3, 32, 32)
    assert grids == {20: (0, 32), 10: (1, 32), 5: (1, 64)}
    with pytest.raises(DataError, match=r"scanned at 20, and 40.0 is due"):
        load(build(magnification=40), path)


def test_a_slide_that_does_not_say_its_magnification_is_one_sentence(slide):
    with pytest.raises(DataError) as error:
        load(build(magnification=10), slide)
    assert str(error.value) == f"{slide}: the slide does not say its magnification. Set `level` instead."


def test_tissue_is_what_is_saturated():
    picture = np.full((10, 10, 3), 240, dtype=np.uint8)
    assert not slides.tissue_mask(picture).any()
    picture[2:5, 3:7] = (190, 60, 120)
    expected = np.zeros((10, 10), dtype=bool)
    expected[2:5, 3:7] = True
    np.testing.assert_array_equal(slides.tissue_mask(picture), expected)


def test_a_slide_of_nothing_but_glass_is_absent(tmp_path, slide):
    key = build().input_spec.content_key
    assert key({"slide": paint(tmp_path / "glass.tiff", tissue=None)}) is None
    assert key({"slide": None}) is None
    assert len(key({"slide": slide})) == 32


def test_the_cap_draws_by_the_seed_in_training_and_the_same_in_evaluation(slide):
    encoder = build(max_tiles=5)
    plain, again, one, same, other = load(
        encoder, slide, WHOLE, WHOLE, Cut("bag", 1), Cut("bag", 1), Cut("bag", 2)
    )
    assert len(plain) == 5
    assert torch.equal(plain, again)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert encoder.input_spec.is_random(training=True)
    assert not encoder.input_spec.is_random(training=False)


def test_only_the_tiles_that_are_taken_are_read(slide, monkeypatch):
    encoder = build(max_tiles=3)
    encoder.input_spec.content_key({"slide": slide})
    seen = []
    really = openslide.OpenSlide.read_region
    monkeypatch.setattr(
        openslide.OpenSlide, "read_region", lambda *given: seen.append(given[1:]) or really(*given)
    )
    load(encoder, slide)
    assert [size for _, _, size in seen] == [(64, 64)] * 3


def test_a_file_that_is_no_slide_is_one_sentence(tmp_path):
    path = tmp_path / "a.tiff"
    path.write_bytes(b"no slide")
    with pytest.raises(DataError, match=r"a\.tiff: not a whole slide that openslide reads"):
        build().input_spec.content_key({"slide": path})
    path = path.rename(tmp_path / "a.mrxs")
    with pytest.raises(DataError, match=r"a\.mrxs: a slide in several files\. Convert it"):
        build().input_spec.content_key({"slide": path})


@pytest.mark.parametrize("name", ["small", "test_resnet"])
def test_features_do_not_depend_on_neighbours(slide, tmp_path, name):
    other = paint(tmp_path / "b.tiff", seed=1, tissue=(slice(0, 128), slice(0, 128)))
    encoder = build(network=name)
    items = [load(encoder, path)[0] for path in (slide, other)]
    assert len(items[1]) == 4
    collate = encoder.input_spec.collate
    with torch.inference_mode():
        both = encoder(collate(items))
        alone = torch.cat([encoder(collate([item])) for item in items])
    torch.testing.assert_close(both, alone, rtol=1e-3, atol=1e-4)


def test_without_the_extra_the_sentence_says_what_to_install(monkeypatch):
    really = builtins.__import__

    def lacking(name, *arguments, **options):
        if name == "openslide":
            raise ModuleNotFoundError("No module named 'openslide'")
        return really(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    spec = build().input_spec
    with pytest.raises(RecipeError) as error:
        spec.identity()
    assert str(error.value) == (
        "use: slide_bag needs openslide, which is not installed (No module named 'openslide'). "
        "Say: pip install 'fusionkit[wsi]'."
    )


@pytest.mark.slow
def test_slides_answer_beside_a_record_in_another_process(tmp_path):
    def cell(row, is_ill):
        colour = (190, 60, 120) if is_ill else (120, 60, 190)
        paint(tmp_path / "study" / f"{row}.tiff", colour, row)
        return {"slide": f"{row}.tiff"}

    rows = doors.rows_of(cell)
    doors.write_table(tmp_path / "study" / "rows.csv", rows)
    encoder = {"use": "slide_bag", "tile": 64, "max_tiles": 3, "hidden": 4}
    learns = [{"name": "learn_slides", "pretrain": "extra.encoder", "epochs": 8, "batch_size": 8}]
    text = doors.recipe(encoder, {"slide": {"kind": "file"}}, learns=learns)
    result = doors.run_beside_a_record(tmp_path, text)
    assert doors.auc(result) > 0.8
    doors.predict_in_another_process(tmp_path, result, rows)
