"""fusionkit doctor: what it finds, and when it is not content."""

# ruff: noqa: E501 (a message is one line)

from __future__ import annotations

import errno
import json
import os
from contextlib import contextmanager

import pytest
import torch
from command_line import call

import fusionkit
from fusionkit.cli import doctor
from fusionkit.cli.sizes import human
from fusionkit.training.device import VARIABLES as RECORDED


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if RECORDED.fullmatch(name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("COLUMNS", "80")


def test_a_sound_machine_is_described_in_80_columns(capsys):
    code, out, err = call(capsys, "doctor")
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"fusionkit {fusionkit.__version__}"
    assert f"torch {torch.__version__.split('+')[0]}" in lines[2]
    assert "  data                data: not there (--data-root, $FUSIONKIT_DATA)" in lines
    assert "  store               .fusionkit/store: can be written, locks and renames work," in lines
    assert any(
        line.startswith("  precision           ") and line.endswith("multiply bf16 natively")
        for line in [line.replace("multiplies", "multiply") for line in lines]
    )
    assert any(line.startswith("  fusionkit_heads     ") and "concat_mlp" in line for line in lines)
    assert lines[lines.index("Environment variables that can change a number or a speed") + 1] == (
        "  none is set"
    )
    assert lines[-1] == "Nothing here would stop a run."
    assert max(map(len, lines)) <= 80
    assert list(os.scandir()) == []  # it leaves nothing behind


def test_it_speaks_json(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("FUSIONKIT_DATA", str(tmp_path))
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    code, out, err = call(capsys, "doctor", "--json")
    assert (code, err) == (0, "")
    node = json.loads(out)
    assert (node["fusionkit"], node["problems"], node["broken plugins"]) == (fusionkit.__version__, [], {})
    assert node["folders"]["data"] == {"path": str(tmp_path), "there": True}
    assert (node["folders"]["store"]["sound"], node["folders"]["runs"]["sound"]) == (True, True)
    assert node["machine"]["threads"] >= 1
    assert node["variables"] == {"FUSIONKIT_DATA": str(tmp_path), "MKL_CBWR": "AVX2"}


def test_a_variable_that_changes_numbers_is_explained(capsys, monkeypatch):
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    lines = call(capsys, "doctor")[1].splitlines()
    index = lines.index("  NVIDIA_TF32_OVERRIDE=1")
    assert lines[index + 1].strip() == "how precisely CUDA multiplies"


def test_a_folder_that_cannot_be_written_is_exit_code_8(capsys, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "runs").touch()
    code, out, err = call(capsys, "doctor", "--store", "file/store")
    assert code == 8
    assert err == (
        f"error: store: file/store: cannot be written ({tmp_path}/file is a file). "
        "Choose another folder with --store.\n"
        f"error: runs: runs: cannot be written ({tmp_path}/runs is a file). "
        "Choose another folder with --runs.\n"
    )
    assert "  store               file/store: NOT SOUND, " in out
    assert out.splitlines()[-1] == "Something is to be mended:"
    code, out, _ = call(capsys, "doctor", "--store", "file/store", "--json")
    assert (code, len(json.loads(out)["problems"])) == (8, 2)


def test_a_folder_that_refuses_is_told_as_the_system_tells_it(tmp_path, monkeypatch):
    def refuse(*arguments, **named):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    assert doctor.probe(tmp_path / "a" / "b") == "cannot be written (Read-only file system)"


def test_locks_that_do_not_hold_are_noticed(tmp_path, monkeypatch):
    @contextmanager
    def lock(path, timeout=-1):
        yield

    monkeypatch.setattr("filelock.FileLock", lock)
    assert doctor.probe(tmp_path) == (
        "locks do not hold there, so two runs at once would spoil each other's files"
    )


def test_a_rename_that_does_not_replace_is_noticed(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor.os, "replace", lambda a, b: None)
    assert doctor.probe(tmp_path) == "a file that is renamed over another does not replace it"


@pytest.mark.parametrize(
    ("code", "reason", "hint"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero", "Mend or uninstall it; recipes that do not use it run all the same."),
        ("import nothing.like", "ModuleNotFoundError: No module named 'nothing'", "Install nothing, or uninstall the plugin."),
    ],
)  # fmt: skip
def test_a_broken_plugin_is_exit_code_5_with_its_reason_and_what_to_do(capsys, tmp_path, code, reason, hint):
    (tmp_path / "broken.py").write_text(f"{code}\n")
    exit_code, out, err = call(capsys, "-p", "broken.py", "doctor")
    assert (exit_code, err) == (5, f"error: plugin broken.py: {reason}. {hint}\n")
    assert f"  broken.py           BROKEN: {reason}" in out.splitlines()


def test_a_name_that_two_plugins_claim_is_a_problem(capsys, tmp_path):
    text = (
        "from fusionkit import ComponentConfig, HeadSpec, hookimpl\n\n\n@hookimpl\ndef fusionkit_components():\n"
        "    return [HeadSpec(name='concat_mlp', summary='x', source='x', build=lambda *a: None)]\n"
    )
    (tmp_path / "again.py").write_text(text)
    code, _, err = call(capsys, "-p", "again.py", "doctor")
    claim = "error: head 'concat_mlp' is claimed by again.py and fusionkit_heads. Uninstall one of them.\n"
    assert (code, err) == (5, claim)


def test_sizes_are_for_people():
    sizes = [human(size) for size in (0, 1023, 1024, 10 * 1024, 2**20 * 3.42, 2**30, 2**40 * 1.5)]
    assert sizes == ["0 B", "1023 B", "1.0 KiB", "10 KiB", "3.4 MiB", "1.0 GiB", "1.5 TiB"]
