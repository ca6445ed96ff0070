"""What a plugin does wrong: one sentence that names the part, the right exit code, no traceback."""

from __future__ import annotations

import json
import re
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import toy_images
from command_line import HOLDOUT, call, write_recipe

from fusionkit import registry

QUICK = ["evaluation.modalities_alone=false", *HOLDOUT]
N_FILES = iter(range(10**6))

PLUGIN = """\
import torch
import toy_images
import toys
from fusionkit import ComponentConfig, EncoderSpec, HeadSpec, RaiserSpec, SourceSpec, hookimpl

CALLS = []


class Encoder(toy_images.ToyConv):
    {encoder}


class Raiser(toy_images.ToyCenter):
    {raiser}


class Head(toy_images.NormHead):
    {head}


def build(config, columns):
    {build}
    return Encoder(config, columns)


@hookimpl
def fusionkit_components():
    card = dict(name="bad", summary="Bad.", source="ours")
    return [
        EncoderSpec(**card, config=toy_images.ConvConfig, build=build, reads=("file",), learns={learns!r}),
        RaiserSpec(**card, build=lambda config, dim: Raiser(config, dim), learns="closed_form"),
        HeadSpec(**card, build=lambda config, dims, n: Head(dims, n)),
        SourceSpec(**card, config=ComponentConfig, build=lambda config: {source}),
    ]
"""
ENCODER = "modalities.image.encoder={use: bad, input: {size: 8}}"
FROZEN = [ENCODER, "stages.learn_image=null"]


def write_plugin(folder: Path, **code: str) -> Path:
    """Writes a plugin of a name that no other test has imported."""
    path = folder / f"bad{next(N_FILES)}.py"
    defaults = dict.fromkeys(("encoder", "raiser", "head", "build"), "pass")
    path.write_text(PLUGIN.format(**{**defaults, "learns": "gradient", "source": "1 / 0", **code}))
    return path


def without_line(text: str) -> str:
    return re.sub(r"\w+(\.py)?, line \d+, in [\w<>]+\)", "PLUGIN, AT)", text)


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Runs the recipe with a plugin; returns code and standard error; PLUGIN and AT are file and line."""
    monkeypatch.chdir(tmp_path)
    recipe = write_recipe(tmp_path)

    def run_it(plugin: Path, *overrides: str) -> tuple[int, str]:
        code, out, err = call(
            capsys, "-p", plugin.name, "run", recipe, *QUICK, *overrides, "-q", "--store", "s"
        )
        assert out == ""
        assert "Traceback" not in err
        err = err.replace(str(recipe), "RECIPE").replace(plugin.name, "PLUGIN")
        return code, without_line(err)

    return run_it


def last_event(folder: Path) -> dict[str, Any]:
    (log,) = folder.glob("runs/pictures/*/log.jsonl")
    event = json.loads(log.read_text().splitlines()[-1])
    assert isinstance(event, dict)
    return event


# at import and at build


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("raise KeyError('x')", "KeyError: 'x'"),
    ],
)
def test_a_plugin_that_does_not_import(run, tmp_path, text, said):
    path = write_plugin(tmp_path)
    path.write_text(text)
    assert run(path) == (5, f"error: -p PLUGIN: {said}\n")
    assert not (tmp_path / "runs").exists()
    assert path.stem not in sys.modules


@pytest.mark.parametrize(
    ("code", "overrides", "said"),
    [
        (
            {"build": "raise SystemExit(0)"},
            [ENCODER],
            "image.encoder: `build of bad` fails (SystemExit: 0; PLUGIN, AT). "
            "Mend the plugin, or look at its options.",
        ),
        (
            {"build": "return 1 / 0"},
            [ENCODER],
            "image.encoder: `build of bad` fails (ZeroDivisionError: division by zero; PLUGIN, AT). "
            "Mend the plugin, or look at its options.",
        ),
        (
            {"build": "return 3"},
            [ENCODER],
            "image.encoder: bad built int, not an nn.Module. Mend the plugin.",
        ),
        (
            {"source": "exit(2)"},
            ["source={use: bad}"],
            "override 'source={use: bad}': source.use: plugin PLUGIN fails to build bad (SystemExit: 2).",
        ),
    ],
    ids=["exit", "error", "no module", "source exits"],
)
def test_a_part_that_cannot_be_built(run, tmp_path, code, overrides, said):
    assert run(write_plugin(tmp_path, **code), *overrides) == (5, f"error: {said}\n")


def test_a_source_that_cannot_read(run, tmp_path):
    source = 'type("Bad", (toy_images.PictureSource,), {"read": lambda self, context: 1 / 0})(None)'
    assert run(write_plugin(tmp_path, source=source), "source={use: bad}") == (
        5,
        "error: source: `read of bad` fails (ZeroDivisionError: division by zero; PLUGIN, AT). "
        "Mend the plugin, or look at its options.\n",
    )


# names


def test_a_name_that_two_plugins_claim(run, tmp_path):
    path = write_plugin(tmp_path)
    path.write_text(path.read_text().replace('name="bad"', 'name="toy_norm"'))
    code, err = run(path)
    toy = Path(toy_images.__file__)
    assert code == 5
    assert err == f"error: RECIPE:10: head.use: head 'toy_norm' is claimed by {toy} and PLUGIN. " + (
        "Uninstall one of them.\n"
    )


def discover(monkeypatch: Any, installed: list[str], named: list[str]) -> registry.Registry:
    entries = [EntryPoint(name, name, "fusionkit") for name in installed]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    return registry.Registry.discover(named)


def test_a_copy_that_p_names_stands_in_for_the_installed_plugin(tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    copy.mkdir()
    path = write_plugin(tmp_path)
    (copy / path.name).write_text(path.read_text().replace("Bad.", "Better."))
    monkeypatch.syspath_prepend(str(tmp_path))
    name = str(copy / path.name)
    for named in ([name], [name, name]):
        found = discover(monkeypatch, [path.stem], named)
        assert (found.broken, found.replaced) == ({}, {path.stem: name})
        card, plugin = found.find("head", "bad")
        assert (card.summary, plugin.name) == ("Better.", name)
    found = discover(monkeypatch, [path.stem], [path.stem])
    assert (found.broken, found.replaced) == ({}, {path.stem: path.stem})


def test_a_copy_that_is_broken_does_not_fall_back_to_the_installed_plugin(tmp_path, monkeypatch, capsys):
    (tmp_path / "copy").mkdir()
    path = write_plugin(tmp_path)
    (tmp_path / "copy" / path.name).write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, "-p", f"copy/{path.name}", "show", "bad")
    assert (code, err) == (5, f"error: -p copy/{path.name}: ZeroDivisionError: division by zero\n")


def test_two_plugins_of_one_import_name(tmp_path, monkeypatch):
    (tmp_path / "other").mkdir()
    path = write_plugin(tmp_path)
    other = tmp_path / "other" / path.name
    other.write_text(path.read_text())
    found = discover(monkeypatch, [], [str(path), str(other)])
    assert found.broken == {str(other): f"{path} has its import name ({path.stem}). Rename one."}
    assert found.find("head", "bad")[1].name == str(path)


@pytest.mark.parametrize("name", ["json.py", "torch.py"])
def test_a_plugin_may_not_take_the_place_of_a_module(tmp_path, monkeypatch, name):
    import torch

    path = tmp_path / name
    path.write_text(write_plugin(tmp_path).read_text())
    found = discover(monkeypatch, [], [str(path)])
    assert found.broken == {str(path): f"-p {path}: a module of that name is there already. Rename the file."}
    assert sys.modules["torch"] is torch


def test_list_says_what_stands_in_for_what(tmp_path, monkeypatch, capsys):
    path = write_plugin(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    entries = [EntryPoint("bad", path.stem, "fusionkit")]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    code, out, _ = call(capsys, "-p", path.name, "list")
    assert (code, out.splitlines()[-1]) == (0, f"replaced: installed plugin bad, by -p {path.name}")


# what comes out

FORWARD = "def forward(self, x):\n        y = super().forward(x); "
DUE = "and (n, 4) float32 is due. Mend the plugin."
OPTIONS = "Mend the plugin, or look at its options."
OTHER = (
    "gives other values for the same rows in another batch. Neither a frozen part nor `collate` may keep "
    "anything between calls, draw anything, or let a row see another. Mend the plugin; mask what is padded, "
    "in every layer."
)
NOT_FINITE = "gives values that are not finite for sample "


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("return torch.cat([y, y], 1)", f"gives (8, 8) float32, {DUE}"),
        ("return y[0]", f"gives (4,) float32, {DUE}"),
        ("return y.long()", f"gives (8, 4) int64, {DUE}"),
        ("return 3", f"gives int, {DUE}"),
        ("raise ValueError('no luck')", f"`forward` fails (ValueError: no luck; PLUGIN, AT). {OPTIONS}"),
        ("raise SystemExit(0)", f"`forward` fails (SystemExit: 0; PLUGIN, AT). {OPTIONS}"),
        ("return y @ y", "`forward` fails (RuntimeError: mat1 and mat2 shapes cannot be multiplied "),
    ],
    ids=["width", "one row", "integers", "no tensor", "error", "exit", "torch's error"],
)
def test_an_encoder_that_learns_and_breaks_its_contract(run, tmp_path, how, said):
    code, err = run(write_plugin(tmp_path, encoder=FORWARD + how), ENCODER)
    assert code == 5
    assert err.startswith(f"error: image.encoder: {said}")
    assert len(err.splitlines()) == 1
    if "luck" in how:
        event = last_event(tmp_path)
        assert event["event"] == "run_stopped"
        assert list(map(without_line, event["problems"])) == [err.removeprefix("error: ").rstrip("\n")]
        assert "ValueError: no luck" in event["traceback"]
        assert "in forward" in event["traceback"], "the plugin's own line"


def test_an_encoder_that_gives_nan_while_it_learns(run, tmp_path):
    nan = "CALLS.append(1); return y * (float('nan') if len(CALLS) > 1 else 1)"
    code, err = run(write_plugin(tmp_path, encoder=FORWARD + nan), ENCODER)
    assert code == 7
    assert err.startswith(
        "error: stage learn_image: the loss is not finite (nan) in epoch 1, batch 2: sample "
    )
    assert f"image.encoder {NOT_FINITE}" in err
    assert err.endswith(" and 5 more. Lower the learning rate, or look at these rows.\n")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("y = y.clone(); y[0] = float('nan'); return y", "its features are not finite for sample "),
        ("return y[1:]", "gives (31, 4) float32, and (32, 4) float32 is due. Mend the plugin."),
        ("return y.int()", "gives (32, 4) int32, and (32, 4) float32 is due. Mend the plugin."),
        ("CALLS.append(1); return y + len(CALLS)", OTHER),
        ("return y - y.mean(0)", OTHER),
        ("return y + torch.rand(len(x), 4)", OTHER),
        ("return y.roll(1, 0)", OTHER),
    ],
    ids=["nan", "a row less", "integers", "state", "neighbours", "random", "order"],
)
def test_a_frozen_encoder_that_breaks_its_contract(run, tmp_path, how, said):
    path = write_plugin(tmp_path, encoder=FORWARD + how, learns="nothing")
    code, err = run(path, *FROZEN)
    assert code == 5
    assert err.startswith(f"error: image.encoder: {said}")
    assert len(err.splitlines()) == 1
    assert not list((tmp_path / "s").glob("features/*/*")), "nothing of it is kept"


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("return y[:, :-1]", "gives (24, 5) float32, and (n, 6) float32 is due. Mend the plugin."),
        ("return y.double()", "gives (24, 6) float64, and (n, 6) float32 is due. Mend the plugin."),
        ("return y - y.mean(0)", OTHER),
        ("CALLS.append(1); return y + len(CALLS)", OTHER),
        ("return y / 0", NOT_FINITE),
        ("raise KeyError('k')", f"`forward` fails (KeyError: 'k'; PLUGIN, AT). {OPTIONS}"),
    ],
    ids=["width", "float64", "neighbours", "state", "infinite", "error"],
)
def test_a_raiser_that_breaks_its_contract(run, tmp_path, how, said):
    code, err = run(write_plugin(tmp_path, raiser=FORWARD + how), "modalities.record.raiser={use: bad}")
    assert code == (7 if said == NOT_FINITE else 5)
    assert err.startswith(f"error: record.raiser: {said}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("return y[:, :1]", "gives (8, 1) float32, and (8, 2) floats are due. Mend the plugin."),
        ("return y.argmax(1)", "gives (8,) int64, and (8, 2) floats are due. Mend the plugin."),
        ("return y if self.training else y - y.mean(0)", OTHER),
        ("return y if self.training else y / 0", NOT_FINITE),
        ("return f['picture']", f"`forward` fails (KeyError: 'picture'; PLUGIN, AT). {OPTIONS}"),
    ],
    ids=["width", "integers", "neighbours", "infinite", "error"],
)
def test_a_head_that_breaks_its_contract(run, tmp_path, how, said):
    forward = "def forward(self, f, p):\n        y = super().forward(f, p); "
    code, err = run(write_plugin(tmp_path, head=forward + how), "head={use: bad}")
    assert code == (7 if said == NOT_FINITE else 5)
    assert err.startswith(f"error: head: {said}")
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        (
            "self.output_dim = 3; return super().fit(inputs, targets, seed=seed)",
            "`fit` changes a width or a shape, which is known when a part is built. Mend the plugin.",
        ),
        (
            "self.mean = inputs.mean(0)[:2]; return self",
            "`fit` changes a width or a shape, which is known when a part is built. Mend the plugin.",
        ),
        (
            "raise ArithmeticError('singular')",
            "`fit` fails (ArithmeticError: singular; PLUGIN, AT). Mend the plugin, or look at its options.",
        ),
    ],
    ids=["width", "shape", "error"],
)
def test_a_fit_that_breaks_its_contract(run, tmp_path, how, said):
    path = write_plugin(tmp_path, raiser="def fit(self, inputs, targets=None, *, seed):\n        " + how)
    result = run(path, "modalities.record.raiser={use: bad}")
    assert result == (5, f"error: record.raiser: {said}\n")


def test_an_input_spec_that_fails_names_the_row_and_its_cells(run, tmp_path):
    code = """def __init__(self, *rest):
        super().__init__(*rest)
        read = self.input_spec.load

        def load(cells, cuts):
            if cells["picture"].name == "07.png":
                raise OverflowError("too bright")
            return read(cells, cuts)

        self.input_spec.load = load"""
    code, err = run(write_plugin(tmp_path, encoder=code), ENCODER, "split.test=0.17")
    assert code == 5
    assert err == (
        "error: image.encoder: `load` of ImageInput fails on sample sample07 (subject subject02): 07.png "
        "(OverflowError: too bright). Mend the plugin, or look at this row.\n"
    )
