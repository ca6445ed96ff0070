from __future__ import annotations

import pytest
import timm
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from toy_images import FOLD, RECIPE, make_experiment, make_registry

import fusionkit_timm
import fusionkit_vgg
from fusionkit.errors import DataError, IntegrityError, RecipeError
from fusionkit.registry import Registry
from fusionkit.specs import ColumnSpec, EncoderSpec, ImageOptions
from fusionkit.training.stages import plan_steps, run_steps

CARD = fusionkit_timm.MULTILEVEL
COLUMNS = {"image": ColumnSpec(kind="file")}
WIDTHS = {
    "test_resnet": [32, 32, 48, 192, 96],
    "test_efficientnet": [16, 24, 32, 48, 64],
    "test_convnext": [24, 32, 48, 64],
    "test_vit": [64] * 6,
}


def build(model: str = "test_resnet", size: int = 64, **options) -> nn.Module:
    torch.manual_seed(0)
    config = CARD.config(model=model, input=ImageOptions(size=size), **options)
    return CARD.build(config, COLUMNS).eval()


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    return torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    torch.manual_seed(1)
    return timm.create_model("test_resnet").eval()


@pytest.fixture(scope="module")
def weights(theirs, tmp_path_factory) -> str:
    """All of timm's network, its classifier included, as its own files have it."""
    path = tmp_path_factory.mktemp("weights") / "resnet.safetensors"
    save_file(theirs.state_dict(), path)
    return str(path)


def test_the_card_is_found_through_the_entry_point():
    assert Registry.discover().card(EncoderSpec, "timm_multilevel") is CARD


# features


@pytest.mark.parametrize("model", WIDTHS)
def test_widths_are_known_at_build_and_are_those_of_the_tapped_stages(model, images):
    for stages in ((-1,), (0, -1), (1, 2)):
        encoder = build(model, stages=stages)
        assert encoder.output_dim == sum(WIDTHS[model][stage] for stage in stages)
        with torch.inference_mode():
            assert encoder(images).shape == (3, encoder.output_dim)
            maps = encoder.pretraining_features(images)
        assert maps.shape[:2] == (3, encoder.pretraining_dim) == (3, WIDTHS[model][-1])


def test_taps_equal_hooks_on_timms_own_network(theirs, weights, images):
    caught = {}
    modules = [theirs.act1, theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4]
    handles = [
        module.register_forward_hook(lambda _, __, out, index=index: caught.__setitem__(index, out.clone()))
        for index, module in enumerate(modules)
    ]
    with torch.inference_mode():
        theirs(images)
    for handle in handles:
        handle.remove()
    encoder = build(stages=(0, 2, -2, -1), weights=weights)
    with torch.inference_mode():
        expected = torch.cat([caught[stage].mean((2, 3)) for stage in (0, 2, 3, 4)], 1)
        torch.testing.assert_close(encoder(images), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(encoder.pretraining_features(images), caught[4], rtol=1e-5, atol=1e-6)


def test_rows_do_not_depend_on_their_neighbours(images):
    encoder = build(stages=(1, -1), grid=2)
    other = images.clone()
    other[1:] = 1e3
    with torch.inference_mode():
        torch.testing.assert_close(encoder(other)[:1], encoder(images)[:1], rtol=1e-4, atol=1e-5)


def test_a_grid_is_each_tile_encoded_by_itself_row_by_row(weights, images):
    whole, tiled = build(size=32, weights=weights), build(grid=2, weights=weights)
    quarters = [images[:, :, y : y + 32, x : x + 32] for y in (0, 32) for x in (0, 32)]
    with torch.inference_mode():
        expected = torch.cat([whole(quarter) for quarter in quarters], 1)
        torch.testing.assert_close(tiled(images), expected, rtol=1e-5, atol=1e-6)
        maps = [whole.pretraining_features(quarter) for quarter in quarters]
        beside = torch.cat([torch.cat(maps[:2], 3), torch.cat(maps[2:], 3)], 2)
        torch.testing.assert_close(tiled.pretraining_features(images), beside, rtol=1e-5, atol=1e-6)
    assert (tiled.output_dim, tiled.pretraining_dim) == (4 * 96, 96)


def test_training_reaches_every_parameter(images):
    for model in WIDTHS:
        encoder = build(model)
        encoder.train()(images).sum().backward()
        without = [name for name, one in encoder.named_parameters() if one.grad is None]
        assert without == []


@pytest.mark.slow
def test_timms_vgg16_is_the_papers_with_the_same_file(tmp_path, images):
    """One file of torchvision's names serves both; stages 2, 3, 4 of timm are blocks 3, 4, 5."""
    torch.manual_seed(0)
    card = next(card for card in fusionkit_vgg.fusionkit_components() if card.name == "vgg16_multilevel")
    ours = card.build(card.config(input=ImageOptions(size=64)), COLUMNS).eval()
    path = tmp_path / "vgg16.safetensors"
    save_file({f"features.{name}": tensor for name, tensor in ours.features.state_dict().items()}, path)
    encoder = build("vgg16", stages=(2, 3, 4), weights=str(path))
    assert encoder.output_dim == 1280
    with torch.inference_mode():
        torch.testing.assert_close(encoder(images), ours(images), rtol=1e-4, atol=1e-5)


# options that are wrong


def test_an_unknown_network_is_one_sentence_with_the_nearest_name():
    with pytest.raises(RecipeError) as error:
        build("resnet81")
    assert str(error.value).startswith("model: timm has no such network (resnet81). Near it: resnet")
    assert str(error.value).endswith(f". `timm.list_models()` names all {len(timm.list_models())}.")
    with pytest.raises(RecipeError, match=r"no such network \(hf-hub:someone/resnet\)"):
        build("hf-hub:someone/resnet")


def test_stages_that_are_not_there_or_twice_the_same_are_one_sentence():
    with pytest.raises(RecipeError) as error:
        build(stages=(5,))
    assert str(error.value) == (
        "stages: test_resnet has 5 stages (given: [5]). Known: 0 to 4, or -5 to -1 from the end."
    )
    with pytest.raises(RecipeError) as error:
        build(stages=(4, -1))
    assert str(error.value) == ("stages: name each stage once, in rising order (given: [4, -1], of 5).")
    for stages in ((), (2, 1), (-1, -2), (1, 1)):
        with pytest.raises(ValidationError):
            build(stages=stages)


def test_pictures_that_do_not_fit_are_one_sentence():
    with pytest.raises(RecipeError, match=r"input.size: inception_v3 cannot see a picture of 32 x 32 pixels"):
        build("inception_v3", size=32)
    with pytest.raises(RecipeError) as error:
        build(grid=3)
    assert str(error.value) == (
        "grid: 64 pixels cannot be cut into 3 equal tiles. Set an `input.size` that is a multiple of `grid`."
    )


# weights


def test_scratch_weights_follow_the_seed_and_nothing_is_fetched(monkeypatch):
    monkeypatch.setattr(timm.models._builder, "load_pretrained", lambda *a, **k: pytest.fail("fetched"))
    one, other = build(), build()
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_timms_own_weights_are_fetched_only_where_the_recipe_asks(monkeypatch):
    def offline(*arguments, **options):
        raise ConnectionError("no route")

    monkeypatch.setattr(timm.models._builder, "load_pretrained", offline)
    with pytest.raises(DataError) as error:
        build(weights="pretrained")
    assert str(error.value) == (
        "weights: timm's for test_resnet cannot be fetched (no route). Go online, or name a safetensors file."
    )


def test_a_file_is_loaded_whole_but_for_the_classifier(theirs, weights):
    state = build(weights=weights).network.state_dict()
    assert set(theirs.state_dict()) - set(state) == {"fc.weight", "fc.bias"}
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in state.items())
    assert CARD.is_pretrained(CARD.config(model="resnet18", weights=weights))
    assert not CARD.is_pretrained(CARD.config(model="resnet18"))


def test_a_file_of_another_network_is_one_sentence(weights, tmp_path):
    with pytest.raises(IntegrityError, match="weights of another architecture"):
        build("test_convnext", weights=weights)
    with pytest.raises(DataError, match="there is no such weights file"):
        build(weights=str(tmp_path / "x.safetensors"))
    tensors = load_file(weights) | {"strange": torch.zeros(1)}
    path = tmp_path / "strange.safetensors"
    save_file(tensors, path)
    with pytest.raises(IntegrityError, match="1 are unknown, such as strange"):
        build(weights=str(path))


# batch normalisation


ENCODER = "{use: timm_multilevel, model: test_resnet, input: {size: 32}, weights: none}"
LEARN = "  - name: learn_image\n    pretrain: image.encoder\n    epochs: 2\n    batch_size: 8\n"


@pytest.fixture
def registry(monkeypatch):
    registry = make_registry()
    registry.add("fusionkit_timm", fusionkit_timm)
    monkeypatch.setattr("toy_images.make_registry", lambda: registry)
    return registry


def test_a_frozen_network_stays_as_its_file_batch_statistics_included(tmp_path, registry, theirs, weights):
    text = RECIPE.replace("{use: toy_conv, input: {size: 8}}", ENCODER.replace("none", weights))
    assert LEARN in text
    experiment = make_experiment(tmp_path, text=text.replace(LEARN, ""))
    plan = plan_steps(experiment, FOLD, 0)
    assert run_steps(experiment, plan) == len(plan.steps)
    assert not any("image.encoder" in step.learned for step in plan.steps)
    encoder = experiment.module("image.encoder", plan.origins["image.encoder"])
    state = encoder.network.state_dict()
    assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in state.items())
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_a_learning_network_learns_its_batch_statistics_and_keeps_them(tmp_path, registry):
    experiment = make_experiment(tmp_path, text=RECIPE.replace("{use: toy_conv, input: {size: 8}}", ENCODER))
    plan = plan_steps(experiment, FOLD, 0)
    run_steps(experiment, plan)
    learned = experiment.fresh("image.encoder", plan.origins["image.encoder"])
    tracked = {
        int(module.num_batches_tracked) for module in learned.modules() if isinstance(module, nn.BatchNorm2d)
    }
    assert tracked == {2 * 3}, "epochs times batches of 8 in 24 rows; the head's stage adds none"
