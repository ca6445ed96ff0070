"""`fusionkit plugins`, and installed plugins that are broken, slow, loud, or of another version."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from command_line import call
from installed import CARD, install
from test_import_cost import probe

from fusionkit import __version__
from fusionkit.registry import Registry

NAMES = (f"installed{number}" for number in range(10**6))
"""Names of modules that no other test has imported."""


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that Python looks into, as it does into site-packages."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    return folder


def plugins(capsys: Any) -> dict[str, Any]:
    code, out, _ = call(capsys, "plugins", "--json")
    assert code == 0
    found = json.loads(out)
    assert isinstance(found, dict)
    return found


# what there is


def test_a_plugin_is_told_with_its_version_its_place_and_what_it_offers(site, capsys):
    name = next(NAMES)
    install(site, name)
    told = {plugin["name"]: plugin for plugin in plugins(capsys)["plugins"]}
    assert 0 <= told[name].pop("seconds") < 60
    assert told[name] == {
        "name": name,
        "package": name,
        "version": "1.2.3",
        "distribution": f"{name} 1.2.3",
        "file": str(site / f"{name}.py"),
        "components": {"head": [name]},
    }
    assert set(told["fusionkit_raisers"]["components"]["raiser"]) >= {"ae", "dae", "copy"}
    assert told["fusionkit_heads"]["distribution"] == f"fusionkit {__version__}"


def test_the_text_names_plugins_and_what_is_wrong(site, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    one, two, three = next(NAMES), next(NAMES), next(NAMES)
    install(site, one)
    install(site, two, CARD.replace("{name!r}", repr(one)))
    install(site, three, "1 / 0")
    code, out, err = call(capsys, "plugins")
    assert (code, err) == (0, "")
    assert f"{one}  1.2.3\n    from {one} 1.2.3: " in out
    assert f"    head: {one}\n" in out
    assert "    from -p: " in out, "the toys"
    lines = out.splitlines()
    assert f"broken: plugin {three} (ZeroDivisionError: division by zero)" in lines
    assert f"claimed twice: head {one}, by {one} and {two}" in lines


def test_a_plugin_that_a_copy_replaces_is_named(site, tmp_path, capsys):
    name = next(NAMES)
    install(site, name)
    copy = tmp_path / f"{name}.py"
    copy.write_text((site / f"{name}.py").read_text())
    code, out, _ = call(capsys, "-p", copy, "plugins", "--json")
    assert (code, json.loads(out)["replaced"]) == (0, {name: str(copy)})


# what is broken stops nothing

CARDS = "from fusionkit import HeadSpec\ndef fusionkit_components():\n    return "
HEAD = "HeadSpec(name={name!r}, summary='', source='', build=print"
BROKEN = {
    "raises": ("def fusionkit_components():\n    raise KeyError('x')", {}, "KeyError: 'x'"),
    "exits": ("def fusionkit_components():\n    exit(0)", {}, "SystemExit: 0"),
    "offers nothing": (
        "def components(): return []",
        {},
        "it answers no hook. Known: fusionkit_components, fusionkit_event.",
    ),
    "a hook of other parameters": (
        "from fusionkit import hookimpl\n@hookimpl\ndef fusionkit_event(what): 1 / 0",
        {},
        None,
    ),
    "a card's name": (
        CARDS + "[HeadSpec(name=None, summary='', source='', build=print)]",
        {},
        "the `name` of a head's card is no text (None).",
    ),
    "a card's summary": (
        CARDS + "[HeadSpec(name='a', summary=3, source='', build=print)]",
        {},
        "the `summary` of a head's card is no text (3).",
    ),
    "a card's options": (
        CARDS + "[" + HEAD + ", config=dict)]",
        {},
        "the `config` of head NAME is no ComponentConfig (<class 'dict'>).",
    ),
    "one name twice": (CARDS + "[" + HEAD + ")] * 2", {}, "offers head NAME twice. Rename one."),
    "an object": (
        CARD,
        {"value": "json:dumps"},
        "its entry point names no module (json:dumps). Give a module's name alone.",
    ),
    "no name of a module": (
        CARD,
        {"value": "not a module!"},
        "its entry point names no module (not a module!). Give a module's name alone.",
    ),
    "another fusionkit": (
        "1 / 0",
        {"requires": ["numpy", "fusionkit>=9,<10", "fusionkit-other>=5"]},
        f"NAME 1.2.3 asks for fusionkit<10,>=9, and {__version__} is here. "
        "Install a version of it that goes with this one.",
    ),
    "a requirement that is none": (CARD, {"requires": ["fusionkit >=>= 1"]}, None),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_plugin_is_told_with_the_reason_and_the_others_are_there(site, capsys, how):
    code, given, reason = BROKEN[how]
    name = next(NAMES)
    install(site, name, code, **given)
    found = plugins(capsys)
    assert list(found["broken"]) == [name]
    assert "\n" not in found["broken"][name]
    if reason is not None:
        assert found["broken"][name] == reason.replace("NAME", name)
    assert len(found["plugins"]) >= 11
    assert name not in [plugin["name"] for plugin in found["plugins"]]
    assert call(capsys, "list")[0] == 0


def test_an_observer_that_is_refused_hears_nothing(site, capsys):
    install(site, next(NAMES), BROKEN["a hook of other parameters"][0])
    Registry.discover().notify("run_finished", {})
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "requires",
    [
        [f"fusionkit=={__version__}"],
        ["fusionkit"],
        ["Fusionkit (>=0.1,<9)"],
        ['fusionkit>=9; extra == "new"'],
        ["fusionkit-other>=9"],
    ],
)
def test_a_plugin_that_asks_for_this_fusionkit_loads(site, requires):
    name = next(NAMES)
    install(site, name, requires=requires)
    found = Registry.discover()
    assert (found.broken, name in found.plugins) == ({}, True)


def test_metadata_that_cannot_be_read_stop_nothing(site, capsys):
    lost, sound = next(NAMES), next(NAMES)
    install(site, lost, entry_points="[fusionkit]\nno equals sign\n")
    install(site, sound)
    found = plugins(capsys)
    ((where, reason),) = found["broken"].items()
    assert where == lost
    assert reason.startswith("its entry points cannot be read (")
    assert {sound, "fusionkit_heads"} <= {plugin["name"] for plugin in found["plugins"]}


def test_two_distributions_with_one_module(site, capsys):
    one, two = sorted([next(NAMES), next(NAMES)])
    install(site, one)
    install(site, two, value=one)
    assert plugins(capsys)["broken"] == {two: f"{one} has its import name ({one}). Rename one."}


def test_what_a_plugin_prints_and_warns_of_does_not_break_json(site):
    name = next(NAMES)
    install(site, name, "import warnings\nprint('hello')\nwarnings.warn('beware')\n" + CARD)
    command = [sys.executable, "-c", "from fusionkit.cli import main; main()", "list", "--json"]
    environment = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0
    assert name in [component["name"] for component in json.loads(done.stdout)["components"]]
    assert "hello" in done.stderr.splitlines()
    assert "UserWarning: beware" in done.stderr


def test_a_slow_plugin_is_named_and_stops_nothing(site, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "110")
    name = next(NAMES)
    slow = CARD.replace("    return [HeadSpec", "    time.sleep(0.31)\n    return [HeadSpec")
    install(site, name, "import time\n" + slow)
    code, out, _ = call(capsys, "list", "head")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith(f"slow: plugin {name} ")]
    assert line.endswith(" s to load (what is heavy belongs inside `build`)")
    assert plugins(capsys)["slow"][name] > 0.3


def test_a_bundled_plugin_on_a_cold_disk_is_not_named_as_slow():
    registry = Registry.discover()
    registry.seconds |= {"fusionkit_heads": 2.0, "gone": 2.0}
    assert registry.slow == {"gone": 2.0}


# starting up


def test_help_loads_no_plugin_and_list_nothing_heavy(tmp_path, monkeypatch):
    site, mark = tmp_path / "site", tmp_path / "mark"
    for _ in range(10):
        install(site, next(NAMES), f"from pathlib import Path\nPath({str(mark)!r}).touch()\n" + CARD)
        install(site, next(NAMES), "import not_there")
    monkeypatch.setenv("PYTHONPATH", str(site))
    for arguments in (["--help"], ["new", "--help"]):
        done = probe(*arguments)
        assert (done.returncode, done.stderr, mark.exists()) == (0, "[]\n", False)
    done = probe("list")
    assert (done.returncode, done.stderr, mark.exists()) == (0, "[]\n", True)
    assert done.stdout.count("broken: plugin ") == 10
