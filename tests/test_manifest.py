"""The manifest: one row's cells, and which files a cell may name."""

from __future__ import annotations

import re
from pathlib import Path

import polars as pl
import pytest

from fusionkit.data.manifest import Manifest, resolve_file
from fusionkit.errors import DataError
from fusionkit.specs import ColumnSpec

SCHEMA = {
    "image": ColumnSpec(kind="file", missing=("", "none")),
    "age": ColumnSpec(kind="numeric", missing=("", "unknown")),
}


def manifest(root: Path, **columns) -> Manifest:
    frame = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String))
    ids = [f"s{i}" for i in range(len(frame))]
    return Manifest(ids, ids, [None] * len(frame), frame, SCHEMA, ("a", "b"), root)


def test_cells_are_paths_texts_or_none(tmp_path):
    data = manifest(
        tmp_path, image=["a/b.png", "none", None], age=["7", "unknown", None], extra=["unknown", "x", None]
    )
    assert len(data) == 3
    assert data.cells_of(0, ["image", "age", "extra"]) == {
        "image": tmp_path / "a/b.png",
        "age": "7",
        "extra": "unknown",
    }
    assert data.cells_of(1, ["image", "age", "extra"]) == {"image": None, "age": None, "extra": "x"}
    assert data.cells_of(2, ["extra", "age"]) == {"extra": None, "age": None}


def test_every_absent_column_is_named(tmp_path):
    with pytest.raises(DataError) as error:
        manifest(tmp_path, age=["1"]).require_columns(["agee", "age", "sex"], "modalities.emr")
    assert error.value.problems == (
        "modalities.emr: the data have no column 'agee'. Did you mean 'age'? Known: age.",
        "modalities.emr: the data have no column 'sex'. Known: age.",
    )


@pytest.mark.parametrize("text", ["a.png", "deep/er/a b.png", "x/../a.png", "./a.png", "ä:1.png", "..a.png"])
def test_paths_inside_the_root_resolve(tmp_path, text):
    assert resolve_file(tmp_path, text) == tmp_path / text


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("../a.png", "a path that leaves its folder (../a.png). Only files in {root} are read."),
        ("x/../../a.png", "a path that leaves its folder (x/../../a.png). Only files in {root} are read."),
        ("/etc/passwd", "an absolute path (/etc/passwd). Give a path relative to {root}."),
        ("C:\\a.png", "an absolute path (C:\\a.png). Give a path relative to {root}."),
        (
            "https://x.org/a.png",
            "a URL, not a path (https://x.org/a.png). Fetch the file and give a path relative to {root}.",
        ),
        (
            "file:///etc/passwd",
            "a URL, not a path (file:///etc/passwd). Fetch the file and give a path relative to {root}.",
        ),
        (
            "a\0.png",
            "not a path, it contains a NUL character ('a\\x00.png'). Give a path relative to {root}.",
        ),
    ],
)
def test_other_paths_are_refused(tmp_path, text, problem):
    with pytest.raises(DataError) as error:
        resolve_file(tmp_path, text)
    assert str(error.value) == problem.format(root=tmp_path)
    data = manifest(tmp_path, image=[None, text])
    with pytest.raises(
        DataError, match=re.escape(f"sample s1 (subject s1): image: {problem.format(root=tmp_path)}")
    ):
        data.cells_of(1, ["image"])


def test_a_link_must_not_lead_out_but_the_root_may_be_one(tmp_path):
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()
    (outside / "a.png").touch()
    (inside / "a.png").symlink_to(outside / "a.png")
    (inside / "b.png").touch()
    (inside / "c.png").symlink_to(inside / "b.png")
    (tmp_path / "root").symlink_to(inside)
    for root in (inside, tmp_path / "root"):
        with pytest.raises(DataError, match="a path that leaves its folder"):
            resolve_file(root, "a.png")
        assert resolve_file(root, "c.png") == root / "c.png"


def test_a_row_is_named_by_sample_and_subject(tmp_path):
    assert manifest(tmp_path, age=["1"]).where(0) == "sample s0 (subject s0)"


def test_paths_that_cannot_be_followed_are_named(tmp_path):
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    for text in ("loop.png", "a" * 300 + ".png"):
        with pytest.raises(DataError) as error:
            resolve_file(tmp_path, text)
        assert str(error.value).startswith(f"a path that cannot be followed ({text[:80]}: ")
        assert str(error.value).endswith("). Mend the cell or the file.")
