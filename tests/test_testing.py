"""The conformance kit: as a test, as a command, and as the page of the contract."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import breaching_toys
import pytest

from fusionkit import cli
from fusionkit.errors import UsageError
from fusionkit.testing import parametrize_with_checks
from fusionkit.testing.contract import contract_page
from fusionkit.testing.kit import every_check, pair

ROOT = Path(__file__).parent.parent
HERE = Path(__file__).parent
GOOD, BAD = breaching_toys.fusionkit_components()
SENTENCE = "gives (24, 10) float64, and (24, 10) float32 is due. Mend the plugin."


def call(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["-p", str(HERE / "breaching_toys.py"), "check", *arguments])
    return stop.value.code, *capsys.readouterr()


def test_the_page_of_the_contract_is_what_the_checks_say():
    page = (ROOT / "docs" / "contract.md").read_text(encoding="utf-8")
    assert page == contract_page(), "make contract"


def test_every_clause_stands_in_the_page_once_and_is_a_sentence():
    page, checks = contract_page(), every_check()
    assert [check.name for check in checks if page.count(f"**`{check.name}`**") != 1] == []
    assert [check.name for check in checks if not check.clause.splitlines()[0].endswith(".")] == []


def test_a_component_that_keeps_the_contract_passes_line_by_line(capsys):
    code, out, err = call(capsys, "good")
    lines = out.splitlines()
    assert (code, err) == (0, "")
    assert lines[0] == "good (raiser): the card"
    assert lines[3] == "good.0: {}"
    assert [line.split() for line in lines[4:6]] == [
        ["check_options_round_trip", "pass"],
        ["check_learns", "pass"],
    ]
    reason = "its card does not say that it accepts missing values"
    assert f"  {'check_missing_values':<30}{'does not apply':<16}{reason}" in lines
    assert lines[-1] == "10 pass, 0 fail, 1 does not apply"


def test_one_that_does_not_is_told_in_one_sentence_with_exit_code_5(capsys):
    code, out, _ = call(capsys, "good", "bad")
    assert code == 5
    assert f"  {'check_output':<30}{'fail':<16}{SENTENCE}" in out.splitlines()
    assert out.splitlines()[-1] == "19 pass, 1 fail, 2 does not apply"


def test_json_has_the_component_the_example_and_the_reason(capsys):
    code, out, _ = call(capsys, "bad", "--json")
    (failed,) = [entry for entry in json.loads(out) if entry["status"] == "fail"]
    assert code == 5
    assert failed == {
        "component": "bad",
        "kind": "raiser",
        "example": 0,
        "options": {},
        "check": "check_output",
        "status": "fail",
        "reason": f"bad.0: {SENTENCE}",
    }


FAILING = """
from fusionkit import ComponentConfig, RaiserSpec, hookimpl

def build(config, input_dim):
    from failing.network import Fails
    return Fails()

@hookimpl
def fusionkit_components():
    return [RaiserSpec(name="failing", summary="A toy.", source="ours", build=build,
                       examples=(ComponentConfig(),))]
"""
FAILING_PART = """import torch

class Fails(torch.nn.Module):
    input_dim = output_dim = 5

    def forward(self, features):
        return self.widen(features)

    def widen(self, features):
        return torch.ones(3) @ torch.ones(2)
"""


def test_a_fault_in_the_plugins_code_is_told_once_with_its_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "failing").mkdir()
    (tmp_path / "failing" / "__init__.py").write_text(FAILING)
    (tmp_path / "failing" / "network.py").write_text(FAILING_PART)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["-p", str(tmp_path / "failing"), "check", "failing"])
    assert stop.value.code == 5
    lines = [line for line in capsys.readouterr().out.splitlines() if " fail  " in line]
    place = "network.py, line 10, in widen"
    assert len(lines) == 2
    assert f"; {place}). Mend the plugin, or look at its options." in lines[0], lines
    assert re.fullmatch(
        rf"  and \d+ more checks +fail +for the reason of {lines[0].split()[0]}, from check_\w+ on", lines[1]
    )
    with pytest.raises(SystemExit):
        cli.main(["-p", str(tmp_path / "failing"), "check", "failing", "--json"])
    failed = [entry for entry in json.loads(capsys.readouterr().out) if entry["status"] == "fail"]
    assert len(failed) == 1 + int(re.search(r"\d+", lines[1])[0])
    assert all(place in entry["reason"] for entry in failed)


def test_an_unknown_name_is_told_with_the_nearest_one(capsys):
    code, _, err = call(capsys, "bat")
    assert code == 2
    assert err.startswith("error: check: there is no component called 'bat'. Did you mean 'bad'? Known: ")


def test_without_a_near_one_the_plugin_may_not_have_been_named(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["check", "zzz"])
    err = capsys.readouterr().err
    assert stop.value.code == 2
    assert err.startswith("error: check: there is no component called 'zzz'. Known: ")
    hint = "If your own plugin offers it, name that before the command: `fusionkit -p PLUGIN ...`.\n"
    assert err.endswith(hint)


def test_what_is_expected_to_fail_has_to_be_a_check():
    with pytest.raises(UsageError) as error:
        parametrize_with_checks([GOOD], expected_failures={"check_outputs": "why"})
    assert error.value.problems[0].startswith(
        "expected_failures: there is no check called 'check_outputs'. Did you mean 'check_output'? Known: "
    )


TESTS = """
import breaching_toys
from fusionkit.testing import parametrize_with_checks
good, bad = breaching_toys.fusionkit_components()

@parametrize_with_checks([good, bad])
def test_plain(case, check):
    check(case)

@parametrize_with_checks([bad], expected_failures={"bad.0-check_output": "by design", "check_learns": "stale",
                                                   "check_missing_values": "stale, too"})
def test_expected(case, check):
    check(case)
"""


def test_pytest_names_each_check_skips_what_does_not_apply_and_is_strict(tmp_path):
    (tmp_path / "test_kit.py").write_text(TESTS)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "-rA",
        "--tb=no",
        str(tmp_path),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE, env=_with_path())
    lines = done.stdout.splitlines()
    told = [line for line in lines if line.split(" ")[0] in ("FAILED", "XFAIL")]
    assert [line.split("::")[1] for line in told if line.startswith("XFAIL")] == [
        "test_expected[bad.0-check_output] - by design"
    ]
    failed = [line.split("::")[1].split(" - ")[0] for line in told if line.startswith("FAILED")]
    assert failed == [
        "test_plain[bad.0-check_output]",
        "test_expected[bad.0-check_learns]",
        "test_expected[bad.0-check_missing_values]",
    ]
    assert any("SKIPPED [2]" in line and "does not apply: its card does not say" in line for line in lines)


def _with_path():
    import os

    return os.environ | {"PYTHONPATH": str(HERE)}


def test_the_package_imports_nothing_heavy():
    code = "import sys, fusionkit.testing; print({'torch', 'numpy', 'polars'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_a_source_whose_data_are_not_here_is_not_counted_as_passed():
    from dataclasses import replace

    from fusionkit.registry import Registry
    from fusionkit.specs import SourceSpec

    card = replace(Registry.discover().card(SourceSpec, "manifest"), example_files=None)
    looked = {check.name: check.look(case) for case, check in pair(card)}
    reason = "its data are not here, and its card has no `example_files`"
    assert looked["check_manifest"] == looked["check_read_is_repeatable"] == ("does not apply", reason)
