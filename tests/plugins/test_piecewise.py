"""piecewise_linear: the paper's formula, and what it does with constant, discrete and missing values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fusionkit_raisers
from fusionkit.errors import PluginError, RecipeError
from fusionkit.interfaces import Fittable

CARD = fusionkit_raisers.PIECEWISE_LINEAR


def build(input_dim, output="4x"):
    return CARD.build(CARD.config(output=output), input_dim)


def encode_slowly(x, edges, n_bins):
    """Equation 1 of Gorishniy et al. 2022, one value, with zeros for bins that coincide."""
    code = []
    for t in range(1, n_bins + 1):
        if t > len(edges) - 1:
            code.append(0.0)
        elif x < edges[t - 1] and t > 1:
            code.append(0.0)
        elif x >= edges[t] and t < len(edges) - 1:
            code.append(1.0)
        else:
            code.append((x - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return code


# whole numbers, so that many values coincide, and quarters
VALUES = st.integers(-20, 20).map(lambda number: number / 4)
CELLS = st.one_of(VALUES, VALUES, VALUES, st.just(float("nan")))


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_it_is_the_papers_formula(data):
    input_dim, n_bins = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 5))
    table = st.lists(st.lists(CELLS, min_size=input_dim, max_size=input_dim), min_size=1, max_size=12)
    train, test = (np.array(data.draw(table), dtype=np.float32) for _ in range(2))
    raiser = build(input_dim, f"{n_bins}x").fit(torch.from_numpy(train), seed=0)
    expected = np.zeros((len(test), input_dim, n_bins))
    for field in range(input_dim):
        known = train[:, field][~np.isnan(train[:, field])].astype(np.float64)
        quantiles = np.quantile(known, np.linspace(0, 1, n_bins + 1)) if len(known) else np.zeros(0)
        edges = np.unique(quantiles.astype(np.float32)).astype(np.float64)
        mean = (
            np.mean([encode_slowly(x, edges, n_bins) for x in known], 0) if len(known) else np.zeros(n_bins)
        )
        for row, x in enumerate(test[:, field]):
            expected[row, field] = mean if np.isnan(x) else encode_slowly(x, edges, n_bins)
    found = raiser(torch.from_numpy(test))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected.reshape(len(test), -1), rtol=1e-3, atol=1e-4)


def test_a_value_fills_its_bins_one_after_the_other():
    raiser = build(1).fit(torch.tensor([[0.0], [1.0], [2.0], [4.0], [8.0]]), seed=0)
    found = raiser(torch.tensor([[0.0], [0.5], [1.0], [3.0], [6.0], [8.0]]))
    assert found.tolist() == [
        [0, 0, 0, 0],
        [0.5, 0, 0, 0],
        [1, 0, 0, 0],
        [1, 1, 0.5, 0],
        [1, 1, 1, 0.5],
        [1, 1, 1, 1],
    ]


def test_beyond_the_training_rows_the_outer_bins_go_on():
    raiser = build(1).fit(torch.tensor([[0.0], [1.0], [2.0], [4.0], [8.0]]), seed=0)
    assert raiser(torch.tensor([[-2.0], [12.0]])).tolist() == [[-2, 0, 0, 0], [1, 1, 1, 2]]


def test_a_constant_field_gives_zeros():
    rows = torch.stack([torch.full((9,), 3.0), torch.arange(9.0)], 1)
    raiser = build(2).fit(rows, seed=0)
    assert not raiser(torch.tensor([[3.0, 1.0], [5.0, 1.0], [torch.nan, 1.0]]))[:, :4].any()


def test_a_field_of_two_values_has_one_bin():
    raiser = build(1).fit(torch.tensor([[0.0]] * 5 + [[1.0]] * 4), seed=0)
    used = raiser(torch.tensor([[0.0], [1.0]]))
    assert used.tolist()[0] == [0] * 4
    assert used.tolist()[1][int(raiser.n_used[0]) :] == [0] * (4 - int(raiser.n_used[0]))
    assert used[1].sum() == raiser.n_used[0]


def test_a_missing_value_gets_the_fields_mean_code_and_has_no_say_in_it():
    rows = torch.tensor([[0.0], [1.0], [3.0], [4.0], [torch.nan]])
    raiser = build(1, "2x").fit(rows, seed=0)
    assert CARD.accepts_missing
    known = raiser(rows[:4])
    torch.testing.assert_close(raiser(rows)[4], known.mean(0))
    alone = build(1, "2x").fit(rows[:4], seed=0)
    assert torch.equal(alone(rows), raiser(rows))


def test_a_field_that_no_row_has_gives_zeros():
    raiser = build(2).fit(torch.tensor([[torch.nan, 1.0], [torch.nan, 2.0]]), seed=0)
    assert not raiser(torch.tensor([[1.0, 1.0], [torch.nan, 2.0]]))[:, :4].any()


@pytest.mark.parametrize("scale", [1e-45, 1e-30, 1.0, 1e30])
def test_values_of_any_size_have_finite_codes(scale):
    rows = torch.tensor([[0.0], [1.0], [2.0], [3.0]]) * scale
    assert bool(build(1).fit(rows, seed=0)(rows).isfinite().all())


def test_values_that_differ_by_rounding_are_one():
    """Else the last bin would be so narrow that another value lies a million bins away."""
    rows = torch.cat([torch.arange(4.0), torch.tensor([3.0000002] * 4)])[:, None]
    raiser = build(1, "8x").fit(rows, seed=0)
    assert float(raiser(torch.tensor([[4.0]])).max()) < 20


def test_a_fit_forgets_an_earlier_one_and_keeps_all_in_the_state():
    rows = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    coarse = rows.round()
    raiser, again = build(3).fit(rows, seed=0).fit(coarse, seed=1), build(3)
    assert isinstance(raiser, Fittable)
    again.load_state_dict(raiser.state_dict())
    assert torch.equal(again(rows), raiser(rows))
    assert torch.equal(build(3).fit(coarse, seed=2)(rows), raiser(rows))


@pytest.mark.parametrize(("output", "output_dim"), [("20x", 580), (580, 580), (29, 29), ("1x", 29)])
def test_the_width_is_a_number_of_bins_for_each_field(output, output_dim):
    raiser = build(29, output)
    assert raiser.output_dim == output_dim
    raiser.fit(torch.rand(9, 29), seed=0)
    for n_rows in (0, 1, 3):
        assert raiser(torch.rand(n_rows, 29)).shape == (n_rows, output_dim)


def test_a_width_that_is_no_multiple_is_refused():
    with pytest.raises(RecipeError) as error:
        build(29, 500)
    assert str(error.value) == (
        "piecewise_linear: output is no multiple of the fields (500 for 29). "
        "Say how many bins each has, such as 20x."
    )


def test_before_it_was_fitted_it_says_so():
    with pytest.raises(PluginError) as error:
        build(2)(torch.zeros(1, 2))
    assert str(error.value) == "piecewise_linear: not fitted yet. Name this raiser in a fit or train stage."
