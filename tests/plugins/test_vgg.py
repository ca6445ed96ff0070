from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from safetensors.torch import save_file
from torch import nn
from torchvision.models import vgg16

import fusionkit_vgg
from fusionkit import Cut
from fusionkit.errors import DataError, IntegrityError
from fusionkit.registry import Registry
from fusionkit.specs import ColumnSpec, EncoderSpec, ImageOptions
from fusionkit.training.pretrain import Classifier

CARDS = {card.name: card for card in fusionkit_vgg.fusionkit_components()}
COLUMNS = {"image": ColumnSpec(kind="file")}
SMALL = ImageOptions(size=32)
CHANNELS = {1: 64, 2: 128, 3: 256, 4: 512, 5: 512}
BEFORE_POOLING = {1: 4, 2: 9, 3: 16, 4: 23, 5: 30}
"""Index of each block's pooling in torchvision's VGG16: its input is the block's output."""


def build(name: str = "vgg16_multilevel", **options) -> nn.Module:
    torch.manual_seed(0)
    config = CARDS[name].config(**{"input": SMALL, **options})
    return CARDS[name].build(config, COLUMNS).eval()


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(1)
    return vgg16(weights=None).eval()


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("weights") / "vgg16.safetensors"
    save_file({f"features.{name}": tensor for name, tensor in theirs.features.state_dict().items()}, path)
    return str(path)


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def hooked(theirs, images) -> dict[int, torch.Tensor]:
    """What torchvision's model gives each pooling, caught by hooks."""
    caught: dict[int, torch.Tensor] = {}
    handles = [
        theirs.features[index].register_forward_pre_hook(
            lambda module, inputs, block=block: caught.__setitem__(block, inputs[0].clone())
        )
        for block, index in BEFORE_POOLING.items()
    ]
    with torch.inference_mode():
        theirs(images)
    for handle in handles:
        handle.remove()
    return caught


def test_the_cards_are_found_through_the_entry_point():
    registry = Registry.discover()
    for name in CARDS:
        assert registry.card(EncoderSpec, name) is CARDS[name]


@pytest.mark.parametrize("blocks", [(3, 4, 5), (5,), (1,), (1, 3), (1, 2, 3, 4, 5), (2, 4)])
def test_taps_equal_hooks_on_torchvisions_vgg16(weights, images, hooked, blocks):
    encoder = build(blocks=blocks, weights=weights)
    with torch.inference_mode():
        features = encoder(images)
    expected = torch.cat([hooked[block].mean((2, 3)) for block in blocks], 1)
    assert features.shape == (3, sum(CHANNELS[block] for block in blocks)) == (3, encoder.output_dim)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-6)


def test_the_papers_blocks_are_1280_wide_and_have_14_714_688_parameters():
    encoder = build()
    assert encoder.output_dim == 256 + 512 + 512 == 1280
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 14_714_688


def test_any_subset_of_blocks_in_rising_order_is_allowed_and_nothing_else():
    for length in range(1, 6):
        for blocks in itertools.combinations(range(1, 6), length):
            assert fusionkit_vgg.MultilevelConfig(blocks=blocks).blocks == blocks
    for blocks in ((), (4, 3), (3, 3), (0,), (6,)):
        with pytest.raises(ValidationError):
            fusionkit_vgg.MultilevelConfig(blocks=blocks)


def test_block_sizes_are_the_papers():
    """56 x 56 x 256, 28 x 28 x 512 and 14 x 14 x 512 for 224 x 224: before each block's pooling."""
    with torch.inference_mode():
        outputs = build().blocks(torch.zeros(1, 3, 224, 224), 5)
    shapes = {block: tuple(output.shape[1:]) for block, output in outputs.items()}
    assert shapes == {
        1: (64, 224, 224),
        2: (128, 112, 112),
        3: (256, 56, 56),
        4: (512, 28, 28),
        5: (512, 14, 14),
    }


def test_pretraining_features_are_block_5_whichever_blocks_are_tapped(weights, images, hooked):
    for blocks in ((1,), (3, 4, 5)):
        encoder = build(blocks=blocks, weights=weights)
        assert encoder.pretraining_dim == 512
        with torch.inference_mode():
            torch.testing.assert_close(encoder.pretraining_features(images), hooked[5], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("blocks", "size", "n_places"), [((3, 4, 5), 48, 9), ((5,), 112, 49), ((1, 3), 24, 36)]
)
def test_tokens_are_the_places_of_the_last_tapped_block(blocks, size, n_places):
    encoder = build(blocks=list(blocks), input=ImageOptions(size=size)).eval()
    images = torch.randint(0, 256, (2, 3, size, size), dtype=torch.uint8)
    with torch.inference_mode():
        values, mask = encoder.tokens(images)
        last = encoder.blocks(images, max(blocks))[max(blocks)]
    assert values.shape == (2, n_places, encoder.token_dim)
    assert (encoder.n_tokens, mask.shape) == (n_places, (2, n_places))
    assert bool(mask.all())
    torch.testing.assert_close(values, last.flatten(2).transpose(1, 2))


def test_of_224_pixels_tokens_are_block_5_after_vggs_own_pooling():
    encoder = build(blocks=[5], input=ImageOptions(size=224)).eval()
    images = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    with torch.inference_mode():
        values, _ = encoder.tokens(images)
        pooled = encoder.features[-1](encoder.blocks(images, 5)[5])
    assert encoder.n_tokens == 49
    torch.testing.assert_close(values, pooled.flatten(2).transpose(1, 2))


def test_rows_do_not_depend_on_batch_size_or_neighbours(images):
    encoder = build()
    with torch.inference_mode():
        together = encoder(images)
        for row in range(3):
            torch.testing.assert_close(
                encoder(images[row : row + 1]), together[row : row + 1], rtol=1e-4, atol=1e-6
            )
        other = images.clone()
        other[1:] = 1e4
        torch.testing.assert_close(encoder(other)[:1], together[:1], rtol=1e-4, atol=1e-6)


def test_bytes_are_normalised_as_the_options_say(tmp_path: Path):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    encoder = build(input=SMALL.model_copy(update={"mean": (0.1, 0.2, 0.3), "std": (0.5, 0.25, 1.0)}))
    spec = encoder.input_spec
    batch = spec.collate(spec.load({"image": tmp_path / "x.png"}, [Cut("whole")]))
    assert batch.dtype == torch.uint8
    by_hand = (pixels.transpose(2, 0, 1) / 255 - np.array([[[0.1]], [[0.2]], [[0.3]]])) / np.array(
        [[[0.5]], [[0.25]], [[1.0]]]
    )
    with torch.inference_mode():
        torch.testing.assert_close(encoder(batch), encoder(torch.from_numpy(by_hand).float()[None]))


def test_training_through_the_taps_reaches_every_convolution(images):
    encoder = build(blocks=(3, 5))
    encoder(images).sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())
    tapped_early = build(blocks=(1,))
    tapped_early.pretraining_features(images).sum().backward()
    assert all(parameter.grad is not None for parameter in tapped_early.parameters())


# weights


def test_scratch_weights_follow_the_seed_and_start_as_torchvisions():
    one, other = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    conv = one.features[10]
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert torch.equal(conv.bias, torch.zeros(256))


def test_options_that_bring_weights_need_no_stage():
    card = CARDS["vgg16_multilevel"]
    assert not card.is_pretrained(card.config())
    assert card.is_pretrained(card.config(weights="imagenet"))
    assert card.is_pretrained(card.config(weights="weights/x.safetensors"))
    fc = CARDS["vgg16_fc"]
    assert not fc.is_pretrained(fc.config(weights="imagenet")), "its last layer has learned nothing"


def test_weights_that_are_not_there_or_not_vgg16s_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="there is no such weights file"):
        build(weights=str(tmp_path / "x.safetensors"))
    (tmp_path / "x.pth").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"only \.safetensors weights are read, never a pickle"):
        build(weights=str(tmp_path / "x.pth"))
    path = tmp_path / "x.safetensors"
    save_file({"features.0.weight": torch.zeros(64, 3, 3, 3)}, path)
    with pytest.raises(IntegrityError) as error:
        build(weights=str(path))
    assert str(error.value) == (
        f"{path}: weights of another architecture (25 of 26 tensors are absent, such as features.0.bias). "
        "Name the file of this one."
    )


# one layer at the end


@pytest.mark.parametrize("nodes", [29, 1280])
def test_the_fully_connected_variant_ends_in_its_nodes(theirs, weights, images, nodes):
    encoder = build("vgg16_fc", nodes=nodes, weights=weights)
    assert encoder.output_dim == nodes
    assert sum(parameter.numel() for parameter in encoder.parameters()) == 14_714_688 + 25_088 * nodes + nodes
    with torch.inference_mode():
        pooled = theirs.avgpool(theirs.features(images)).flatten(1)
        torch.testing.assert_close(encoder(images), encoder.layer(pooled).relu(), rtol=1e-5, atol=1e-6)
        plain = build("vgg16_fc", nodes=nodes, weights=weights, activation="none")
        assert (plain(images) < 0).any()


# the temporary classifier


def test_vggs_own_classifier_is_4096_4096_on_7_x_7_x_512(theirs):
    classifier = Classifier("vgg", 512, True, 2)
    linear = [layer for layer in classifier.modules() if isinstance(layer, nn.Linear)]
    assert [(layer.in_features, layer.out_features) for layer in linear] == [
        (25088, 4096),
        (4096, 4096),
        (4096, 2),
    ]
    kinds = [type(layer) for layer in classifier.layers]
    assert kinds == [type(layer) for layer in theirs.classifier]


def test_vggs_own_classifier_sees_block_5_after_its_pooling(theirs):
    """With torchvision's own last layers on block 5, the whole is torchvision's VGG16."""
    classifier = Classifier("vgg", 512, True, 1000).eval()
    classifier.layers.load_state_dict(theirs.classifier.state_dict())
    image = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        block_5 = theirs.features[:30](image)
        torch.testing.assert_close(classifier(block_5), theirs(image), rtol=1e-4, atol=1e-4)


def test_the_linear_classifier_averages_over_the_image():
    classifier = Classifier("linear", 4, True, 2)
    features = torch.rand(3, 4, 5, 5)
    assert torch.equal(classifier(features), classifier.layers(features.mean((2, 3))))
    flat = torch.rand(3, 4)
    assert torch.equal(classifier(flat), classifier.layers(flat))
