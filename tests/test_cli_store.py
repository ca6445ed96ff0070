"""fusionkit store: what it lists, how it counts, what it deletes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from command_line import call

from fusionkit.store import Artefact, Store

DAY = 86400.0


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A store with an old artefact, a new one, features and a generated file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FUSIONKIT_STORE", raising=False)
    root = tmp_path / "store"
    store = Store(root)
    for number, address in enumerate(("a" * 64, "b" * 64)):
        metadata = {"verb": "train", "parts": ["head", f"m{number}.encoder"]}
        store.save(address, Artefact({"w": torch.zeros(600 * (number + 1))}, metadata))
    store.put("features/" + "c" * 64 + "/" + "d" * 64 + ".safetensors", b"x" * 100)
    store.put("sources/pictures/0.png", b"y" * 10)
    now = time.time()
    for age, path in (
        (40, "artefacts/" + "a" * 64 + ".safetensors"),
        (1, "artefacts/" + "b" * 64 + ".safetensors"),
    ):
        os.utime(root / path, (now - age * DAY, now - age * DAY))
    return root


def sizes(root: Path) -> dict[str, int]:
    return {path.name[:1]: path.stat().st_size for path in (root / "artefacts").iterdir()}


def test_list_shows_the_newest_first_and_no_generated_files(root, capsys):
    code, out, err = call(capsys, "store", "list", "--store", root)
    assert (code, err) == (0, "")
    lines = [line.split(maxsplit=6) for line in out.splitlines()]
    assert [(line[0], line[1]) for line in lines] == [
        ("features", "c" * 12),
        ("artefacts", "b" * 12),
        ("artefacts", "a" * 12),
    ]
    assert [line[2:4] for line in lines] == [["100", "B"], ["5", "KiB"], ["2", "KiB"]]
    assert [line[6] for line in lines[1:]] == ["train head, m1.encoder", "train head, m0.encoder"]


def test_list_speaks_json(root, capsys):
    code, out, _ = call(capsys, "store", "list", "--store", root, "--json")
    entries = json.loads(out)
    assert code == 0
    assert [entry["kind"] for entry in entries] == ["features", "artefacts", "artefacts"]
    assert entries[2]["name"] == "a" * 64 + ".safetensors"
    assert entries[2]["metadata"] == {"parts": ["head", "m0.encoder"], "verb": "train"}
    assert entries[2]["size"] == sizes(root)["a"]


def test_size_adds_up_by_kind(root, capsys, monkeypatch):
    monkeypatch.setenv("FUSIONKIT_STORE", str(root))
    code, out, _ = call(capsys, "store", "size", "--json")
    assert code == 0
    assert json.loads(out) == {
        "store": str(root),
        "kinds": {
            "sources": {"files": 1, "bytes": 10},
            "features": {"files": 1, "bytes": 100},
            "artefacts": {"files": 2, "bytes": sum(sizes(root).values())},
        },
    }
    code, out, _ = call(capsys, "store", "size")
    lines = out.splitlines()
    assert (code, lines[0]) == (0, f"{root}:")
    assert sorted(lines[1:-1]) == [
        "  artefacts        2 files      7 KiB",
        "  features         1 files      100 B",
        "  sources          1 files       10 B",
    ]
    assert lines[-1] == "  all              4 files      7 KiB"


def test_prune_deletes_what_is_older(root, capsys):
    size = sizes(root)["a"]
    code, out, err = call(capsys, "store", "prune", "--store", root, "--json")
    assert (code, json.loads(out), err) == (0, {"files": 1, "bytes": size, "users": []}, "")
    assert list(sizes(root)) == ["b"]
    assert call(capsys, "store", "prune", "--store", root, "--older-than", "2")[:2] == (
        0,
        "0 files deleted, 0 B.\n",
    )
    code, out, _ = call(capsys, "store", "prune", "--store", root, "--older-than", "0")
    assert (code, out.split(" ", 1)[0]) == (0, "3")
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["journal.jsonl"]


def test_a_store_that_is_not_there_is_empty(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert call(capsys, "store", "list", "--store", nowhere) == (0, "", "")
    assert call(capsys, "store", "list", "--store", nowhere, "--json") == (0, "[]\n", "")
    assert call(capsys, "store", "size", "--store", nowhere)[1].endswith(
        "all              0 files        0 B\n"
    )
    assert call(capsys, "store", "prune", "--store", nowhere) == (0, "0 files deleted, 0 B.\n", "")
    assert not nowhere.exists()


def test_what_store_cannot_do_is_a_mistake_of_usage(capsys):
    code, _, err = call(capsys, "store", "empty")
    assert code == 2
    assert "No such command 'empty'" in err
    assert call(capsys, "store", "prune", "--older-than", "-1")[0] == 2
