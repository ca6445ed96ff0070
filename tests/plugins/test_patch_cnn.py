from __future__ import annotations

import pytest
import torch
from torch import nn

import fusionkit_patch_cnn
from fusionkit.registry import Registry
from fusionkit.specs import ColumnSpec, EncoderSpec, ImageOptions

CARD = fusionkit_patch_cnn.PATCH_CNN
COLUMNS = {"image": ColumnSpec(kind="file")}


def build(layers: str, size: int) -> nn.Module:
    torch.manual_seed(0)
    config = CARD.config(layers=layers, input=ImageOptions(size=size))
    return CARD.build(config, COLUMNS).eval()


def shapes(encoder: nn.Module) -> list[tuple[int, ...]]:
    return [tuple(one.weight.shape) for one in encoder.layers if isinstance(one, nn.Conv2d | nn.Linear)]


def poolings(encoder: nn.Module) -> list[int]:
    return [one.kernel_size for one in encoder.layers if isinstance(one, nn.MaxPool2d)]


def test_the_card_is_found_through_the_entry_point():
    assert Registry.discover().card(EncoderSpec, "patch_cnn") is CARD


def test_512_pixels_give_araujos_network():
    encoder = build("araujo", 512)
    convolutions = [(16, 3, 3, 3), (32, 16, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (32, 64, 3, 3)]
    # 512 -> 170 -> 85 -> 42 -> 14 -> 4
    assert shapes(encoder) == [*convolutions, (256, 32 * 4 * 4), (128, 256)]
    assert poolings(encoder) == [3, 2, 2, 3, 3]


@pytest.mark.parametrize(("size", "side"), [(64, 8), (32, 4)])
def test_64_and_32_pixels_give_spanhols_network(size, side):
    encoder = build("spanhol", size)
    assert shapes(encoder) == [(32, 3, 5, 5), (32, 32, 5, 5), (64, 32, 5, 5), (64, 64 * side * side)]
    assert poolings(encoder) == [2, 2, 2]


@pytest.mark.parametrize(("layers", "size", "kept"), [("araujo", 48, [3, 2, 2]), ("spanhol", 8, [2])])
def test_smaller_pictures_lose_the_poolings_that_would_leave_too_little(layers, size, kept):
    encoder = build(layers, size)
    assert poolings(encoder) == kept
    with torch.inference_mode():
        assert encoder(torch.zeros(2, 3, size, size)).shape == (2, encoder.output_dim)


def test_features_equal_the_layers_by_hand():
    encoder = build("spanhol", 32)
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    x = images
    for layer in encoder.layers:
        if isinstance(layer, nn.Conv2d):
            x = nn.functional.conv2d(x, layer.weight, layer.bias, padding=2).relu()
            x = nn.functional.max_pool2d(x, 2)
    last = encoder.layers[-2]
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), (x.flatten(1) @ last.weight.T + last.bias).relu())


def test_bytes_are_normalised_and_every_parameter_learns():
    encoder = build("araujo", 64)
    pixels = torch.randint(
        0, 256, (2, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    torch.testing.assert_close(encoder(pixels), encoder(encoder.input_spec.normalize(pixels)))
    encoder(pixels).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
