"""A flipped byte, a half-written file, a torn line; and the same bytes whatever the workers."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from faults import RECIPE, logged, results

ROWS = "number,word\n0.5,a\n-1,b\n"


@pytest.fixture
def place(tmp_path, undisturbed) -> Path:
    """A copy of a finished run with its store, to be broken; hard links are undone."""
    folder = tmp_path / "x"
    shutil.copytree(undisturbed, folder, symlinks=True)
    (folder / "rows.csv").write_text(ROWS)
    return folder


def flip(path: Path, position: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 4
    path.write_bytes(bytes(data))


def warnings_of(child) -> list[str]:
    return [line for line in child.err().splitlines() if line.startswith("warning: ")]


@pytest.mark.parametrize("position", [3, -9], ids=["header", "weights"])
def test_a_flipped_byte_in_the_weights_of_a_run_stops_predict(nursery, place, position):
    good = nursery.run(place, "predict", "runs/faults/latest", "rows.csv", "-q")
    assert good.poll() == 0, good.err()
    run = (place / "runs/faults/latest").readlink()
    weights = sorted((place / "runs/faults/latest/model").glob("*.safetensors"))[0]
    flip(weights, position)
    bad = nursery.run(place, "predict", "runs/faults/latest", "rows.csv", "-q")
    assert (bad.poll(), bad.out()) == (6, "")
    assert bad.err() == (
        f"error: runs/faults/{run}/model/{weights.name}: not what the run wrote (sha256 differs). Run the "
        "recipe again.\n"
    )


@pytest.mark.parametrize("damage", ["flipped", "half", "empty"])
@pytest.mark.parametrize("kind", ["features", "artefacts"])
def test_a_damaged_file_of_the_store_is_computed_again_with_one_warning(
    nursery, place, undisturbed, kind, damage
):
    store = place / ".fusionkit" / "store"
    # the newest features are of rows to predict, which every run reads
    victim = max((store / kind).rglob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    if damage == "flipped":
        flip(victim)
    else:
        victim.write_bytes(victim.read_bytes()[: victim.stat().st_size // 2 if damage == "half" else 0])
    child = nursery.run(place)
    assert child.poll() == 0, child.err()
    name = victim.relative_to(place)
    assert warnings_of(child) == [
        f"warning: {name}: not what was written; set aside in broken/ and computed again."
    ]
    assert results(place) == results(undisturbed)
    assert victim.exists()
    again = nursery.run(place)
    assert warnings_of(again) == []
    assert again.out().splitlines()[-2] == "Nothing computed, all from the store."


def last_stage(folder: Path) -> str:
    return str(logged(folder, "stage_finished")[-1]["address"])


def test_a_flipped_byte_in_the_runs_copy_of_the_recipe_is_ignored(nursery, place):
    before = nursery.run(place, "predict", "runs/faults/latest", "rows.csv", "-q").out()
    flip(place / "runs" / "faults" / "latest" / "recipe.yaml")
    child = nursery.run(place, "predict", "runs/faults/latest", "rows.csv", "-q")
    assert (child.poll(), child.out(), child.err()) == (0, before, "")


@pytest.mark.parametrize("position", [2, 30, -40], ids=["signature", "header", "pixels"])
def test_a_flipped_byte_in_an_image_is_an_error_of_the_data(nursery, place, position):
    flip(place / ".fusionkit/store/sources/toy_pictures/07.png", position)
    child = nursery.run(place)
    assert (child.poll(), child.out()) == (4, ""), child.err()
    assert "Traceback" not in child.err()
    (line,) = [line for line in child.err().splitlines() if line.startswith("error: ")]
    assert line.startswith("error: sample sample07 (subject subject02): ")
    assert "07.png" in line


@pytest.mark.parametrize("torn", [b'{"name": "artefacts/x', b"\n\n\x00\xff{\n", b"[]\n"])
def test_a_torn_line_of_the_journal_spoils_nothing(nursery, place, undisturbed, torn):
    with open(place / ".fusionkit/store/journal.jsonl", "ab") as file:
        file.write(torn)
    child = nursery.run(place)
    assert (child.poll(), warnings_of(child)) == (0, [])
    assert child.out().splitlines()[-2] == "Nothing computed, all from the store."
    assert results(place) == results(undisturbed)


def test_a_lost_line_of_the_journal_costs_its_file_and_no_more(nursery, place, undisturbed):
    journal = place / ".fusionkit/store/journal.jsonl"
    lines = [line for line in journal.read_text().splitlines() if last_stage(undisturbed) not in line]
    journal.write_text("\n".join(lines) + "\n")
    child = nursery.run(place)
    assert (child.poll(), len(warnings_of(child))) == (0, 1)
    assert "\n1 stage computed.\n" in child.out()
    assert results(place) == results(undisturbed)


# the same bytes


def test_the_same_command_elsewhere_leaves_the_same_bytes(nursery, tmp_path, undisturbed):
    assert nursery.run(tmp_path / "elsewhere").poll() == 0
    assert results(tmp_path / "elsewhere") == results(undisturbed)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_no_byte(nursery, tmp_path, undisturbed, workers):
    assert "workers" not in RECIPE, "so that the undisturbed run has none"
    child = nursery.run(tmp_path / "x", "run", "faults.yaml", f"training.workers={workers}")
    assert child.poll() == 0, child.err()
    found, expected = results(tmp_path / "x"), results(undisturbed)
    # the index alone knows the sum of the resolved recipe, which names the workers
    indices = [json.loads(node.pop("index.json")) for node in (found, expected)]
    assert found == expected
    for index in indices:
        del index["files"]["resolved.yaml"], index["digest"]
    assert indices[0] == indices[1]


def test_the_environment_holds_what_else_could_matter(nursery, tmp_path):
    child = nursery.run(tmp_path / "x", "run", "faults.yaml", MKL_CBWR="COMPATIBLE", KMP_BLOCKTIME="0")
    assert child.poll() == 0
    found = json.loads((tmp_path / "x/runs/faults/latest/environment.json").read_text())
    assert found["device"] == {
        "type": "cpu",
        "precision": "fp32",
        "threads": 1,
        "reason": "the recipe says so",
        "compiles": False,
    }
    assert found["threads"]["torch"] == 1
    expected = {"OMP_NUM_THREADS": "1", "MKL_CBWR": "COMPATIBLE", "KMP_BLOCKTIME": "0"}
    assert expected.items() <= found["variables"].items()
    assert {"torch", "numpy", "torchvision", "pillow", "polars"} <= set(found["packages"])
