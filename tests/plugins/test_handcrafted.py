"""Each group against its definition, written out pixel by pixel."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import fusionkit_handcrafted
from fusionkit import Cut
from fusionkit.errors import PluginError
from fusionkit.registry import Registry
from fusionkit.specs import ColumnSpec, EncoderSpec, ImageOptions
from fusionkit_handcrafted.features import binary_patterns, co_occurrence, colour_histogram, colour_moments

CARD = fusionkit_handcrafted.HANDCRAFTED
COLUMNS = {"image": ColumnSpec(kind="file")}
SMALL = ImageOptions(size=16)
NONE = {"histogram": 0, "moments": False, "glcm": (), "lbp": ()}


def build(**options):
    return CARD.build(CARD.config(**{"input": SMALL, **options}), COLUMNS).eval()


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (3, 16, 16)).astype(np.uint8)


def test_the_card_is_found_through_the_entry_point():
    assert Registry.discover().card(EncoderSpec, "handcrafted") is CARD
    assert CARD.learns == "nothing"


@pytest.mark.parametrize(
    ("group", "width"),
    [({"histogram": 5}, 15), ({"moments": True}, 9), ({"glcm": (1, 2)}, 28), ({"lbp": (1, 3)}, 20)],
    ids=lambda value: "".join(value) if isinstance(value, dict) else str(value),
)
def test_each_group_is_an_option_and_its_width_is_known(group, width, pixels):
    encoder = build(**{**NONE, **group})
    features = encoder(torch.from_numpy(pixels)[None])
    assert features.shape == (1, width) == (1, encoder.output_dim)
    assert features.dtype == torch.float32
    assert features.any()


def test_groups_are_joined_in_order_and_rows_do_not_depend_on_neighbours(pixels):
    encoder = build(histogram=4, glcm=(1,), lbp=(2,))
    batch = torch.stack([torch.from_numpy(pixels), torch.from_numpy(pixels[::-1].copy())])
    features = encoder(batch)
    assert torch.equal(features[1:], encoder(batch[1:]))
    grey = np.asarray(Image.fromarray(pixels.transpose(1, 2, 0)).convert("L"))
    expected = np.concatenate(
        [
            colour_histogram(pixels, 4),
            colour_moments(pixels),
            co_occurrence(grey, 1, 32),
            binary_patterns(grey, 2),
        ]
    )
    # Pillow's grey is rounded another way, so that single pixels may be one level off
    np.testing.assert_allclose(features[0, :21], expected[:21], rtol=1e-6)
    np.testing.assert_allclose(features[0, 21:], expected[21:], rtol=0.05, atol=0.05)
    assert encoder(batch[:0]).shape == (0, encoder.output_dim)
    assert list(encoder.state_dict()) == []


def test_colours_are_counted_and_described_as_defined(pixels):
    for colour in range(3):
        values = pixels[colour].ravel()
        share = [np.mean((values >= 64 * b) & (values < 64 * (b + 1))) for b in range(4)]
        np.testing.assert_allclose(colour_histogram(pixels, 4)[4 * colour : 4 * colour + 4], share)
        x = values / 255
        third = ((x - x.mean()) ** 3).mean()
        moments = [x.mean(), x.std(), math.copysign(abs(third) ** (1 / 3), third)]
        np.testing.assert_allclose(colour_moments(pixels)[colour::3], moments, rtol=1e-9)


def test_co_occurrence_is_haralicks(pixels):
    grey, n_levels = pixels[0], 8
    levels = grey.astype(int) // 32
    by_angle = []
    for dy, dx in ((0, 1), (1, 1), (1, 0), (1, -1)):
        p = np.zeros((n_levels, n_levels))
        for y, x in itertools.product(range(16), repeat=2):
            if 0 <= y + dy < 16 and 0 <= x + dx < 16:
                p[levels[y, x], levels[y + dy, x + dx]] += 1
                p[levels[y + dy, x + dx], levels[y, x]] += 1
        p /= p.sum()
        i, j = np.indices(p.shape)
        mean, energy = (i * p).sum(), (p**2).sum()
        variance = ((i - mean) ** 2 * p).sum()
        by_angle.append(
            [
                ((i - j) ** 2 * p).sum(),
                (abs(i - j) * p).sum(),
                (p / (1 + (i - j) ** 2)).sum(),
                energy**0.5,
                ((i - mean) * (j - mean) * p).sum() / variance,
                energy,
                -(p[p > 0] * np.log(p[p > 0])).sum(),
            ]
        )
    values = np.array(by_angle)
    expected = np.concatenate([values.mean(0), np.ptp(values, 0)])
    np.testing.assert_allclose(co_occurrence(grey, 1, n_levels), expected, rtol=1e-9, atol=1e-12)


def test_binary_patterns_are_ojalas():
    """One dark pixel: beside it three points are darker (two by interpolation), across from it one."""
    grey = np.full((16, 16), 200, np.uint8)
    grey[8, 8] = 10
    inner = 14 * 14
    expected = np.zeros(10)
    expected[[5, 7, 8]] = [4 / inner, 4 / inner, (inner - 8) / inner]
    np.testing.assert_allclose(binary_patterns(grey, 1), expected)
    # lighter and darker by turns is no uniform pattern
    checked = np.indices((16, 16)).sum(0) % 2 * 200
    checked[::2] = 100
    assert binary_patterns(checked.astype(np.uint8), 1)[9] > 0


def test_a_picture_of_one_colour_has_finite_features():
    features = build()(torch.full((1, 3, 16, 16), 77, dtype=torch.uint8))
    assert torch.isfinite(features).all()


def test_what_is_loaded_from_a_file_goes_in_and_floats_are_refused(tmp_path, pixels):
    Image.fromarray(pixels.transpose(1, 2, 0)).save(tmp_path / "x.png")
    encoder = build()
    batch = encoder.input_spec.collate(encoder.input_spec.load({"image": tmp_path / "x.png"}, [Cut("whole")]))
    assert torch.equal(encoder(batch), encoder(torch.from_numpy(pixels)[None]))
    with pytest.raises(PluginError) as error:
        encoder(batch.float())
    assert str(error.value) == (
        "handcrafted: pictures are uint8, and torch.float32 came. Load them with `input_spec`."
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (NONE, "no feature is left: ask for histogram, moments, glcm or lbp"),
        ({"glcm": (3, 1)}, "name each number of pixels once, in rising order"),
        ({"lbp": (8,)}, "a distance of `glcm`, or twice a radius of `lbp`, is as large as the picture"),
        ({"glcm": (16,)}, "a distance of `glcm`, or twice a radius of `lbp`, is as large as the picture"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, said):
    with pytest.raises(ValidationError, match=said):
        build(**options)
