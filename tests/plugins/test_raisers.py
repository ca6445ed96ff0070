from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.preprocessing import PolynomialFeatures
from torch import nn

import fusionkit_raisers
from fusionkit.errors import RecipeError
from fusionkit.interfaces import Fittable, SelfSupervised
from fusionkit.registry import Registry
from fusionkit.specs import RaiserSpec

CARDS = {card.name: card for card in fusionkit_raisers.fusionkit_components()}
AUTOENCODERS = ("ae", "dae", "dae_l1")


def build(name: str, input_dim: int = 29, **options):
    torch.manual_seed(0)
    return CARDS[name].build(CARDS[name].config(**options), input_dim)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_cards_are_found_through_the_entry_point():
    registry = Registry.discover()
    assert not registry.broken
    for name in (*AUTOENCODERS, "copy", "polynomial", "random_fourier", "piecewise_linear"):
        assert registry.card(RaiserSpec, name) is CARDS[name]


@pytest.mark.parametrize("name", sorted(CARDS))
def test_examples_build_with_known_widths(name):
    for options in CARDS[name].examples:
        raiser = CARDS[name].build(options, 5)
        assert raiser.input_dim == 5
        if CARDS[name].learns == "closed_form":
            raiser.fit(torch.rand(9, 5), seed=0)
        assert raiser(torch.rand(3, 5)).shape == (3, raiser.output_dim)


@pytest.mark.parametrize("width", ["x", "20", "0x", "-1x", "1.5x", 0, -3, "20 x"])
def test_a_width_is_a_number_or_a_multiple(width):
    with pytest.raises(ValidationError):
        fusionkit_raisers.CopyConfig(output=width)


# copy


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(0, 40), st.integers(0, 5))
def test_copy_repeats_the_vector_and_cuts_the_last_repeat(input_dim, extra, n_rows):
    raiser = build("copy", input_dim, output=input_dim + extra)
    features = torch.rand(n_rows, input_dim)
    out = raiser(features)
    assert out.shape == (n_rows, input_dim + extra)
    for column in range(input_dim + extra):
        assert torch.equal(out[:, column], features[:, column % input_dim])


def test_copy_is_20_times_by_default_and_learns_nothing():
    raiser = build("copy")
    assert raiser.output_dim == 580
    assert not list(raiser.parameters())
    assert not isinstance(raiser, Fittable | SelfSupervised)


def test_copying_n_times_weighs_like_the_root_of_n():
    """What a linear layer with an L2 penalty sees: the same distances between rows."""
    features = torch.rand(7, 29)
    copied, scaled = build("copy")(features), build("copy", output="1x", factor=20**0.5)(features)
    assert torch.equal(scaled, features * 20**0.5)
    assert torch.allclose(torch.cdist(copied, copied), torch.cdist(scaled, scaled), atol=1e-4)


def test_copy_cannot_narrow():
    with pytest.raises(RecipeError) as error:
        build("copy", 29, output=28)
    assert str(error.value) == "copy: output is narrower than the input (28 < 29). Widen it."


# polynomial


@settings(deadline=None)
@given(st.integers(1, 29), st.integers(0, 2**31))
def test_polynomial_equals_sklearns_up_to_the_order_of_columns(input_dim, seed):
    values = np.random.default_rng(seed).normal(size=(4, input_dim))
    ours = build("polynomial", input_dim)(torch.from_numpy(values)).numpy()
    theirs = PolynomialFeatures(2).fit_transform(values)
    assert ours.shape == theirs.shape
    order = [np.lexsort(table[::-1]) for table in (ours.round(9), theirs.round(9))]
    np.testing.assert_allclose(ours[:, order[0]], theirs[:, order[1]], rtol=1e-9, atol=1e-9)


def test_the_papers_polynomial_is_465_wide_and_filled_up_to_580():
    features = torch.rand(2, 29)
    assert build("polynomial").output_dim == 465
    raiser = build("polynomial", output=580)
    out = raiser(features)
    assert raiser.output_dim == 580
    assert torch.equal(out[:, :465], build("polynomial")(features))
    assert torch.equal(out[:, 465:], out[:, :115])
    assert torch.equal(out[:, 0], torch.ones(2))
    assert torch.equal(out[:, 1:30], features)


def test_polynomial_cannot_narrow():
    with pytest.raises(RecipeError) as error:
        build("polynomial", output=464)
    assert str(error.value) == (
        "polynomial: output is narrower than the terms (464 < 465 for 29 fields). "
        "Widen it, or set it to null."
    )


# autoencoders


def widths(layers: nn.Sequential) -> list[tuple[int, int]]:
    return [(layer.in_features, layer.out_features) for layer in layers if isinstance(layer, nn.Linear)]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_the_papers_layers(name):
    raiser = build(name)
    assert widths(raiser.encoder) == [(29, 290), (290, 435), (435, 580)]
    assert widths(raiser.decoder) == [(580, 435), (435, 290), (290, 29)]
    assert sum(parameter.numel() for parameter in raiser.parameters()) == 775_779
    assert (raiser.input_dim, raiser.output_dim) == (29, 580)
    assert isinstance(raiser, SelfSupervised)
    assert not isinstance(raiser, Fittable)


@pytest.mark.parametrize(
    ("activation", "kind"), [("relu", nn.ReLU), ("tanh", nn.Tanh), ("sigmoid", nn.Sigmoid)]
)
def test_every_layer_has_the_activation_but_the_reconstruction(activation, kind):
    raiser = build("ae", 4, hidden=("2x", 7), activation=activation)
    assert [type(layer) for layer in raiser.encoder] == [nn.Linear, kind] * 2
    assert [type(layer) for layer in raiser.decoder] == [nn.Linear, kind, nn.Linear]
    assert raiser.output_dim == 7


def test_the_three_cards_differ_in_corruption_and_l1():
    assert [(build(name).corruption, build(name).l1) for name in AUTOENCODERS] == [
        (0.0, 0.0),
        (0.2, 0.0),
        (0.2, 1e-6),
    ]


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_missing_value_is_exactly_what_corruption_writes(name):
    raiser, features = build(name, 6, hidden=("2x",)), torch.rand(5, 6) + 1
    seen = []
    raiser.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    gaps = features.clone()
    gaps[:, 2] = torch.nan
    raiser(gaps)
    raiser.corruption = 0.9
    raiser.loss(features, generator())
    missing, corrupted = seen
    kept = corrupted == features
    assert set(missing[:, 2].tolist()) == set(corrupted[~kept].tolist()) == {0.0}
    assert 0 < kept.float().mean() < 0.5
    zeroed = features.clone()
    zeroed[:, 2] = 0
    assert torch.equal(raiser(gaps), raiser(zeroed))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_the_loss_equals_a_hand_computation_without_missing_targets(reduction):
    raiser = build("ae", 4, hidden=("2x",), reduction=reduction).double()
    features = torch.rand(3, 4, dtype=torch.float64)
    features[0, 1] = features[0, 2] = features[2, 3] = torch.nan
    clean = features.nan_to_num(0)
    errors = (raiser.decoder(raiser.encoder(clean)) - clean).square().detach()
    rows = []
    for row in range(3):
        observed = [column for column in range(4) if not features[row, column].isnan()]
        total = sum(errors[row, column] for column in observed)
        rows.append(total / len(observed) if reduction == "mean" else total)
    assert float(raiser.loss(features, generator()).detach()) == pytest.approx(float(sum(rows) / 3), rel=1e-6)


@pytest.mark.parametrize("name", AUTOENCODERS)
def test_a_missing_target_has_no_gradient_and_no_say(name):
    raiser = build(name, 4, hidden=("2x",))
    features = torch.rand(3, 4)
    features[:, 1] = torch.nan
    raiser.loss(features, generator()).backward()
    last = raiser.decoder[-1]
    l1 = raiser.l1 * last.weight[1].sign()
    assert torch.allclose(last.weight.grad[1], l1)
    assert all(torch.isfinite(parameter.grad).all() for parameter in raiser.parameters())


def test_rows_that_are_missing_as_a_whole_have_a_finite_loss():
    raiser = build("dae", 4, hidden=("2x",))
    assert float(raiser.loss(torch.full((2, 4), torch.nan), generator()).detach()) == 0


def test_the_l1_term_counts_all_learned_parameters_and_nothing_else():
    """Sparse weights, not sparse codes: the input must not matter to it."""
    plain, sparse = build("dae", 5, hidden=("2x",)), build("dae_l1", 5, hidden=("2x",), l1=0.25)
    sparse.load_state_dict(plain.state_dict())
    norm = sum(float(parameter.detach().abs().sum()) for parameter in plain.parameters())
    assert norm > 1
    for features in (torch.rand(4, 5), torch.zeros(4, 5)):
        difference = sparse.loss(features, generator(3)) - plain.loss(features, generator(3))
        assert float(difference.detach()) == pytest.approx(0.25 * norm, rel=1e-5)


@pytest.mark.parametrize("corruption", [0.0, 0.2, 0.5])
@pytest.mark.parametrize("rescale", [False, True])
def test_the_share_of_corrupted_inputs_and_the_rescaling_of_the_others(corruption, rescale):
    raiser = build("dae", 50, hidden=(2,), corruption=corruption, rescale=rescale)
    seen = []
    raiser.encoder.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    raiser.loss(torch.ones(2000, 50), generator())
    (corrupted,) = seen
    kept = corrupted != 0
    assert float(1 - kept.float().mean()) == pytest.approx(corruption, abs=0.006)
    expected = 1 / (1 - corruption) if rescale else 1.0
    assert torch.allclose(corrupted[kept], torch.tensor(expected))
    assert kept.float().mean(0).std() < 0.03, "no column is spared"


def test_the_target_stays_clean():
    raiser = build("dae", 6, hidden=(3,), corruption=0.99)
    nn.init.zeros_(raiser.decoder[-1].weight)
    nn.init.zeros_(raiser.decoder[-1].bias)
    features = torch.rand(40, 6)
    assert float(raiser.loss(features, generator()).detach()) == pytest.approx(
        float(features.square().mean())
    )


def test_all_randomness_is_the_generators():
    raiser, features = build("dae", 8, hidden=(4,)), torch.rand(9, 8)
    torch.manual_seed(1)
    one = raiser.loss(features, generator(5))
    torch.manual_seed(2)
    assert torch.equal(raiser.loss(features, generator(5)), one)
    assert not torch.equal(raiser.loss(features, generator(6)), one)
    state = torch.get_rng_state()
    raiser(features)
    assert torch.equal(torch.get_rng_state(), state), "raising itself is not random"


def correlated_records() -> torch.Tensor:
    """600 records of 12 fields that follow two hidden causes."""
    rng = np.random.default_rng(0)
    causes = rng.normal(size=(600, 2))
    fields = causes @ rng.normal(size=(2, 12)) + 0.2 * rng.normal(size=(600, 12))
    return torch.from_numpy((fields - fields.mean(0)) / fields.std(0)).float()


@pytest.mark.parametrize("name", ["dae", "dae_l1"])
def test_it_learns_to_restore_masked_cells_better_than_the_mean_does(name):
    records = correlated_records()
    train, test = records[:400], records[400:]
    raiser = build(name, 12, hidden=("2x", "4x"))
    optimizer = torch.optim.Adam(raiser.parameters(), 3e-3)
    noise = generator()
    for _ in range(250):
        optimizer.zero_grad()
        raiser.loss(train, noise).backward()
        optimizer.step()
    masked = torch.rand(test.shape, generator=generator(1)) < 0.2
    gaps = test.masked_fill(masked, torch.nan)
    with torch.inference_mode():
        restored = raiser.decoder(raiser(gaps))
    error = (restored - test)[masked].square().mean()
    mean_error = (train.mean(0).expand_as(test) - test)[masked].square().mean()
    assert error < 0.4 * mean_error
