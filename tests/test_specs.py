"""Cards: what an option's text is."""

import sys
from collections.abc import Mapping

from pydantic import Field

from fusionkit import ComponentConfig
from fusionkit.specs import describe


class Inner(ComponentConfig):
    depth: int = 1
    """How deep."""


class Config(ComponentConfig):
    """A component's options."""

    width: int = 8
    """How wide;
    in features."""
    given: int = Field(1, description="Said in its field.")
    """Not read."""
    bare: int = 2
    inner: Inner = Inner()
    """What is inside."""
    named: Mapping[str, Inner] | None = None
    """More of it."""


class Narrower(Config):
    width: int = 4


def test_an_options_text_is_what_stands_under_it():
    schema = Config.model_json_schema()
    found = {name: node.get("description") for name, node in schema["properties"].items()}
    assert found == {
        "width": "How wide;\nin features.",
        "given": "Said in its field.",
        "bare": None,
        "inner": "What is inside.",
        "named": "More of it.",
    }
    assert schema["$defs"]["Inner"]["properties"]["depth"]["description"] == "How deep."


def test_an_inherited_option_keeps_its_text():
    describe(Narrower)
    assert Narrower.model_fields["width"].description == "How wide;\nin features."
    assert Narrower().width == 4


def test_a_class_without_source_has_no_texts():
    space = {"ComponentConfig": ComponentConfig, "__name__": "nowhere"}
    exec("class Made(ComponentConfig):\n    width: int = 8\n    'How wide.'\n", space)
    assert "description" not in space["Made"].model_json_schema()["properties"]["width"]


def test_texts_are_read_only_when_somebody_asks(monkeypatch):
    monkeypatch.setattr("inspect.getsource", lambda owner: sys.exit("read"))

    class Quiet(ComponentConfig):
        width: int = 8
        """How wide."""

    assert Quiet(width=3).width == 3
