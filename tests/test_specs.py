"""Cards: what an option's text is, and which text is a number."""

import sys
from collections.abc import Mapping

from pydantic import Field

from fusionkit import ColumnSpec, ComponentConfig
from fusionkit.data.tables import parse_texts
from fusionkit.specs import describe, read_number
from fusionkit.tasks.cells import read_outcome


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


def test_one_reader_says_which_texts_are_numbers_in_records_and_outcomes():
    texts = ["3", "-.5", "+2.", "1e3", "1e999", "nan", "inf", "1_000", "0x1", "\u0663", " 3", ""]
    assert [read_number(text) for text in texts] == [3, -0.5, 2, 1000] + [None] * 8
    numeric = ColumnSpec(kind="numeric")
    assert [text for text in texts if text in parse_texts(numeric, [text])] == [*texts[:4], " 3", ""]
    assert [text for text in texts if isinstance(read_outcome(text), float)] == texts[:4]
