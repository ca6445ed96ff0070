"""fusionkit store: what it lists, how it counts, what it deletes."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from command_line import call

from fusionkit.store import Artefact, Store, to_bytes

DAY = 86400.0


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A store with an old artefact, a new one, features and a generated file."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FUSIONKIT_STORE", raising=False)
    root = tmp_path / "store"
    store = Store(root)
    for number, address in enumerate(("a" * 64, "b" * 64)):
        metadata = {"stage": "fuse", "verb": "train", "parts": ["head", f"m{number}.encoder"]}
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


def test_list_shows_the_newest_first_in_80_columns_and_no_generated_files(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = call(capsys, "store", "list", "--store", root)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        "KIND        NAME           SIZE  UNUSED  WHAT",
        "features    cccccccc      100 B  now     unreadable",
        "artefacts   bbbbbbbb    4.9 KiB  1 d     fuse: train head, m1.encoder",
        "artefacts   aaaaaaaa    2.5 KiB  40 d    fuse: train head, m0.encoder",
        f"3 files, 7.5 KiB in {root}.",
        "Not shown: 1 file that sources generated.",
    ]


def test_features_and_checkpoints_say_what_they_hold(root, capsys):
    store = Store(root)
    tensors = {"keys": torch.zeros(7, 32, dtype=torch.uint8), "values": torch.zeros(7, 3)}
    store.put("features/" + "e" * 64 + "/" + "f" * 64 + ".safetensors", to_bytes(Artefact(tensors, {})))
    store.put("checkpoints/" + "a" * 64 + ".safetensors", to_bytes(Artefact(tensors, {"epoch": 12})))
    out = call(capsys, "store", "list", "--store", root)[1]
    assert any(line.endswith("7 rows of 3 values") for line in out.splitlines())
    only = call(capsys, "store", "list", "checkpoints", "--store", root)[1].splitlines()
    assert [line.split()[0] for line in only] == ["KIND", "checkpoints", "1"]
    assert only[1].endswith("after epoch 12")
    generated = call(capsys, "store", "list", "sources", "--store", root)[1].splitlines()
    assert [line.split()[0] for line in generated] == ["KIND", "sources", "1"]


def test_list_speaks_json(root, capsys):
    code, out, _ = call(capsys, "store", "list", "--store", root, "--json")
    entries = json.loads(out)
    assert code == 0
    assert [entry["kind"] for entry in entries] == ["features", "artefacts", "artefacts"]
    assert entries[2]["name"] == "a" * 64 + ".safetensors"
    assert entries[2]["metadata"] == {
        "parts": ["head", "m0.encoder"],
        "stage": "fuse",
        "verb": "train",
    }
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
    assert lines[1:] == [
        "  artefacts         2 files   7.4 KiB  what stages learned",
        "  features           1 file     100 B  outputs of frozen encoders",
        "  sources            1 file      10 B  what sources generated, such as images",
        "  all               4 files   7.5 KiB",
    ]


def prune(capsys, root, *arguments):
    code, out, err = call(capsys, "store", "prune", "--store", root, *arguments)
    assert (code, err) == (0, "")
    return out


def files(root: Path) -> list[str]:
    return sorted(path.relative_to(root).parts[0] for path in root.rglob("*") if path.is_file())


def test_prune_deletes_what_is_older(root, capsys):
    size = sizes(root)["a"]
    counted = {"files": 1, "bytes": size}
    node = {**counted, "kinds": {"artefacts": counted}, "users": [], "dry_run": False}
    assert json.loads(prune(capsys, root, "--json")) == node
    assert list(sizes(root)) == ["b"]
    assert prune(capsys, root, "--older-than", "2") == "0 files deleted, 0 B.\n"
    assert prune(capsys, root, "--older-than", "0").split(" ", 1)[0] == "3"
    assert [path.name for path in root.rglob("*") if path.is_file()] == ["journal.jsonl"]


def test_a_dry_run_of_prune_says_what_would_go_and_deletes_nothing(root, capsys):
    before = files(root)
    assert prune(capsys, root, "--older-than", "0", "--dry-run").splitlines() == [
        "4 files would be deleted, 7.5 KiB.",
        "  artefacts         2 files   7.4 KiB  what stages learned",
        "  features           1 file     100 B  outputs of frozen encoders",
        "  sources            1 file      10 B  what sources generated, such as images",
    ]
    assert files(root) == before
    assert prune(capsys, root, "--older-than", "0").startswith("4 files deleted, 7.5 KiB.\n")
    assert files(root) == ["journal.jsonl"]


def test_prune_keeps_other_kinds_than_those_named(root, capsys):
    prune(capsys, root, "--older-than", "0", "--kind", "features", "--kind", "sources")
    assert files(root) == ["artefacts", "artefacts", "journal.jsonl"]


def test_a_kind_that_is_not_there_is_a_mistake_of_usage(root, capsys):
    known = "Known: artefacts, audits, broken, checkpoints, features, sources."
    for command, arguments in (("list", ["artefact"]), ("prune", ["--kind", "artefact"])):
        assert call(capsys, "store", command, *arguments, "--store", root) == (
            2,
            "",
            f"error: store {command}: there is no kind of file called 'artefact'. "
            f"Did you mean 'artefacts'? {known}\n",
        )
    assert files(root) == ["artefacts", "artefacts", "features", "journal.jsonl", "sources"]


def test_a_store_that_is_not_there_is_empty(tmp_path, capsys):
    nowhere = tmp_path / "nowhere"
    assert call(capsys, "store", "list", "--store", nowhere) == (0, f"0 files, 0 B in {nowhere}.\n", "")
    assert call(capsys, "store", "list", "--store", nowhere, "--json") == (0, "[]\n", "")
    assert call(capsys, "store", "size", "--store", nowhere)[1].endswith(
        "all               0 files       0 B\n"
    )
    assert call(capsys, "store", "prune", "--store", nowhere) == (0, "0 files deleted, 0 B.\n", "")
    assert not nowhere.exists()


def test_what_store_cannot_do_is_a_mistake_of_usage(capsys):
    code, _, err = call(capsys, "store", "empty")
    assert code == 2
    assert "No such command 'empty'" in err
    assert call(capsys, "store", "prune", "--older-than", "-1")[0] == 2


def test_one_encoders_features_and_one_sources_files_are_one_line(root, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    store = Store(root)
    for number in range(3):
        tensors = {"keys": torch.zeros(7, 32, dtype=torch.uint8), "values": torch.zeros(7, 3)}
        name = f"features/{'e' * 64}/{number}{'f' * 63}.safetensors"
        store.put(name, to_bytes(Artefact(tensors, {"number": number})))
    for number in range(9):
        store.put(f"sources/cohort-{'5' * 16}/{number}.png", b"y" * 10)
    lines = call(capsys, "store", "list", "features", "--store", root)[1].splitlines()
    assert [line[12:22].strip() for line in lines[1:-1]] == ["eeeeeeee", "cccccccc"]
    assert lines[1].endswith("21 rows of 3 values in 3 files")
    lines = call(capsys, "store", "list", "sources", "--store", root)[1].splitlines()
    assert lines[1] == f"sources     55555555       90 B  now     9 files of cohort-{'5' * 16}"
    assert lines[2] == "sources     pictures       10 B  now     1 file of pictures"


def test_every_kind_says_what_its_files_are(root, capsys):
    store = Store(root)
    store.put(
        "audits/" + "a" * 64 + ".safetensors", to_bytes(Artefact({"whole": torch.zeros(1)}, {"audit": "x"}))
    )
    (root / "broken").mkdir()
    (root / "broken" / "b.safetensors.123456").touch()
    out = call(capsys, "store", "list", "--store", root)[1].splitlines()
    said = {line.split()[0]: line[41:] for line in out[1:-2]}
    assert said["audits"] == "contents found whole"
    assert said["broken"] == "set aside: not what was written"
    assert all(said.values())
