from __future__ import annotations

import re
from pathlib import Path

import doors
import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

import fusionkit_vectors
from fusionkit import Cut
from fusionkit.errors import DataError, RecipeError
from fusionkit.registry import Registry
from fusionkit.specs import ColumnSpec, EncoderSpec

(CARD,) = fusionkit_vectors.fusionkit_components()
FILE = {"embedding": ColumnSpec(kind="file")}
ID = {"embedding": ColumnSpec(kind="text")}
VALUES = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
NAMES = ["p1", "p2", "p3", "p4"]


def build(columns=FILE, **options):
    return CARD.build(CARD.config(**options), columns).eval()


def read(encoder, *cells):
    spec = encoder.input_spec
    return encoder(spec.collate([spec.load({"embedding": cell}, [Cut("whole")])[0] for cell in cells]))


def key(encoder, cell):
    return encoder.input_spec.content_key({"embedding": cell})


def save(path: Path, values) -> Path:
    if path.suffix == ".npy":
        np.save(path, values)
    else:
        save_file({"embedding": torch.from_numpy(np.asarray(values))}, path)
    return path


def test_the_card_is_found_through_the_entry_point():
    assert Registry.discover().card(EncoderSpec, "vectors") is CARD


# a file for each row


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int16"])
@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_vector_is_what_its_file_holds(tmp_path, suffix, dtype):
    values = (VALUES[0] * 10).astype(dtype)
    path = save(tmp_path / f"a{suffix}", values)
    np.testing.assert_array_equal(read(build(width=3), path)[0].numpy(), values.astype(np.float32))
    save(tmp_path / f"row{suffix}", values[None])
    assert key(build(width=3), path) == key(build(width=3), tmp_path / f"row{suffix}")
    assert key(build(width=3), None) is None


def test_a_bfloat16_tensor_is_read_and_one_of_several_is_named(tmp_path):
    path = tmp_path / "two.safetensors"
    save_file({"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.zeros(3)}, path)
    assert read(build(width=3, tensor="a"), path).tolist() == [[1, 1, 1]]
    for tensor, said in (("", "2 tensors, not one"), ("c", "no tensor 'c'")):
        with pytest.raises(DataError) as error:
            read(build(width=3, tensor=tensor), path)
        assert str(error.value) == f"{path}: {said} (there: a, b). Set the option `tensor`."
    plain = save(tmp_path / "plain.npy", VALUES[0])
    with pytest.raises(DataError) as error:
        read(build(width=3, tensor="a"), plain)
    assert str(error.value) == f"{plain}: a .npy file has no tensor of a name ('a'). Leave `tensor` out."


def test_a_pickle_is_never_opened(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.array(["a", None], dtype=object), allow_pickle=True)
    with pytest.raises(
        DataError, match=r"a\.npy: not a \.npy file of numbers \(Array can't be memory-mapped"
    ):
        read(build(width=2), path)
    with pytest.raises(DataError, match=r"Only \.npy and \.safetensors are read"):
        read(build(width=2), tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros((2, 3)), "(2, 3) float64 is there, and one vector, (d,) numbers are due."),
        (np.zeros(0), "(0,) float64 is there, and one vector, (d,) numbers are due."),
        (np.array(["a"]), "(1,) <U1 is there, and one vector, (d,) numbers are due."),
        (np.zeros(4), "4 numbers are there, and 3 are due. Set `width`, or compute all vectors in one way."),
        (np.array([0, np.nan, 0]), "number 1 is NaN. Mend it, or set `missing: keep`."),
        (np.array([0, 0, -np.inf]), "number 2 is infinite. Mend what computed it."),
        (np.array([1e39, 0, 0]), "number 0 is infinite. Mend what computed it."),
    ],
)
def test_what_is_no_vector_is_one_sentence_that_names_the_file(tmp_path, values, said):
    path = save(tmp_path / "a.npy", values)
    with pytest.raises(DataError) as error:
        read(build(width=3), path)
    assert str(error.value) == f"{path}: {said}"


def test_a_header_that_claims_more_than_is_there_asks_for_no_memory(tmp_path):
    path = save(tmp_path / "a.npy", np.zeros(3))
    path.write_bytes(path.read_bytes().replace(b"(3,), }" + b" " * 10, b"(3000000000000,)}"))
    assert b"3000000000000" in path.read_bytes()
    with pytest.raises(DataError, match=r"not a \.npy file of numbers"):
        read(build(width=3), path)


@pytest.mark.parametrize("suffix", [".npy", ".safetensors"])
def test_a_broken_file_is_one_sentence(tmp_path, suffix):
    path = save(tmp_path / f"a{suffix}", VALUES[0])
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(DataError, match=re.escape(str(path))):
        read(build(width=3), path)


def test_nan_stays_where_it_is_declared_and_nothing_else_is_absence(tmp_path):
    assert CARD.emits_missing(CARD.config(width=3, missing="keep"))
    some = save(tmp_path / "some.npy", np.array([1, np.nan, 2]))
    none = save(tmp_path / "none.npy", np.full(3, np.nan))
    encoder = build(width=3, missing="keep")
    assert read(encoder, some).isnan().tolist() == [[False, True, False]]
    assert key(encoder, none) is None
    assert key(encoder, some) is not None


# one table for the cohort


def write_cohort(folder: Path, form: str, values=VALUES, names=NAMES) -> str:
    path = folder / f"cohort{form}"
    if form == ".npy":
        table = np.zeros(len(names), dtype=[("id", "U4"), ("vector", "f4", (values.shape[1],))])
        table["id"], table["vector"] = names, values
        np.save(path, table)
    elif form == ".safetensors":
        save_file({name: torch.from_numpy(row) for name, row in zip(names, values, strict=True)}, path)
    else:
        frame = pl.DataFrame({"id": names} | {f"v{i}": column for i, column in enumerate(values.T.tolist())})
        frame.write_parquet(path) if form == ".parquet" else frame.write_csv(path)
    return str(path)


FORMS = [".npy", ".safetensors", ".parquet", ".csv"]


@pytest.mark.parametrize("form", FORMS)
def test_a_row_gets_the_vector_of_its_id_and_the_width_is_the_tables(tmp_path, form):
    encoder = build(ID, table=write_cohort(tmp_path, form))
    assert encoder.output_dim == 3
    np.testing.assert_array_equal(read(encoder, "p3", "p1").numpy(), VALUES[[2, 0]])
    assert key(encoder, None) is None


@pytest.mark.parametrize("form", FORMS)
def test_an_unknown_id_is_an_error_or_absence_as_the_option_says(tmp_path, form):
    table = write_cohort(tmp_path, form)
    with pytest.raises(DataError) as error:
        key(build(ID, table=table), "p9")
    assert str(error.value) == (
        f"{table}: there is no vector of that id (p9). Add it, leave the cell empty, or set "
        "`unknown: absent`."
    )
    assert key(build(ID, table=table, unknown="absent"), "p9") is None


def test_a_tables_mistakes_name_file_and_id(tmp_path):
    wrong = VALUES.copy()
    wrong[1, 2] = np.nan
    table = write_cohort(tmp_path, ".npy", wrong)
    with pytest.raises(DataError, match=re.escape(f"{table}: p2: number 2 is NaN. Mend it")):
        read(build(ID, table=table), "p2")
    table = write_cohort(tmp_path, ".npy", names=["p1", "p2", "p2", "p3"])
    with pytest.raises(DataError, match=re.escape(f"{table}: an id is there twice (p2). Leave one out.")):
        build(ID, table=table)
    with pytest.raises(DataError, match=re.escape(f"{table}: 3 numbers a row are there, and 5 are due")):
        build(ID, table=write_cohort(tmp_path, ".npy"), width=5)
    table = write_cohort(tmp_path, ".csv")
    Path(table).write_text(Path(table).read_text().replace("p2,", "p2,oops", 1))
    with pytest.raises(DataError, match=r"cohort\.csv: p2: v0: not a number \(oops"):
        build(ID, table=table)
    with pytest.raises(DataError, match=r"there is no column 'name'\. Set the option `key`"):
        build(ID, table=write_cohort(tmp_path, ".parquet"), key="name")
    with pytest.raises(DataError, match=r"x\.npy: the table cannot be read \(No such file"):
        build(ID, table=str(tmp_path / "x.npy"))
    with pytest.raises(DataError, match="and two fields are due: 'id' with the ids"):
        build(ID, table=str(save(tmp_path / "plain.npy", VALUES)))
    save_file({"p1": torch.zeros(3), "p2": torch.zeros(4)}, tmp_path / "odd.safetensors")
    with pytest.raises(DataError, match="All must have one width"):
        build(ID, table=str(tmp_path / "odd.safetensors"))


def test_a_table_that_changes_is_read_again(tmp_path):
    table = write_cohort(tmp_path, ".npy")
    before = key(build(ID, table=table), "p1")
    write_cohort(tmp_path, ".npy", np.concatenate([VALUES + 1, VALUES], 0), [*NAMES, "p5", "p6", "p7", "p8"])
    encoder = build(ID, table=table)
    assert key(encoder, "p1") != before == key(encoder, "p5")


def test_columns_and_options_must_fit():
    with pytest.raises(RecipeError) as error:
        build(ID, width=3)
    assert str(error.value) == (
        "columns: vectors are found by one column of files (given: embedding is text). Name one of kind file."
    )
    with pytest.raises(RecipeError, match="width: where each row has a file, it has to be known"):
        build()


@pytest.mark.parametrize(
    ("options", "unused"),
    [
        ({"key": "case", "unknown": "absent"}, "`key` and `unknown`: not used, since each row has a file"),
        ({"table": "a.safetensors", "key": "case"}, "`key`: not used, since in a .safetensors table each id"),
        ({"table": "a.csv", "tensor": "x"}, "`tensor`: not used, since a table has its vectors by id. Leave"),
        ({"table": "a.npy", "key": "case", "unknown": "absent"}, None),
        ({"table": "a.safetensors", "key": "id", "tensor": ""}, None),  # as resolved.yaml has it
        ({"tensor": "x"}, None),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(options, unused):
    if unused is None:
        CARD.config(**options)
        return
    with pytest.raises(ValidationError) as error:
        CARD.config(**options)
    assert unused in str(error.value)


# beside a record


def test_files_answer_beside_a_record_in_another_process(tmp_path):
    rng = np.random.default_rng(1)
    (tmp_path / "study").mkdir()

    def cell(row, is_ill):
        np.save(tmp_path / "study" / f"{row}.npy", rng.normal(is_ill * 3, 1, 8))
        return {"embedding": f"{row}.npy"}

    rows = doors.rows_of(cell)
    doors.write_table(tmp_path / "study" / "rows.csv", rows)
    text = doors.recipe({"use": "vectors", "width": 8}, {"embedding": {"kind": "file"}})
    result = doors.run_beside_a_record(tmp_path, text)
    assert doors.auc(result) > 0.95
    doors.predict_in_another_process(tmp_path, result, rows)


@pytest.mark.slow
def test_a_table_answers_for_patients_that_were_added_later(tmp_path):
    rng = np.random.default_rng(1)
    vectors: dict[str, np.ndarray] = {}

    def cell(row, is_ill):
        if row % 8 != 0:
            vectors[f"p{row}"] = rng.normal(is_ill * 3, 1, 8).astype(np.float32)
        return {"slide": f"p{row}"}

    rows = doors.rows_of(cell)
    for row in rows:
        row["slide"] = row["patient"]  # the table lacks every eighth
    doors.write_table(tmp_path / "study" / "rows.csv", rows)
    write_cohort(tmp_path / "study", ".parquet", np.stack(list(vectors.values())), list(vectors))
    encoder = {"use": "vectors", "table": "study/cohort.parquet", "unknown": "absent"}
    result = doors.run_beside_a_record(tmp_path, doors.recipe(encoder, {"slide": {"kind": "text"}}))
    assert doors.auc(result) > 0.95
    vectors["later"] = np.full(8, 3.0, dtype=np.float32)
    write_cohort(tmp_path / "study", ".parquet", np.stack(list(vectors.values())), list(vectors))
    later = {**rows[1], "slide": "later"}
    answers = doors.predict_in_another_process(tmp_path, result, [*rows, rows[0], later])
    assert float(answers[-1]["probability_ill"]) > 0.5
