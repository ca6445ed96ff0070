from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

import fusionkit_pixels
from fusionkit import Cut
from fusionkit.registry import Registry
from fusionkit.specs import ColumnSpec, EncoderSpec, ImageOptions

(CARD,) = fusionkit_pixels.fusionkit_components()
COLUMNS = {"image": ColumnSpec(kind="file")}


def build(size: int = 8, **options):
    return CARD.build(CARD.config(input=ImageOptions(size=size), **options), COLUMNS).eval()


def test_the_card_is_found_through_the_entry_point():
    assert Registry.discover().card(EncoderSpec, "pixels") is CARD


@pytest.mark.parametrize(("colour", "dim"), [("grey", 64), ("rgb", 192)])
def test_every_pixel_is_a_feature(tmp_path, colour, dim):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "a.png")
    encoder = build(colour=colour)
    spec = encoder.input_spec
    batch = spec.collate(spec.load({"image": tmp_path / "a.png"}, [Cut("whole")]))
    found = encoder(batch)
    assert found.shape == (1, dim)
    assert encoder.output_dim == dim
    standard = (picture / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = standard.transpose(2, 0, 1) if colour == "rgb" else standard @ [0.299, 0.587, 0.114]
    np.testing.assert_allclose(found[0].numpy(), expected.reshape(-1), atol=1e-5)


def test_nothing_is_learned():
    assert not build().state_dict()


def test_no_image_is_too_large_to_be_features():
    with pytest.raises(ValidationError, match="every pixel is a feature, so `size` is at most 512"):
        CARD.config(input=ImageOptions(size=513))
    assert CARD.config().input.size == 16


def test_no_rows_have_no_features():
    assert build()(torch.zeros(0, 3, 8, 8, dtype=torch.uint8)).shape == (0, 64)
