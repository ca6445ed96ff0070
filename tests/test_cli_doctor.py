"""fusionkit doctor: what it finds, and when it is not content."""

from __future__ import annotations

import json

import pytest
import torch
from command_line import call

import fusionkit
from fusionkit.cli import doctor


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("FUSIONKIT_STORE", "FUSIONKIT_DATA"):
        monkeypatch.delenv(name, raising=False)


def test_a_sound_machine_is_described(capsys):
    code, out, err = call(capsys, "doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"fusionkit: {fusionkit.__version__}"
    assert f"torch: {torch.__version__}" in lines
    assert "data root: data (not there)" in lines
    assert any(line.startswith("store: .fusionkit/store (can be written, ") for line in lines)
    assert any(line.startswith("precision: ") and "multipl" in line for line in lines)
    assert any(line.startswith("  fusionkit_vgg: ") for line in lines)
    assert lines[-1] == "broken plugins: none"


def test_it_speaks_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONKIT_DATA", str(tmp_path))
    code, out, err = call(capsys, "doctor", "--json")
    assert (code, err) == (0, "")
    node = json.loads(out)
    assert (node["fusionkit"], node["problems"], node["broken plugins"]) == (fusionkit.__version__, [], {})
    assert node["data root"] == f"{tmp_path} (there)"
    assert node["threads"] >= 1


def test_a_folder_that_cannot_be_written_is_exit_code_8(capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "runs").touch()
    code, out, err = call(capsys, "doctor", "--store", "file/store")
    assert code == 8
    assert err == (
        "error: store: file/store cannot be written. Choose another folder.\n"
        "error: runs: runs cannot be written. Choose another folder.\n"
    )
    assert "store: file/store (cannot be written, " in out
    code, out, _ = call(capsys, "doctor", "--store", "file/store", "--json")
    assert (code, json.loads(out)["problems"]) == (8, ["store", "runs"])


def test_a_broken_plugin_is_named_with_its_reason_and_stops_nothing(capsys, tmp_path):
    (tmp_path / "broken.py").write_text("1 / 0\n")
    code, out, _ = call(capsys, "-p", "broken.py", "doctor")
    assert code == 0
    assert out.splitlines()[-2:] == ["broken plugins:", "  broken.py: ZeroDivisionError: division by zero"]


def test_a_folder_to_be_made_is_judged_by_the_one_above(tmp_path):
    assert doctor._writable(tmp_path / "a" / "b" / "c") == "can be written"
    (tmp_path / "file").touch()
    assert doctor._writable(tmp_path / "file") == "cannot be written"
