"""random_fourier: a Gaussian kernel, the median as its bandwidth, the seed as its only randomness."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist
from sklearn.metrics.pairwise import rbf_kernel

import fusionkit_raisers
from fusionkit.errors import PluginError
from fusionkit.interfaces import Fittable
from fusionkit_raisers.fourier import MAX_ROWS, find_median_distance

CARD = fusionkit_raisers.RANDOM_FOURIER


def build(input_dim=4, **options):
    return CARD.build(CARD.config(**options), input_dim)


def draw(n_rows=60, input_dim=4, seed=0):
    return torch.randn(n_rows, input_dim, generator=torch.Generator().manual_seed(seed))


def bandwidth_of(raiser):
    """What the drawn frequencies were divided by: those of bandwidth 1, from the same seed, tell."""
    alike = build(raiser.input_dim, output=raiser.output_dim, bandwidth=1.0).fit(draw(), seed=3)
    return float((alike.frequencies / raiser.frequencies).median())


@pytest.mark.parametrize("bandwidth", [0.7, 3.0])
def test_inner_products_approximate_the_kernel(bandwidth):
    rows = draw()
    features = build(output=40_000, bandwidth=bandwidth).fit(rows, seed=0)(rows).double().numpy()
    kernel = rbf_kernel(rows.numpy(), gamma=1 / (2 * bandwidth**2))
    # their standard error is below 1 / root(40 000)
    np.testing.assert_allclose(features @ features.T, kernel, atol=6 / 200)
    assert 0.05 < kernel.mean() < 0.95, "the kernel tells rows apart"


def test_the_bandwidth_is_the_median_distance_of_the_training_rows():
    rows = draw(41)
    raiser = build(output=50).fit(rows, seed=3)
    assert bandwidth_of(raiser) == pytest.approx(np.median(pdist(rows.numpy())), rel=1e-5)


def test_equal_rows_have_no_say_in_the_bandwidth():
    rows = torch.cat([torch.zeros(50, 4), torch.ones(2, 4)])
    assert find_median_distance(rows.double(), torch.Generator()) == pytest.approx(2.0)


@pytest.mark.parametrize("n_rows", [1, 7])
def test_where_all_rows_are_equal_the_bandwidth_is_one(n_rows):
    rows = torch.full((n_rows, 4), 2.5)
    raiser = build(output=50).fit(rows, seed=3)
    assert bandwidth_of(raiser) == pytest.approx(1.0)
    assert bool(raiser(rows).isfinite().all())


def test_of_many_rows_some_are_drawn():
    rows = draw(3 * MAX_ROWS, 2).double()
    found = find_median_distance(rows, torch.Generator().manual_seed(0))
    assert found == pytest.approx(np.median(pdist(rows[:1500].numpy())), rel=0.05)


def test_all_randomness_is_the_seeds_and_an_earlier_fit_is_forgotten():
    rows = draw()
    torch.manual_seed(1)
    one = build().fit(rows, seed=5)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    two = build().fit(draw(seed=9), seed=6).fit(rows, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(one(rows), two(rows))
    assert not torch.equal(build().fit(rows, seed=6)(rows), one(rows))


def test_what_it_learned_is_in_its_state():
    rows = draw()
    raiser, again = build(output=9).fit(rows, seed=0), build(output=9)
    again.load_state_dict(raiser.state_dict())
    assert torch.equal(again(rows), raiser(rows))


def test_it_is_fitted_and_widens_as_the_recipe_says():
    assert CARD.learns == "closed_form"
    assert not CARD.accepts_missing
    raiser = build(29)
    assert isinstance(raiser, Fittable)
    assert (raiser.input_dim, raiser.output_dim) == (29, 580)
    raiser.fit(draw(9, 29), seed=0)
    for n_rows in (0, 1, 3):
        out = raiser(draw(n_rows, 29))
        assert (out.shape, out.dtype) == ((n_rows, 580), torch.float32)


def test_before_it_was_fitted_it_says_so():
    with pytest.raises(PluginError) as error:
        build()(draw())
    assert str(error.value) == "random_fourier: not fitted yet. Name this raiser in a fit or train stage."
