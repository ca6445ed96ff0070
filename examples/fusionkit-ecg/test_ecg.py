"""The contract, clause by clause, and what is this encoder's own: which files it reads and refuses."""

import numpy as np
import pytest

from fusionkit import DataError
from fusionkit.testing import parametrize_with_checks
from fusionkit_ecg import fusionkit_components
from fusionkit_ecg.signals import read


@parametrize_with_checks(fusionkit_components())
def test_conformance(case, check):
    check(case)


def test_a_recording_is_cut_or_filled_up_and_each_lead_scaled(tmp_path):
    values = np.random.default_rng(0).normal(5, 3, (100, 2))
    np.save(tmp_path / "a.npy", values)
    short, long = read(tmp_path / "a.npy", 2, 60), read(tmp_path / "a.npy", 2, 120)
    assert (short.shape, long.shape) == ((2, 60), (2, 120))
    assert (long[:, 100:] == 0).all()
    np.testing.assert_allclose(long[:, :100].std(1), 1, rtol=1e-4)
    np.testing.assert_allclose(np.median(long[:, :100], 1), 0, atol=1e-4)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.zeros(9), "not an electrocardiogram of 2 leads (shape: (9,)). Finite values are read, a row"),
        (np.zeros((9, 3)), "not an electrocardiogram of 2 leads (shape: (9, 3)). Finite values are read,"),
        (np.zeros((0, 2)), "not an electrocardiogram of 2 leads (shape: (0, 2)). Finite values are read,"),
        (np.array([[1.0, np.nan]]), "not an electrocardiogram of 2 leads (shape: (1, 2)). Finite values"),
        (np.array([["a"]], dtype=object), "not a .npy file of numbers ("),
    ],
)
def test_what_is_no_electrocardiogram_is_refused(tmp_path, values, reason):
    file = tmp_path / "a.npy"
    np.save(file, values, allow_pickle=True)
    with pytest.raises(DataError) as caught:
        read(file, 2, 64)
    assert caught.value.problems[0].startswith(f"{file}: {reason}")
