from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import StandardScaler

from fusionkit.core_parts import Absent, Scale, is_core_part

# scale


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 60), st.floats(-3, 3), st.floats(-2, 2))
def test_a_fitted_scale_equals_sklearns(seed, n_rows, offset, spread):
    rng = np.random.default_rng(seed)
    values = (rng.normal(size=(n_rows, 4)) * 10**spread + 10**offset).astype(np.float32)
    values[:, 2] = 0.1
    scaled = Scale(4).fit(torch.from_numpy(values))(torch.from_numpy(values)).numpy()
    varies = values.astype(np.float64).std(0) > 1e-6
    expected = StandardScaler().fit_transform(values.astype(np.float64))
    # the mean is kept in fp32, and what its last bit is worth depends on the spread around it
    rounding = np.finfo(np.float32).eps * np.abs(values).max(0) / values.astype(np.float64).std(0).clip(1e-9)
    assert (np.abs(scaled - expected) <= 1e-3 + rounding)[:, varies].all()
    assert np.abs(scaled[:, ~varies]).max() < 1e-4
    assert (scaled[:, 2] == 0).all()
    assert not varies[2]


def test_a_feature_that_never_varied_in_training_is_shifted_and_not_divided():
    """As scikit-learn does; what comes before may learn later, so its gradient must not be lost."""
    values = torch.tensor([[5.0, 1.0], [5.0, 3.0]])
    scale = Scale(2).fit(values)
    later = torch.tensor([[9.0, 5.0], [5.0, 2.0]], requires_grad=True)
    scaled = scale(later)
    assert scaled.tolist() == StandardScaler().fit(values.numpy()).transform(later.detach().numpy()).tolist()
    assert scaled.tolist() == [[4.0, 3.0], [0.0, 0.0]]
    scaled.sum().backward()
    assert later.grad.tolist() == [[1.0, 1.0], [1.0, 1.0]]


@given(st.lists(st.integers(1, 7), min_size=1, max_size=6), st.integers(0, 99))
def test_a_scale_that_learns_in_parts_equals_one_that_learns_at_once(lengths, seed):
    values = torch.randn(sum(lengths), 3, generator=torch.Generator().manual_seed(seed)) * 5 + 1e3
    values[:, 2] = 7  # never varies
    whole, parts = Scale(3).fit(values), Scale(3).fit_parts(iter(values.split(lengths)))
    assert torch.allclose(parts.mean, whole.mean, rtol=1e-6)
    assert torch.allclose(parts.std, whole.std, rtol=1e-6)
    assert parts.std[2] == 1
    assert torch.allclose(whole.std[0], values[:, 0].double().std(correction=0).float()) or len(values) == 1


def test_a_scale_has_buffers_only_and_starts_as_the_identity():
    scale, values = Scale(3), torch.tensor([[1.0, -2.0, 1e9]])
    assert list(scale.parameters()) == []
    assert set(scale.state_dict()) == {"mean", "std"}
    assert torch.equal(scale(values), values)


def test_fitting_again_forgets_the_earlier_fit():
    again = Scale(2).fit(torch.rand(9, 2)).fit(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert again.mean.tolist() == [1, 3]
    assert again.std.tolist() == [1, 2]


# what stands for the absent


def test_what_stands_for_the_absent_starts_as_the_mean_and_is_one_vector_for_all_rows():
    absent = Absent(3)
    assert absent(2).tolist() == [[0, 0, 0], [0, 0, 0]]
    absent.vector.data = torch.tensor([1.0, 2.0, 3.0])
    assert absent(2).tolist() == [[1, 2, 3], [1, 2, 3]]
    assert absent(0).shape == (0, 3)
    assert set(absent.state_dict()) == {"vector"}


def test_its_gradient_is_the_sum_over_the_rows():
    absent = Absent(2)
    (absent(3) * torch.tensor([[1.0], [2.0], [4.0]])).sum().backward()
    assert absent.vector.grad.tolist() == [7, 7]


def test_scales_and_what_stands_for_the_absent_are_the_cores_own():
    paths = ["image.scale", "image.absent", "image.encoder", "image.raiser", "head"]
    assert [is_core_part(path) for path in paths] == [True, True, False, False, False]
