"""The source `pathoemr_sample`: a simulated cohort, the same bytes however it is made."""

import contextlib
import fcntl
import hashlib
import json
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from fusionkit import FusionkitWarning, Manifest, SourceContext
from fusionkit_pathoemr import files, fusionkit_components
from fusionkit_pathoemr.design import SimulatedFile, SimulatedSubject, draw_subjects
from fusionkit_pathoemr.options import SampleOptions
from fusionkit_pathoemr.sample import SampleSource, design_of
from fusionkit_pathoemr.schema import COLUMNS, FIELDS
from fusionkit_pathoemr.tissue import TissueStyle

SMALL = {"patients": 6, "images_per_patient": 2, "width": 32, "height": 24}


def read(cache: Path, workers: int = 1, **options) -> Manifest:
    card = next(card for card in fusionkit_components() if card.name == "pathoemr_sample")
    source = card.build(SampleOptions(**{**SMALL, **options}))
    return source.read(SourceContext(data_root=cache, cache=cache, workers=workers))


def draw_cohort(options: SampleOptions) -> list[SimulatedSubject]:
    return draw_subjects(design_of(options))


def digests(manifest: Manifest) -> dict[str, str]:
    return {
        name: hashlib.sha256((manifest.root / name).read_bytes()).hexdigest()
        for name in manifest.cells["image"]
    }


def rows(manifest: Manifest) -> dict[str, tuple]:
    found = zip(manifest.samples, manifest.subjects, manifest.outcomes, manifest.cells.rows(), strict=True)
    return {sample: row for sample, *row in found}


def test_the_default_cohort_has_the_papers_shape():
    cohort = draw_cohort(SampleOptions())
    assert len(cohort) == 185
    assert Counter(patient.truth.outcome for patient in cohort) == {"malignant": 103, "benign": 82}
    assert {len(patient.samples) for patient in cohort} == {4, 5, 6, 7, 8}


@pytest.mark.parametrize("n", [1, 2, 7, 40, 100, 370])
def test_the_malignant_share_is_right_at_every_count(n):
    cohort = draw_cohort(SampleOptions(patients=n, fresh_patients=n, images_per_patient=1))
    for group in "SF":
        malignant = sum(
            patient.truth.outcome == "malignant" for patient in cohort if patient.name[0] == group
        )
        assert malignant == n * 103 // 185


def test_a_row_says_all_that_the_card_promises(tmp_path):
    manifest = read(tmp_path, fresh_patients=2)
    assert manifest.samples[:3] == ["simulated_S0001_01", "simulated_S0001_02", "simulated_S0002_01"]
    assert list(dict.fromkeys(manifest.subjects)) == [*(f"S000{i}" for i in range(1, 7)), "F0001", "F0002"]
    assert manifest.subject_outcomes == manifest.outcomes
    assert manifest.classes == ("benign", "malignant")
    assert manifest.cells.columns == [*COLUMNS, "magnification", "split"]
    assert list(manifest.schema) == list(COLUMNS)
    assert set(manifest.cells["magnification"]) == {"100x", "200x"}
    assert Counter(manifest.cells["split"]) == {"train": 12, "test": 4}
    for name, spec in FIELDS.items():
        assert set(manifest.cells[name]) <= set(spec.values)


def test_a_patients_record_is_the_same_in_all_its_rows(tmp_path):
    manifest = read(tmp_path)
    assert (
        manifest.cells.select(*FIELDS).with_columns(subject=np.array(manifest.subjects)).unique().height == 6
    )


def test_everything_says_that_it_is_simulated(tmp_path):
    manifest = read(tmp_path)
    assert manifest.is_simulated
    assert all(name.startswith("simulated_") for name in [*manifest.samples, *manifest.cells["image"]])
    assert json.loads((manifest.root / "digests.json").read_text())["about"] == (
        "Simulated files; no patient data. Made by fusionkit's source pathoemr_sample."
    )


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path):
    first, again, other = read(tmp_path / "a"), read(tmp_path / "b"), read(tmp_path / "c", seed=1)
    assert digests(first) == digests(again)
    assert rows(first) == rows(again)
    assert not set(digests(first).values()) & set(digests(other).values())
    assert first.root.name != other.root.name


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"patients": 12, "fresh_patients": 5, "width": 48, "height": 36, "missing": 0.2, "seed": 3},
            "bbc4a96c28c7a44d1af7238055c1942a73dbadb9fd04fbca099f29cdad60c639",
        ),
        (
            {"patients": 185, "images_per_patient": 1, "width": 32, "height": 24},
            "19a1bf1b19b3095b20ce9b9c02f229ee278ff7522475c50c46338ba14b0a0f7a",
        ),
    ],
)
def test_the_cohort_is_the_one_that_the_documents_figures_come_from(tmp_path, options, expected):
    """Digests of every cell, before the generic simulator took over, when they were first written down."""
    manifest = read(tmp_path, **options)
    told = [manifest.samples, manifest.subjects, manifest.outcomes, manifest.subject_outcomes]
    text = json.dumps([*map(list, told), manifest.cells.columns, manifest.cells.rows()])
    assert hashlib.sha256(text.encode()).hexdigest() == expected


def test_its_images_are_the_same_pixels_as_ever(tmp_path):
    # pixels, not files: another version of zlib writes the same ones in other bytes
    manifest = read(tmp_path, seed=3, patients=2)
    total = hashlib.sha256()
    for name in manifest.cells["image"]:
        with Image.open(manifest.root / name) as image:
            total.update(image.tobytes())
    assert total.hexdigest() == "b1b4e25db609e19a3849c01760cd33ed88c64056d3875f389870b24bbffdcda8"


def test_all_modules_that_decide_on_the_bytes_are_part_of_the_address():
    # no file shows what the schema says of records, and options are in the address by themselves
    others = {"options", "schema", "simulated_options"}
    found, waiting = set(others), ["sample", "simulated"]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            text = (Path(files.__file__).parent / f"{name}.py").read_text()
            waiting += re.findall(r"\bfusionkit_pathoemr(?:\.| import )(\w+)", text)
    assert [f"{name}.py" for name in sorted(found - others)] == list(files.GENERATOR)


def test_growing_the_cohort_changes_no_patient_that_is_there(tmp_path):
    few, many = read(tmp_path / "a"), read(tmp_path / "b", patients=9, fresh_patients=3, images_per_patient=3)
    assert digests(few).items() <= digests(many).items()
    assert rows(few).items() <= rows(many).items()


def test_no_two_images_are_alike(tmp_path):
    found = digests(read(tmp_path, fresh_patients=6))
    assert len(set(found.values())) == len(found) == 24


def test_blanking_cells_changes_nothing_else(tmp_path):
    whole, blanked = read(tmp_path), read(tmp_path, missing=0.3)
    assert digests(whole) == digests(blanked)
    gone = kept = 0
    for name in FIELDS:
        for before, after in zip(whole.cells[name], blanked.cells[name], strict=True):
            gone += after is None
            kept += after == before
    assert gone + kept == 12 * 29
    assert 0.2 < gone / (12 * 29) < 0.4


def test_two_processes_draw_the_same_bytes(tmp_path):
    one = read(tmp_path / "a", patients=20)
    two = read(tmp_path / "b", workers=2, patients=20)
    assert digests(one) == digests(two)
    assert (one.root / "digests.json").read_bytes() == (two.root / "digests.json").read_bytes()


def test_the_journal_tells_every_files_digest(tmp_path):
    manifest = read(tmp_path)
    journal = json.loads((manifest.root / "digests.json").read_text())
    assert {f"simulated_{name}.png": entry["sha256"] for name, entry in journal["files"].items()} == digests(
        manifest
    )
    assert (journal["seed"], journal["image"]["width"], journal["image"]["height"]) == (0, 32, 24)


def test_what_is_there_is_never_drawn_again(tmp_path, monkeypatch):
    read(tmp_path)
    drawn = spy(monkeypatch)
    read(tmp_path)
    read(tmp_path, missing=0.5)
    assert drawn == []
    read(tmp_path, patients=7)
    assert drawn == ["S0007_01", "S0007_02"]


def test_a_run_that_was_cut_off_is_continued(tmp_path, monkeypatch):
    def stop(image, style, stream):
        if image.name == "S0003_01":
            raise KeyboardInterrupt
        make(image, style, stream)

    make = files.make_file
    monkeypatch.setattr(files, "make_file", stop)
    monkeypatch.setattr(files, "CHUNK", 1)
    with pytest.raises(KeyboardInterrupt):
        read(tmp_path)
    monkeypatch.setattr(files, "make_file", make)
    drawn = spy(monkeypatch)
    manifest = read(tmp_path)
    assert drawn[0] == "S0003_01"
    assert len(drawn) == 8
    assert len(digests(manifest)) == 12


def test_whole_files_without_a_journal_are_kept_and_torn_ones_are_not(tmp_path, monkeypatch):
    manifest = read(tmp_path)
    before = digests(manifest)
    (manifest.root / "digests.json").unlink()
    torn = manifest.root / "simulated_S0002_01.png"
    torn.write_bytes(torn.read_bytes()[:-40])
    drawn = spy(monkeypatch)
    assert digests(read(tmp_path)) == before
    assert drawn == ["S0002_01"]


@pytest.mark.parametrize("harm", ["shortened", "emptied", "removed"])
def test_a_harmed_file_is_drawn_again(tmp_path, harm):
    manifest = read(tmp_path)
    before = digests(manifest)
    path = manifest.root / "simulated_S0001_01.png"
    if harm == "removed":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 100 if harm == "shortened" else 0])
    assert digests(read(tmp_path)) == before


def test_nothing_temporary_is_left(tmp_path):
    names = {path.name for path in read(tmp_path).root.iterdir()}
    assert {name for name in names if not name.startswith("simulated_")} == {"digests.json", ".lock"}


@pytest.mark.parametrize("size", [(16, 12), (33, 47), (128, 96), (300, 12), (1030, 20)])
def test_any_size_can_be_drawn(tmp_path, size):
    manifest = read(tmp_path, patients=1, width=size[0], height=size[1])
    with Image.open(manifest.root / manifest.cells["image"][0]) as image:
        assert (image.size, image.mode, image.format) == (size, "RGB", "PNG")


@pytest.mark.slow
def test_the_papers_size_can_be_drawn(tmp_path):
    manifest = read(tmp_path, patients=1, images_per_patient=1, width=2048, height=1536)
    path = manifest.root / manifest.cells["image"][0]
    with Image.open(path) as image:
        assert image.size == (2048, 1536)
    # the paper's files have 3 to 20 MB
    assert 3e6 < path.stat().st_size < 20e6


def test_a_painter_is_told_the_latent_and_never_the_diagnosis():
    assert [field.name for field in fields(SimulatedFile)] == ["name", "key", "latent", "zoom"]


def test_mean_colours_tell_the_latent():
    """Least squares on six numbers, learned on some patients, read off others."""
    cohort = draw_cohort(SampleOptions(patients=60, images_per_patient=2))
    features = np.array(
        [np.mean([_colours(image) for image in patient.files["image"]], axis=0) for patient in cohort]
    )
    design = np.column_stack([np.ones(60), features])
    latent = np.array([patient.truth.latents["image"] for patient in cohort])
    weights = np.linalg.lstsq(design[:40], latent[:40], rcond=None)[0]
    assert np.corrcoef(design[40:] @ weights, latent[40:])[0, 1] > 0.85


def test_wrong_options_are_refused():
    with pytest.raises(ValidationError, match="`images_per_patient` is a count from 1 to 99"):
        SampleOptions(images_per_patient=(5, 3))
    with pytest.raises(ValidationError, match="less than or equal to 2048"):
        SampleOptions(width=4096)


def test_the_cards_import_neither_numpy_nor_torch():
    code = (
        "import sys, fusionkit_pathoemr as p;"
        "[card.build(card.examples[0]).schema for card in p.fusionkit_components()];"
        "print(sorted({'numpy', 'torch', 'polars', 'PIL', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"


def spy(monkeypatch) -> list[str]:
    drawn: list[str] = []
    make = files.make_file

    def record(image, style, stream):
        drawn.append(image.name)
        make(image, style, stream)

    monkeypatch.setattr(files, "make_file", record)
    return drawn


def _colours(image) -> np.ndarray:
    pixels = np.asarray(TissueStyle(48, 36).draw(image), dtype=float) / 255
    return np.concatenate([pixels.mean(axis=(0, 1)), pixels.std(axis=(0, 1))])


def test_a_stored_image_that_was_swapped_or_spoilt_is_drawn_again(tmp_path):
    first = read(tmp_path)
    whole = digests(first)
    one, other, third = [first.root / name for name in first.cells["image"][:3]]
    other.write_bytes(one.read_bytes())
    third.write_bytes(third.read_bytes()[:-1] + b"\0")
    assert digests(read(tmp_path)) == whole


@pytest.mark.parametrize("text", ["", "x", "[]", "{}", '{"files": 3}'])
def test_a_broken_journal_of_images_vouches_for_nothing(tmp_path, text):
    first = read(tmp_path)
    whole = digests(first)
    (first.root / "digests.json").write_text(text)
    assert digests(read(tmp_path)) == whole


def test_it_is_told_how_many_images_are_drawn_and_of_none_nothing(tmp_path):
    told = []
    context = SourceContext(tmp_path, tmp_path, 1, lambda *counts: told.append(counts))
    source = SampleSource(SampleOptions(patients=3, images_per_patient=2, width=32, height=24))
    source.read(context)
    assert told == [(done, 6) for done in range(7)]
    source.read(context)
    assert len(told) == 7


DRAWS = """
import sys
from pathlib import Path
from fusionkit import SourceContext
from fusionkit_pathoemr.design import SimulatedFile, SimulatedSubject, draw_subjects
from fusionkit_pathoemr.options import SampleOptions
from fusionkit_pathoemr.sample import SampleSource

if __name__ == "__main__":
    SampleSource(SampleOptions(patients=400)).read(SourceContext(Path(), Path(sys.argv[1]), 2))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc").exists(), reason="needs /proc")
def test_helper_processes_end_with_the_one_that_started_them(tmp_path):
    script = tmp_path / "draws.py"
    script.write_text(DRAWS)
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path / "cache")])
    try:
        while not list(tmp_path.glob("cache/*/*.png")):
            assert parent.poll() is None
            time.sleep(0.05)
        helpers = children_of(parent.pid)
        assert len(helpers) >= 2
    finally:
        parent.kill()
        parent.wait()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in helpers):
        assert time.monotonic() < deadline, "they wait for work for ever"
        time.sleep(0.1)


def children_of(pid: int) -> list[int]:
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it may have ended just now
            fields = status.read_text().rpartition(")")[2].split()
            found += [int(status.parent.name)] if int(fields[1]) == pid else []
    return found


def is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


def test_whoever_waits_for_another_that_draws_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "WAIT_SECONDS", 0.01)
    folder = Path(read(tmp_path).root)
    holder = open(folder / ".lock")  # as another process does
    fcntl.flock(holder, fcntl.LOCK_EX)
    threading.Timer(0.5, holder.close).start()
    text = f"pathoemr_sample: waiting for another process, which draws these images ({folder / '.lock'})."
    with pytest.warns(FusionkitWarning, match=re.escape(text)):
        read(tmp_path)
