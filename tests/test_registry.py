"""A broken plugin never stops the others; a name claimed twice names both."""

import sys
from importlib.metadata import EntryPoint
from types import ModuleType

import pytest
import toys

from fusionkit import HeadSpec, PluginError, hookimpl, registry
from fusionkit.registry import Registry
from fusionkit.specs import EncoderSpec, RaiserSpec


def plugin(name, cards):
    module = ModuleType(name)
    module.fusionkit_components = hookimpl(lambda: cards)
    return module


def head(name):
    return HeadSpec(name=name, summary="", source="ours", build=lambda config, input_dims, output_dim: None)


def test_names_are_sorted_and_by_kind(toy_registry):
    assert [toy_registry.names(kind) for kind in ("source", "encoder", "raiser", "head")] == [
        ["toy"],
        ["toy_mean"],
        ["toy_denoise", "toy_repeat"],
        ["toy_linear"],
    ]


def test_find_returns_the_card_and_its_plugin(toy_registry):
    card, owner = toy_registry.find("raiser", "toy_repeat")
    assert (card.name, owner.name, owner.package) == ("toy_repeat", "toys", "toys")
    assert toy_registry.card(RaiserSpec, "toy_repeat") is card


def test_an_unknown_name_is_suggested(toy_registry):
    with pytest.raises(PluginError) as caught:
        toy_registry.card(EncoderSpec, "toy_maen")
    assert caught.value.problems == ("unknown encoder 'toy_maen'. Did you mean 'toy_mean'? Known: toy_mean.",)


def test_an_unknown_name_without_a_near_one_hints_at_a_forgotten_p(toy_registry):
    told = "Known: toy_linear."
    forgotten = "If your own plugin offers it, name that before the command: `fusionkit -p PLUGIN ...`."
    assert toy_registry.hint("breath", ["head"]) == f"{told} {forgotten}"
    # one of another kind is no plugin that is not there, and of what was named nothing was forgotten
    assert toy_registry.hint("toy_mean", ["source"]) == "Known: toy."
    toy_registry.named = ("toys",)
    assert toy_registry.hint("breath", ["head"]) == told


def test_a_clash_names_both_plugins_and_stops_only_that_name():
    found = Registry()
    found.add("one", plugin("one", [head("same"), head("other")]))
    found.add("two", plugin("two", [head("same")]))
    assert found.find("head", "other")[1].name == "one"
    with pytest.raises(PluginError) as caught:
        found.find("head", "same")
    assert caught.value.problems == ("head 'same' is claimed by one and two. Uninstall one of them.",)


BROKEN = {
    "import_error": ("import not_there", "ModuleNotFoundError: No module named 'not_there'"),
    "system_exit": ("raise SystemExit(3)", "SystemExit: 3"),
    "syntax_error": ("def (", "SyntaxError: invalid syntax (syntax_error.py, line 1)"),
    "recursion": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "misspelt_hook": (
        "def fusionkit_component(): return []",
        "there is no hook 'fusionkit_component'. Did you mean 'fusionkit_components'? "
        "Known: fusionkit_components, fusionkit_event.",
    ),
    "wrong_return": (
        "def fusionkit_components(): return ['a']",
        "fusionkit_components returned 'a'. Return cards (specs).",
    ),
    "no_list": ("def fusionkit_components(): return 3", "TypeError: 'int' object is not iterable"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_plugin_is_noted_and_the_others_load(name, tmp_path, monkeypatch):
    code, reason = BROKEN[name]
    (tmp_path / f"{name}.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    entries = [EntryPoint(module, module, "fusionkit") for module in (name, "toys")]
    monkeypatch.setattr(registry, "entry_points", lambda group: entries)
    found = Registry.discover()
    sys.modules.pop(name, None)
    assert found.broken == {name: reason}
    assert list(found.plugins) == ["toys"]
    assert not found.names("head") == []
    told = f"Known: toy_linear. Broken plugins may offer it: {name}. `fusionkit list` says why."
    assert found.hint("other", ["head"]) == told


@pytest.mark.parametrize(
    ("card", "learns", "sentence"),
    [
        (HeadSpec, "magic", "head odd cannot learn that way (learns: magic). "
         "Known: nothing, closed_form, self_supervised, gradient."),
        (RaiserSpec, "magic", "raiser odd cannot learn that way (learns: magic). "
         "Known: nothing, closed_form, self_supervised, gradient."),
    ],
)  # fmt: skip
def test_a_card_learns_in_a_way_that_there_is(card, learns, sentence):
    found = Registry()
    odd = card(name="odd", summary="", source="", build=lambda *_: None, learns=learns)
    with pytest.raises(PluginError) as caught:
        found.add("one", plugin("one", [odd]))
    assert caught.value.problems == (f"plugin one: {sentence}",)
    assert (found.names("head"), found.names("raiser"), dict(found.plugins)) == ([], [], {})


def test_a_plugin_need_not_be_installed(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    found = Registry.discover([str(toys.TOY_PATH), "not_there", "not_there.py"])
    assert found.names("encoder") == ["toy_mean"]
    assert found.plugins[str(toys.TOY_PATH)].version.startswith("source-")
    assert found.broken == {
        "not_there": "ModuleNotFoundError: No module named 'not_there'",
        "not_there.py": "-p not_there.py: there is no such plugin file.",
    }


def test_the_version_of_changing_source_is_its_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "entry_points", lambda group: [])
    file = tmp_path / "changing.py"

    def version(text):
        file.write_text(text)
        return Registry.discover([str(file)]).plugins[str(file)].version

    hook = "def fusionkit_event(name, data): ...\n"
    assert version(hook) == version(hook) != version(hook + "a = 2")


def test_an_observer_that_raises_is_reported_and_stops_nothing(capsys):
    heard = []
    loud, quiet = ModuleType("loud"), ModuleType("quiet")
    loud.fusionkit_event = hookimpl(lambda name, data: 1 / 0)
    quiet.fusionkit_event = hookimpl(lambda name, data: heard.append((name, data)))
    found = Registry()
    found.add("loud", loud)
    found.add("quiet", quiet)
    found.notify("stage_started", {"stage": "fuse"})
    assert heard == [("stage_started", {"stage": "fuse"})]
    assert capsys.readouterr().err == "plugin loud: fusionkit_event failed (division by zero).\n"
