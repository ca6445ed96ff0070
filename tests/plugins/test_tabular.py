"""The encoder `structured`: its widths, what it learns, and what it does with missing cells."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fusionkit import ColumnSpec, Cut, Encoder, Fittable, PluginError, read_table
from fusionkit_tabular import StructuredOptions, fusionkit_components

NAN = float("nan")
COLUMNS = {
    "age": ColumnSpec(kind="numeric"),
    "grade": ColumnSpec(kind="ordinal", values=("I", "II", "III")),
    "sex": ColumnSpec(kind="binary", values=("m", "f")),
    "side": ColumnSpec(kind="category", values=("left", "right")),
    "signs": ColumnSpec(kind="multi", values=("red", "warm")),
}
# age, grade, sex, side, signs=red, signs=warm
RECORDS = torch.tensor(
    [
        [50.0, 0, 0, 1, 1, 0],
        [60.0, 2, 1, NAN, 0, 1],
        [NAN, 1, 1, 0, NAN, NAN],
        [70.0, NAN, 1, 1, 1, 1],
    ]
)


def encoder(columns=COLUMNS, fitted=RECORDS, **options) -> Encoder:
    (card,) = fusionkit_components()
    built = card.build(StructuredOptions(**options), columns)
    return built if fitted is None else built.fit(fitted, seed=0)


def pathoemr_columns(n_columns: int = 29) -> dict[str, ColumnSpec]:
    values = [("no", "yes"), ("a", "b", "c"), ("a", "b", "c", "d"), ("a", "b", "c", "d", "e")]
    kinds = ["binary", "ordinal", "category", "category"]
    return {f"x{i}": ColumnSpec(kind=kinds[i % 4], values=values[i % 4]) for i in range(n_columns)}


# widths


def test_29_code_columns_make_29_numbers():
    assert encoder(pathoemr_columns(), None).output_dim == 29


@pytest.mark.parametrize(
    ("options", "width"),
    [
        ({}, 6),
        ({"flags": True}, 11),
        ({"encoding": "onehot"}, 8),
        ({"encoding": "onehot", "flags": True}, 13),
    ],
)
def test_the_width_is_known_when_built_and_never_changes(options, width):
    built = encoder(fitted=None, **options)
    assert built.output_dim == width
    assert built.input_spec.output_dim == 6
    built.fit(RECORDS, seed=0)
    assert built(RECORDS).shape == (4, width)
    assert built(RECORDS).dtype == torch.float32
    assert built.output_dim == width


# values


def test_codes_pass_unscaled():
    values = encoder(scale="none", missing="keep")(RECORDS)
    assert torch.equal(values.nan_to_num(-1), RECORDS.nan_to_num(-1))


def test_one_hot_where_there_are_three_values_or_more():
    values = encoder(scale="none", missing="keep", encoding="onehot")(RECORDS)
    assert values[:3, 1:4].tolist() == [[1, 0, 0], [0, 0, 1], [0, 1, 0]]
    assert values[3, 1:4].isnan().all()
    assert torch.equal(values[:, [0, 4, 5, 6, 7]].nan_to_num(-1), RECORDS[:, [0, 2, 3, 4, 5]].nan_to_num(-1))


def test_flags_say_which_cells_were_missing():
    flags = encoder(scale="none", flags=True)(RECORDS)[:, 6:]
    assert flags.tolist() == [
        [0, 0, 0, 0, 0],
        [0, 0, 0, 1, 0],
        [1, 0, 0, 0, 1],
        [0, 1, 0, 0, 0],
    ]


def test_missing_becomes_the_mean_of_the_training_rows():
    values = encoder(scale="none")(RECORDS)
    assert values[2].tolist() == pytest.approx([60, 1, 1, 0, 2 / 3, 2 / 3])
    assert not values.isnan().any()


def test_standard_scale_agrees_with_numpy():
    records = RECORDS.numpy().astype(float)
    expected = (records - np.nanmean(records, axis=0)) / np.nanstd(records, axis=0)
    kept = encoder(missing="keep")(RECORDS).numpy()
    assert np.allclose(kept, expected, atol=1e-6, equal_nan=True)
    assert np.allclose(encoder()(RECORDS).numpy(), np.nan_to_num(expected), atol=1e-6)


def test_range_scale_brings_the_training_rows_between_0_and_1():
    built = encoder(scale="range", missing="keep")
    records = RECORDS.numpy().astype(float)
    least, greatest = np.nanmin(records, axis=0), np.nanmax(records, axis=0)
    assert np.allclose(built(RECORDS).numpy(), (records - least) / (greatest - least), equal_nan=True)
    assert built(torch.tensor([[80.0, 0, 0, 1, 1, 0]]))[0, 0] == 1.5


def test_range_scale_with_columns_without_spread_or_values():
    records = torch.tensor([[0.5, NAN, 5.0], [0.5, NAN, NAN], [0.5, NAN, 7.0]])
    columns = {name: ColumnSpec(kind="numeric") for name in "abc"}
    built = encoder(columns, records, scale="range")
    assert built(torch.tensor([[1.5, 3.0, NAN]]))[0].tolist() == [1.0, 3.0, 0.5]


def test_statistics_are_those_of_the_training_rows():
    built = encoder(fitted=RECORDS[:2])
    assert built(RECORDS)[3, 0] == pytest.approx((70 - 55) / 5)


def test_columns_without_spread_or_values_stay_finite():
    records = torch.tensor([[0.1, NAN, 5.0], [0.1, NAN, NAN], [0.1, NAN, 7.0]])
    columns = {name: ColumnSpec(kind="numeric") for name in "abc"}
    built = encoder(columns, records)
    assert built.mean.tolist() == pytest.approx([0.1, 0, 6])
    assert built.std.tolist() == [1, 1, 1]
    assert built(torch.tensor([[0.2, 3.0, NAN]]))[0].tolist() == pytest.approx([0.1, 3, 0])


def test_large_numbers_keep_their_spread():
    records = torch.tensor([[1e7 + i] for i in range(100)])
    built = encoder({"a": ColumnSpec(kind="numeric")}, records)
    assert built.std.item() == pytest.approx(np.std(np.arange(100)), rel=1e-5)


def test_a_row_does_not_depend_on_its_batch():
    built = encoder(flags=True, encoding="onehot")
    assert torch.equal(built(RECORDS)[2:3], built(RECORDS[2:3]))


# learning


def test_it_says_that_it_was_not_fitted():
    with pytest.raises(PluginError) as error:
        encoder(fitted=None)(RECORDS)
    assert str(error.value) == "structured: not fitted yet. Name this encoder in a fit or train stage."


def test_a_fit_forgets_the_earlier_one():
    again = encoder(fitted=RECORDS * 3).fit(RECORDS, seed=1)
    assert torch.equal(again(RECORDS), encoder()(RECORDS))


def test_all_that_was_learned_is_in_its_state():
    learned = encoder(flags=True)
    other = encoder(fitted=None, flags=True)
    other.load_state_dict(learned.state_dict())
    assert torch.equal(other(RECORDS), learned(RECORDS))
    assert not list(learned.parameters())
    assert isinstance(learned, Fittable)


def test_from_cells_to_features():
    built = encoder(fitted=None, scale="none", missing="keep", cell_dropout=0.5)
    spec = built.input_spec
    record = {"age": "50", "grade": "III", "sex": "f", "side": None, "signs": "warm"}
    batch = spec.collate(spec.load(record, [Cut("record")]))
    values = built.fit(batch, seed=0)(batch)
    assert values[0].nan_to_num(-1).tolist() == [50, 2, 1, -1, 0, 1]
    assert spec.is_random(training=True)


# the card


def test_the_card_is_light_and_says_what_it_does():
    code = (
        "import sys; from fusionkit_tabular import fusionkit_components; fusionkit_components(); "
        "print(sorted({'torch', 'numpy', 'polars', 'sklearn'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
    (card,) = fusionkit_components()
    assert card.name == "structured"
    assert card.learns == "closed_form"
    assert card.reads == ("numeric", "ordinal", "category", "binary", "multi")
    assert card.emits_missing(StructuredOptions(missing="keep")) is True
    assert card.emits_missing(StructuredOptions()) is False
    for example in card.examples:
        assert card.build(example, COLUMNS).output_dim > 0


# real data


@pytest.mark.skipif("FUSIONKIT_DATA" not in os.environ, reason="FUSIONKIT_DATA is not set")
def test_breast_usg_has_24_numbers():
    missing = ("", "not available")
    tissue = ("homogeneous: fat", "homogeneous: fibroglandular", "heterogeneous: predominantly fat")
    signs = ("no", "palpable", "breast scar", "skin retraction", "warmth", "nipple retraction", "redness")
    symptoms = (
        "no",
        "family history of breast/ovarian cancer",
        "HRT/hormonal contraception",
        "nipple discharge",
    )
    multi = {
        "Tissue_composition": (*tissue, "heterogeneous: predominantly fibroglandular", "lactating"),
        "Signs": (*signs, "peau d`orange"),
        "Symptoms": (*symptoms, "personal history of breast cancer", "breast injury"),
    }
    columns = {"Age": ColumnSpec(kind="numeric", range=(0, 120), missing=missing)}
    columns |= {
        name: ColumnSpec(kind="multi", values=values, missing=missing) for name, values in multi.items()
    }
    built = encoder(columns, None, flags=True, encoding="onehot")
    assert built.output_dim == 24

    table = read_table(Path(os.environ["FUSIONKIT_DATA"]) / "breast_usg" / "clinical.csv")
    rows = table.filter(table["Classification"] != "normal").select(*columns).to_dicts()
    records = built.input_spec.collate([built.input_spec.load(row, [Cut("record")])[0] for row in rows])
    values = built.fit(records, seed=0)(records)
    assert values.shape == (252, 24)
    assert not values.isnan().any()
    # every declared value occurs, and so does missing in every column
    assert (built.std > 0).all()
    assert (values.std(0, correction=0) > 0.5).all()
    assert all(built.input_spec.content_key(row) is not None for row in rows)
