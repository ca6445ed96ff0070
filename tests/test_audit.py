"""The audit: what it finds in rows, columns and files, in which words, and what it remembers."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import toy_images
from PIL import Image
from sklearn.metrics import roc_auc_score

from fusionkit.data import audit_files, digests
from fusionkit.data.audit import Audit, _similar, audit_data
from fusionkit.data.audit_columns import (
    alone,
    differing_subjects,
    index_subjects,
    rank_auc,
    read_column,
    similar_subjects,
)
from fusionkit.data.images import ImageInput
from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold
from fusionkit.errors import DataError, PluginError
from fusionkit.prepare import Places, examine
from fusionkit.recipe.load import load_recipe
from fusionkit.registry import Registry
from fusionkit.run import run
from fusionkit.specs import ColumnSpec
from fusionkit.store import Store, list_entries, read_artefact

HINT = "Check its name and the folder that it is relative to."


def quiet(name: str, data: Any) -> None:
    pass


def outcomes_of(manifest: Manifest) -> dict[str, int]:
    pairs = zip(manifest.subjects, manifest.outcomes, strict=True)
    return {subject: -1 if name is None else manifest.classes.index(name) for subject, name in pairs}


def audit(
    folder: Path, manifest: Manifest | None = None, *overrides: str, folds: Sequence[Fold] = ()
) -> Audit:
    """Audits the toy recipe on rows; the pictures lie in a folder."""
    experiment = toy_images.make_experiment(folder, *overrides, manifest=manifest)
    loaded, rows = experiment.factory.loaded, experiment.manifest
    readers = {name: experiment.reader(name) for name in loaded.columns}
    return audit_data(loaded, rows, readers, outcomes_of(rows), folds, experiment.store, threads=2)


def toy_manifest(folder: Path, **columns: Sequence[str | None]) -> Manifest:
    """The toy rows with some columns replaced."""
    toy_images.make_pictures(folder / "pictures")
    manifest = toy_images.make_manifest(folder / "pictures")
    series = [pl.Series(name, cells, dtype=pl.String) for name, cells in columns.items()]
    return replace(manifest, cells=manifest.cells.with_columns(series))


def messages(found: Sequence[Any], check: str) -> list[str]:
    return [finding.message for finding in found if finding.check == check]


def cohort(
    per_class: int, *, columns: Mapping[str, ColumnSpec], rows: Mapping[str, Sequence[str | None]]
) -> Manifest:
    """One row per subject; the first half is no, the second yes."""
    n = 2 * per_class
    return Manifest(
        samples=[f"s{i}" for i in range(n)],
        subjects=[f"p{i}" for i in range(n)],
        outcomes=["no"] * per_class + ["yes"] * per_class,
        cells=pl.DataFrame(dict(rows), schema=dict.fromkeys(rows, pl.String)),
        schema=columns,
        classes=("no", "yes"),
        root=Path("."),
    )


def auc_of(name: str, manifest: Manifest) -> float | None:
    column = read_column(name, manifest.schema[name], manifest.cells[name])
    return alone(column, index_subjects(manifest, outcomes_of(manifest)))


# files


def test_a_whole_cohort_has_no_errors_and_is_decoded_once(tmp_path, monkeypatch):
    first = audit(tmp_path)
    assert first.errors == []
    assert first.files == {"decoded": 36, "remembered": 0}
    assert (first.samples, first.subjects, first.modalities) == (36, 12, {"image": 36, "record": 36})
    assert first.classes == {"no": {"samples": 18, "subjects": 6}, "yes": {"samples": 18, "subjects": 6}}
    seen = []
    real = ImageInput.load
    monkeypatch.setattr(
        ImageInput,
        "load",
        lambda self, cells, cuts: seen.append(cells["picture"].name) or real(self, cells, cuts),
    )
    assert audit(tmp_path).files == {"decoded": 0, "remembered": 36}
    assert seen == []
    Image.new("RGB", (9, 9), (1, 2, 3)).save(tmp_path / "pictures" / "07.png")
    assert audit(tmp_path).files == {"decoded": 1, "remembered": 35}
    assert seen == ["07.png"]


def test_what_is_remembered_says_how_it_was_read(tmp_path):
    audit(tmp_path)
    assert audit(tmp_path, None, "modalities.image.encoder.input.max_pixels=200").files["decoded"] == 36
    assert [entry.kind for entry in list_entries(tmp_path / "store")] == ["audits", "audits"]


def test_a_broken_memory_is_set_aside_with_one_warning_and_made_again(tmp_path):
    audit(tmp_path)
    (path,) = (tmp_path / "store" / "audits").iterdir()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.warns(UserWarning, match="not what was written; set aside in broken/") as caught:
        assert audit(tmp_path).files == {"decoded": 36, "remembered": 0}
    assert len(caught) == 1
    assert audit(tmp_path).files == {"decoded": 0, "remembered": 36}


def test_a_file_that_was_broken_is_read_again_every_time(tmp_path):
    manifest = toy_manifest(tmp_path)
    path = tmp_path / "pictures" / "04.png"
    path.write_bytes(path.read_bytes()[:60])
    assert audit(tmp_path, manifest).files == {"decoded": 36, "remembered": 0}
    again = audit(tmp_path, manifest)
    assert again.files == {"decoded": 1, "remembered": 35}
    (problem,) = messages(again.errors, "file")
    assert problem.startswith(
        f"sample sample04 (subject subject01): {path}: the image is truncated or broken ("
    )


def test_every_file_that_is_absent_broken_or_too_large_is_named_at_once(tmp_path):
    pictures = tmp_path / "pictures"
    cells: list[str | None] = [f"{row:02}.png" for row in range(36)]
    cells[5], cells[6] = "../secret.png", "https://x.org/a.png"
    manifest = toy_manifest(tmp_path, picture=cells)
    (pictures / "00.png").unlink()
    (pictures / "01.png").write_bytes(b"")
    (pictures / "02.png").write_bytes(b"<!DOCTYPE html>")
    (pictures / "03.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    Image.new("1", (200, 200)).save(pictures / "04.png")
    found = audit(tmp_path, manifest, "modalities.image.encoder.input.max_pixels=1000")
    known = "not an image in a format that is read. Known, whatever the name: PNG, JPEG, TIFF, WEBP, BMP."
    assert sorted(found.problems()) == [
        f"sample sample00 (subject subject00): picture: there is no such file ({pictures}/00.png). {HINT}",
        f"sample sample01 (subject subject00): {pictures}/01.png: the file is empty (0 bytes). "
        "Fetch it again.",
        f"sample sample02 (subject subject00): {pictures}/02.png: {known}",
        f"sample sample03 (subject subject01): {pictures}/03.png: {known}",
        f"sample sample04 (subject subject01): {pictures}/04.png: too many pixels (200 x 200 = 40000). "
        "At most 1000 are read; raise the encoder's option `max_pixels` if the image is meant.",
        "sample sample05 (subject subject01): picture: a path that leaves its folder (../secret.png). "
        f"Only files in {pictures} are read.",
        "sample sample06 (subject subject02): picture: a URL, not a path (https://x.org/a.png). "
        f"Fetch the file and give a path relative to {pictures}.",
    ]
    assert found.modalities["image"] == 33
    with pytest.raises(DataError) as error:
        found.raise_errors()
    assert list(error.value.problems) == found.problems()


@pytest.mark.parametrize("kind", ["a folder", "a named pipe", "a device"])
def test_what_is_no_file_is_called_what_it_is(tmp_path, kind):
    manifest = toy_manifest(tmp_path)
    path = tmp_path / "pictures" / "03.png"
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a named pipe":
        os.mkfifo(path)
    else:  # inside the folder only a link could lead there, so the folder is /dev
        cells = ["null", *[None] * 35]
        devices = manifest.cells.with_columns(pl.Series("picture", cells, dtype=pl.String))
        manifest, path = replace(manifest, cells=devices, root=Path("/dev")), Path("/dev/null")
    (problem,) = audit(tmp_path, manifest).problems()
    assert problem.endswith(
        f": picture: the file cannot be read ({path}: it is {kind}, not a file). Check it and its rights."
    )


def test_a_file_is_hashed_once_however_many_there_are(tmp_path, monkeypatch):
    hashed = []
    real = digests.file_digest
    monkeypatch.setattr(digests, "file_digest", lambda path: hashed.append(path.name) or real(path))
    monkeypatch.setattr(digests, "_digest", lru_cache(2)(digests._digest.__wrapped__))
    assert audit(tmp_path, toy_manifest(tmp_path)).errors == []
    assert sorted(hashed) == [f"{row:02}.png" for row in range(36)]


def test_many_rows_with_one_mistake_are_one_sentence_and_each_a_finding(tmp_path):
    manifest = toy_manifest(tmp_path, number=["x"] * 30 + ["1"] * 6)
    for row in range(25):
        (tmp_path / "pictures" / f"{row:02}.png").unlink()
    found = audit(tmp_path, manifest)
    assert found.problems() == [
        "sample sample00 (subject subject00): number: not a finite number ('x'). Missing is written: "
        "nothing but an empty cell. Alike: 29 more rows (sample01, sample02, sample03, ...).",
        f"sample sample00 (subject subject00): picture: there is no such file ({tmp_path}/pictures/00.png). "
        f"{HINT} Alike: 24 more rows (sample01, sample02, sample03, ...).",
    ]
    assert found.n_bad_cells == 30
    assert [finding.samples for finding in found.errors][:2] == [("sample00",), ("sample01",)]
    assert len(found.errors) == 55


def test_a_plugin_that_fails_on_a_file_is_named_with_the_row(tmp_path, monkeypatch):
    def fail(self: Any, cells: Any, cuts: Any) -> Any:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(ImageInput, "load", fail)
    with pytest.raises(PluginError) as error:
        audit(tmp_path)
    assert str(error.value) == (
        "image.encoder: `load` of ImageInput fails on sample sample00 (subject subject00): 00.png "
        "(ZeroDivisionError: division by zero). Mend the plugin, or look at this row."
    )


def remembered(folder: Path) -> set[bytes]:
    """What audits of one reading have written down."""
    name = f"audits/{'a' * 64}.safetensors"
    assert Store(folder).verify(name)
    rows = read_artefact(folder / name).tensors["whole"].numpy()
    keys = rows.view("V32").reshape(-1)
    assert not audit_files.Whole(Store(folder), "a" * 64).lacks(keys).any()
    return {key.tobytes() for key in keys}


def test_two_that_audit_at_once_both_remember(tmp_path):
    first, second = (audit_files.Whole(Store(tmp_path), "a" * 64) for _ in range(2))
    keys = [bytes([number]) * 32 for number in range(3)]
    for whole, key in ((first, keys[0]), (second, keys[1]), (first, keys[2])):
        whole.add(key)
        whole.save()
    assert remembered(tmp_path) == set(keys)


def test_who_remembers_waits_for_another_who_does_so(tmp_path):
    told: list[Any] = []
    store = Store(tmp_path, lambda name, data: told.append((name, data)), waits=False)
    whole = audit_files.Whole(store, "a" * 64)
    whole.add(bytes(32))
    saving = threading.Thread(target=whole.save)
    with Store(tmp_path).lock("a" * 64, "something"):
        saving.start()
        saving.join(0.3)
        assert saving.is_alive()
        assert not (tmp_path / "audits").exists()
    saving.join()
    assert remembered(tmp_path) == {bytes(32)}


def test_the_same_file_under_two_subjects_is_an_error_whatever_its_name(tmp_path):
    manifest = toy_manifest(tmp_path)
    data = (tmp_path / "pictures" / "00.png").read_bytes()
    (tmp_path / "pictures" / "10.png").write_bytes(data)
    digest = hashlib.sha256(data).hexdigest()[:12]
    found = audit(tmp_path, manifest)
    assert found.problems() == [
        "sample sample00 (subject subject00) and sample sample10 (subject subject03): picture: "
        f"the same file under two subjects (00.png and 10.png; sha256 {digest}). "
        "Leave all but one out, or mend the subject."
    ]
    assert found.errors[0].samples == ("sample00", "sample10")
    assert found.files == {"decoded": 35, "remembered": 0}


def test_many_places_of_one_file_are_cut_short(tmp_path):
    manifest = toy_manifest(tmp_path, picture=["00.png"] * 36)
    (problem,) = audit(tmp_path, manifest).problems()
    assert (
        "sample sample03 (subject subject01) and 32 more: picture: the same file under 12 subjects ("
        in problem
    )


def test_the_same_file_in_two_samples_of_a_subject_is_an_error_only_where_a_fold_parts_them(tmp_path):
    cells: list[str | None] = [f"{row:02}.png" for row in range(36)]
    cells[1] = "00.png"
    manifest = toy_manifest(tmp_path, picture=cells)
    together = Fold(0, 0, train=tuple(range(3)), validation=(), test=tuple(range(3, 36)))
    apart = Fold(0, 1, train=(0, *range(2, 30)), validation=(), test=(1, *range(30, 36)))
    assert audit(tmp_path, manifest, folds=[together]).errors == []
    (problem,) = audit(tmp_path, manifest, folds=[together, apart]).problems()
    assert problem.startswith(
        "sample sample00 (subject subject00) and sample sample01 (subject subject00): picture: "
        "the same file on both sides of the split (00.png; sha256 "
    )
    assert problem.endswith("). Leave all but one out, or split by subject.")


def test_a_flipped_byte_in_a_picture_that_still_decodes_is_found_by_its_checksum(tmp_path):
    manifest = toy_manifest(tmp_path)
    path = tmp_path / "pictures" / "08.png"
    Image.new("RGB", (12, 12), (9, 9, 9)).save(path, "BMP")
    sums = [hashlib.sha256((path.parent / f"{row:02}.png").read_bytes()).hexdigest() for row in range(36)]
    given: list[str | None] = [text.upper() if row % 2 else text for row, text in enumerate(sums)]
    given[3] = None
    manifest = replace(manifest, checksums={"picture": given})
    assert audit(tmp_path, manifest).errors == []
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    assert audit(tmp_path, manifest).problems() == [
        f"sample sample08 (subject subject02): picture: not the file that its checksum names ({path}: "
        f"sha256 {found[:12]}, given {sums[8][:12]}). Fetch it again, or mend the checksum."
    ]
    assert audit(tmp_path, replace(manifest, checksums={})).errors == []


def test_ten_thousand_contents_are_remembered_in_one_small_file(tmp_path):
    from fusionkit.data.audit_files import Whole

    keys = [hashlib.sha256(b"%d" % number).digest() for number in range(10_000)]
    whole = Whole(Store(tmp_path), "a" * 64)
    for key in keys:
        whole.add(key)
    whole.save()
    assert remembered(tmp_path) == set(keys)
    (path,) = (tmp_path / "audits").iterdir()
    assert path.stat().st_size < 33 * len(keys)


# columns


def test_cells_outside_the_schema_are_named_with_their_rows(tmp_path):
    words = ["z" if row == 5 else "a" for row in range(36)]
    found = audit(tmp_path, toy_manifest(tmp_path, word=words))
    assert found.problems() == [
        "sample sample05 (subject subject01): word: not an allowed value ('z'). Known: a, b, c."
    ]
    assert found.errors[0].samples == ("sample05",)


def test_contradicting_records_are_one_warning_that_names_subjects_and_values(tmp_path):
    words: list[str | None] = ["ab"[row // 3 % 3 % 2] for row in range(36)]
    words[4], words[7] = "c", None
    numbers = [str(row // 3) for row in range(36)]
    numbers[1] = "0.0"  # the same number, written otherwise
    found = audit(tmp_path, toy_manifest(tmp_path, word=words, number=numbers))
    assert messages(found.warnings, "record") == [
        "record: samples of one subject have different values: word (subject subject01: b and c). "
        "Mend them, unless they change from sample to sample."
    ]
    (finding,) = [finding for finding in found.warnings if finding.check == "record"]
    assert finding.samples == ("sample03", "sample04", "sample05")


def test_missing_cells_and_distinct_values_are_counted(tmp_path):
    manifest = replace(toy_images.make_manifest(tmp_path / "pictures", blanks=True))
    toy_images.make_pictures(tmp_path / "pictures")
    facts = {fact.name: fact for fact in audit(tmp_path, manifest).columns}
    assert (facts["picture"].missing, facts["picture"].distinct) == (8, 28)
    assert (facts["word"].missing, facts["word"].distinct) == (5, 3)
    assert facts["word"].modalities == ("record",)
    assert facts["picture"].auc is None


def test_an_all_missing_and_a_constant_column_are_warnings(tmp_path):
    found = audit(tmp_path, toy_manifest(tmp_path, number=[None] * 36, word=["a"] * 36))
    assert found.errors == []
    assert messages(found.warnings, "missing") == [
        "record: number: no row has a value. Leave the column out."
    ]
    assert messages(found.warnings, "constant") == [
        "record: a column with one value, which tells nothing: word ('a'). "
        "Leave it out, unless missing cells tell."
    ]


def test_constant_columns_are_one_warning(tmp_path):
    found = audit(tmp_path, toy_manifest(tmp_path, number=["1"] * 36, word=["a"] * 36))
    assert messages(found.warnings, "constant") == [
        "record: 2 columns with one value, which tells nothing: number ('1'), word ('a'). "
        "Leave them out, unless missing cells tell."
    ]


def test_a_column_that_is_the_outcome_is_a_warning_with_its_auc(tmp_path):
    words = ["ab"[row // 3 % 2] for row in range(36)]
    numbers = [str(row // 6 % 3) for row in range(36)]
    found = audit(tmp_path, toy_manifest(tmp_path, word=words, number=numbers))
    assert messages(found.warnings, "giveaway") == [
        "record: word gives the outcome away: alone it reaches an AUC of 1.000, cross-validated by subject. "
        "Leave it out if it is not known before the outcome is."
    ]


def test_a_column_present_in_one_class_only_is_a_warning(tmp_path):
    numbers = [None if row // 3 % 2 else str(row // 3 % 4) for row in range(36)]
    found = audit(tmp_path, toy_manifest(tmp_path, number=numbers, word=["a", "b", "c"] * 12))
    assert messages(found.warnings, "giveaway") == [
        "record: number gives the outcome away: only no subjects (6 of 12) have a value; alone it "
        "reaches an AUC of 1.000, cross-validated by subject. "
        "Leave it out if it is not known before the outcome is."
    ]
    assert messages(found.warnings, "presence") == []


@pytest.mark.parametrize(("n_subjects", "is_told"), [(1, False), (5, False), (6, True)])
def test_a_few_values_that_are_of_one_class_by_chance_are_no_warning(tmp_path, n_subjects, is_told):
    # half of the subjects are of either class: 0.5 to the power of how many have a value
    numbers = [None if row // 3 % 2 or row // 6 >= n_subjects else str(row // 3 % 4) for row in range(36)]
    found = audit(tmp_path, toy_manifest(tmp_path, number=numbers, word=["a", "b", "c"] * 12))
    told = messages(found.warnings, "giveaway")
    assert bool(told) == is_told
    assert all(f"only no subjects ({n_subjects} of 12) have a value" in text for text in told)


def test_a_modality_present_in_one_class_only_is_one_warning(tmp_path):
    cells = [f"{row:02}.png" if row // 3 % 2 else None for row in range(36)]
    found = audit(tmp_path, toy_manifest(tmp_path, picture=cells))
    assert messages(found.warnings, "presence") == [
        "image: only yes subjects (6 of 12) have it, so that its presence gives the outcome away. "
        "Look at how the data were gathered."
    ]
    assert found.modalities["image"] == 18


def test_a_modality_that_one_class_lacks_is_named_once_and_not_for_each_column(tmp_path):
    rows = range(120)
    base = toy_manifest(tmp_path)
    pictures = [f"{row % 36:02}.png" for row in rows]
    is_there = [row % 2 == 1 or row % 4 == 0 for row in rows]
    manifest = replace(
        base,
        samples=[f"s{row}" for row in rows],
        subjects=[f"p{row}" for row in rows],
        outcomes=["yes" if row % 2 else "no" for row in rows],
        cells=pl.DataFrame(
            {
                "picture": pictures,
                "number": [
                    str(row // 4 % 5) if there else None for row, there in zip(rows, is_there, strict=True)
                ],
                "word": [
                    "abc"[row // 4 % 3] if there else None for row, there in zip(rows, is_there, strict=True)
                ],
            }
        ),
    )
    found = audit(tmp_path, manifest)
    assert messages(found.warnings, "presence") == [
        "record: all 30 subjects that lack it are no, so that its presence gives the outcome away. "
        "Look at how the data were gathered."
    ]
    assert messages(found.warnings, "giveaway") == []


def test_a_value_that_settles_the_outcome_is_named_though_the_auc_is_low():
    words = ["follow-up"] * 30 + ["biopsy"] * 130
    spec = {"how": ColumnSpec(kind="category", values=("biopsy", "follow-up"))}
    manifest = cohort(80, columns=spec, rows={"how": words})
    from fusionkit.data.audit_columns import settling_values

    column = read_column("how", spec["how"], manifest.cells["how"])
    subjects = index_subjects(manifest, outcomes_of(manifest))
    assert list(settling_values(column, subjects)) == [("follow-up", "no", 30)]
    assert 0.5 < alone(column, subjects) < 0.8
    # 8 of 160 are too few, and so would be 17 by chance
    for n_pure in (8, 17):
        few = cohort(80, columns=spec, rows={"how": ["follow-up"] * n_pure + ["biopsy"] * (160 - n_pure)})
        column = read_column("how", spec["how"], few.cells["how"])
        assert list(settling_values(column, subjects)) == []


def test_the_auc_of_a_column_is_that_of_its_values_and_of_chance_where_they_tell_nothing():
    rng = np.random.default_rng(1)
    n = 400
    labels = np.repeat([0, 1], n // 2)
    noise = rng.normal(size=n)
    number, multi = ColumnSpec(kind="numeric"), ColumnSpec(kind="multi", values=("a", "b", "c"))
    specs = {name: number for name in ("noise", "shifted", "middle", "identity")} | {"signs": multi}
    signs = [
        "a&b" if label and draw < 0.8 else "c" for label, draw in zip(labels, rng.random(n), strict=True)
    ]
    manifest = cohort(
        n // 2,
        columns=specs,
        rows={
            "noise": [f"{value:.6f}" for value in noise],
            "shifted": [f"{value:.6f}" for value in noise + 1.5 * labels],
            # outside on both sides where no, inside where yes: no threshold finds it
            "middle": [f"{value:.6f}" for value in np.where(labels, 0, np.sign(noise) * 5) + rng.random(n)],
            "identity": [str(position) for position in rng.permutation(n)],
            "signs": signs,
        },
    )
    assert auc_of("noise", manifest) == pytest.approx(0.5, abs=0.08)
    assert auc_of("identity", manifest) == pytest.approx(0.5, abs=0.08)
    plain = roc_auc_score(labels, noise + 1.5 * labels)
    assert auc_of("shifted", manifest) == pytest.approx(plain, abs=0.03)
    assert auc_of("middle", manifest) > 0.99
    plain = roc_auc_score(labels, [text == "a&b" for text in signs])
    assert auc_of("signs", manifest) == pytest.approx(plain, abs=0.001)


def test_a_unique_text_per_subject_tells_nothing_about_others():
    texts = [f"id{row}" for row in range(60)]
    spec = {"id": ColumnSpec(kind="category", values=tuple(texts))}
    assert auc_of("id", cohort(30, columns=spec, rows={"id": texts})) == pytest.approx(0.5, abs=0.01)


def test_with_three_classes_the_class_that_is_told_apart_best_counts():
    words = ["x" if row < 20 else "yz"[row % 2] for row in range(60)]
    manifest = Manifest(
        samples=[f"s{row}" for row in range(60)],
        subjects=[f"p{row}" for row in range(60)],
        outcomes=[("a", "b", "c")[row // 20] for row in range(60)],
        cells=pl.DataFrame({"word": words}),
        schema={"word": ColumnSpec(kind="category", values=("x", "y", "z"))},
        classes=("a", "b", "c"),
        root=Path("."),
    )
    assert auc_of("word", manifest) == 1.0


def test_subjects_of_unknown_outcome_and_one_class_only_give_no_auc():
    spec = {"x": ColumnSpec(kind="numeric")}
    manifest = cohort(3, columns=spec, rows={"x": ["1", "2", "3", "4", "5", "6"]})
    column = read_column("x", spec["x"], manifest.cells["x"])
    assert alone(column, index_subjects(manifest, dict.fromkeys(manifest.subjects, -1))) is None
    assert alone(column, index_subjects(manifest, dict.fromkeys(manifest.subjects, 1))) is None


def test_the_rank_auc_is_scikit_learns():
    rng = np.random.default_rng(0)
    for _ in range(20):
        labels = rng.permutation(np.repeat([True, False], [7, 12]))
        scores = rng.integers(0, 6, 19) / 3
        assert rank_auc(labels, scores) == pytest.approx(roc_auc_score(labels, scores))


def test_differing_subjects_equal_a_plain_loop():
    rng = np.random.default_rng(0)
    for _ in range(20):
        owners, texts = rng.integers(0, 8, 30), [("a", "b", None)[i] for i in rng.integers(0, 3, 30)]
        names = [f"p{owner}" for owner in owners]
        manifest = Manifest(
            names,
            names,
            [None] * 30,
            pl.DataFrame({"w": texts}, schema={"w": pl.String}),
            {},
            ("a", "b"),
            Path("."),
        )
        subjects = index_subjects(manifest, {})
        column = read_column("w", ColumnSpec(kind="category", values=("a", "b")), manifest.cells["w"])
        expected = {
            name: len({text for owner, text in zip(names, texts, strict=True) if owner == name and text}) > 1
            for name in dict.fromkeys(names)
        }
        assert (
            dict(zip(subjects.names, differing_subjects(column, subjects).tolist(), strict=True)) == expected
        )


@pytest.mark.skipif("FUSIONKIT_DATA" not in os.environ, reason="FUSIONKIT_DATA is not set")
def test_columns_of_real_data_that_give_the_outcome_away_are_named(tmp_path):
    root = Path(os.environ["FUSIONKIT_DATA"])
    table = pl.read_csv(root / "breast_usg" / "clinical.csv", infer_schema=False)
    columns = {}
    for name in ("Diagnosis", "Verification", "Signs", "Shape", "Tissue_composition"):
        texts = ", ".join(json.dumps(text) for text in table[name].unique().sort().to_list() if text)
        columns[name] = f"source.columns.{name}={{kind: category, values: [{texts}], missing: []}}"
    names = f"modalities.record.columns=[Age, {', '.join(columns)}]"
    loaded = load_recipe(
        Path(__file__).parent.parent / "recipes" / "breast_usg.yaml",
        Registry.discover(),
        ["modalities.image=null", *columns.values(), names],
        data_root=root,
    )
    found = examine(loaded, Places(root, tmp_path / "store", tmp_path / "runs"), quiet).audit
    assert found.errors == []
    aucs = {fact.name: fact.auc for fact in found.columns}
    assert aucs["Diagnosis"] > 0.98
    assert 0.6 < aucs["Verification"] < aucs["Age"] < aucs["Shape"] < 0.85
    ending = "cross-validated by subject. Leave it out if it is not known before the outcome is."
    assert messages(found.warnings, "giveaway") == [
        "record: Diagnosis gives the outcome away: all 55 subjects with 'not applicable' are benign; all 54 "
        "subjects with 'Invasive carcinoma of no special type (NST)' are malignant; and so for 1 more value; "
        f"alone it reaches an AUC of {aucs['Diagnosis']:.3f}, {ending}",
        "record: Verification gives the outcome away: all 55 subjects with 'confirmed by follow-up care' are "
        "benign. Leave it out if it is not known before the outcome is.",
    ]


# subjects


def test_ids_that_may_be_two_spellings_of_one_patient_are_named(tmp_path):
    manifest = toy_manifest(tmp_path)
    names = {0: "P 1", 1: "p1", 2: "P\u00a01", 3: "Mu\u0308ller", 4: "M\u00fcller", 5: "p2", 6: "p22"}
    subjects = [names.get(row // 3, f"q{row // 3}") for row in range(36)]
    found = audit(tmp_path, replace(manifest, subjects=subjects))
    assert messages(found.warnings, "subject") == [
        "subjects: ids that differ only by case, blanks or Unicode form ('P 1' and 'p1' and 'P\\xa01'; "
        "'Mu\u0308ller' ('Mu\\u0308ller') and 'M\u00fcller' ('M\\xfcller')). If they are one "
        "patient, mend them: a split may put them on both sides."
    ]
    (warning,) = [finding for finding in found.warnings if finding.check == "subject"]
    assert warning.samples == tuple(f"sample{row:02}" for row in range(15))
    assert found.subjects == 12


def test_many_spellings_are_counted(tmp_path):
    subjects = [f"{'pP'[row % 2]}{row // 2}" for row in range(60)]
    rows = cohort(30, columns={"x": ColumnSpec(kind="text")}, rows={"x": ["a"] * 60})
    groups = similar_subjects(subjects)
    assert len(groups) == 30
    assert groups[0] == ["p0", "P0"]
    (finding,) = _similar(replace(rows, subjects=subjects))
    assert "; 'p19' and 'P19'; and 10 more). If they" in finding.message
    assert similar_subjects(["1", "2", "10", "2", "1"]) == []


# what a run makes of it


def places(folder: Path) -> Places:
    return Places(folder / "data", folder / "store", folder / "runs")


def spoil(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Changes the rows that the toy source yields."""
    real = toy_images.make_manifest
    monkeypatch.setattr(toy_images, "make_manifest", lambda *args, **named: change(real(*args, **named)))


def test_all_that_is_wrong_is_reported_at_once(tmp_path, monkeypatch):
    def change(manifest: Manifest) -> Manifest:
        cells = manifest.cells["word"].to_list()
        cells[0] = "z"
        (manifest.root / "35.png").write_bytes((manifest.root / "00.png").read_bytes())
        (manifest.root / "01.png").unlink()
        outcomes = ["yes", *manifest.outcomes[1:]]
        return replace(
            manifest, outcomes=outcomes, cells=manifest.cells.with_columns(pl.Series("word", cells))
        )

    spoil(monkeypatch, change)
    with pytest.raises(DataError) as error:
        run(toy_images.load(), toy_images.make_registry(), places(tmp_path), quiet)
    value, absent, same, outcome = error.value.problems
    assert value == "sample sample00 (subject subject00): word: not an allowed value ('z'). Known: a, b, c."
    assert absent.startswith("sample sample01 (subject subject00): picture: there is no such file (")
    assert same.startswith(
        "sample sample00 (subject subject00) and sample sample35 (subject subject11): picture: "
    )
    assert outcome == (
        "outcome: samples of one subject have different ones (subject00: 2 no, 1 yes). Give a column for "
        "subject_outcome, or set evaluation.subject_outcome: any_positive."
    )
    assert not (tmp_path / "store" / "artefacts").exists()
    assert not (tmp_path / "runs" / "pictures" / "latest").exists()


def test_too_few_subjects_for_the_folds_do_not_hide_what_else_is_wrong(tmp_path, monkeypatch):
    def change(manifest: Manifest) -> Manifest:
        (manifest.root / "01.png").unlink()
        return manifest

    spoil(monkeypatch, change)
    found = examine(toy_images.load("split.folds=9"), places(tmp_path), quiet).audit
    assert [finding.check for finding in found.errors] == ["file", "split", "split"]
    assert found.problems()[1] == (
        "split: fold 7 of 9 would test no 'no' subject (6 'no' subjects in all). Use at most 6 folds."
    )


def test_warnings_stand_in_the_report_once(tmp_path):
    told: list[tuple[str, Any]] = []
    loaded = toy_images.load("evaluation.modalities_alone=false")
    result = run(
        loaded, toy_images.make_registry(), places(tmp_path), lambda name, data: told.append((name, data))
    )
    report = json.loads((result.folder / "report.json").read_text())
    (given_away,) = [text for text in report["warnings"] if "record: number gives the outcome away" in text]
    assert report["warnings"].count(given_away) == 1
    (audited,) = [data for name, data in told if name == "audited"]
    assert given_away in audited["warnings"]
    assert audited["errors"] == []
    log = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert [line["event"] for line in log][:2] == ["reading", "audited"]


def test_a_constant_and_an_all_missing_column_and_a_nan_in_a_run(tmp_path, monkeypatch):
    text = toy_images.RECIPE.replace(
        "{use: toy_mean, width: 3}", "{use: structured, missing: mean, flags: true}"
    )
    text = text.replace("pretrain: record.encoder", "fit: [record.encoder]")

    def change(manifest: Manifest) -> Manifest:
        columns = [pl.Series("number", [None] * 36, dtype=pl.String), pl.Series("word", ["a"] * 36)]
        return replace(manifest, cells=manifest.cells.with_columns(columns))

    spoil(monkeypatch, change)
    registry = toy_images.make_registry()
    loaded = toy_images.load_text(text, registry, overrides=["evaluation.modalities_alone=false"])
    report = run(loaded, registry, places(tmp_path), quiet).report
    assert report["models"]["fused"]["subject"]["roc_auc"]["value"] is not None
    assert "record: number: no row has a value. Leave the column out." in report["warnings"]


def test_a_nan_in_a_numeric_column_is_an_error_with_its_row(tmp_path):
    numbers = ["NaN" if row == 9 else "1" for row in range(36)]
    assert audit(tmp_path, toy_manifest(tmp_path, number=numbers)).problems() == [
        "sample sample09 (subject subject03): number: not a finite number ('NaN'). "
        "Missing is written: nothing but an empty cell."
    ]


def test_neither_threads_nor_blocks_change_what_is_found(tmp_path, monkeypatch):
    manifest = toy_manifest(tmp_path)
    for row in (3, 17, 30):
        (tmp_path / "pictures" / f"{row:02}.png").write_bytes(b"x")
    experiment = toy_images.make_experiment(tmp_path, manifest=manifest)
    loaded = experiment.factory.loaded
    readers = {name: experiment.reader(name) for name in loaded.columns}
    monkeypatch.setattr(audit_files, "_BLOCK", 5)
    found = [
        audit_data(
            loaded,
            manifest,
            readers,
            outcomes_of(manifest),
            (),
            Store(tmp_path / str(threads)),
            threads=threads,
        )
        for threads in (1, 4)
    ]
    assert found[0] == found[1]
