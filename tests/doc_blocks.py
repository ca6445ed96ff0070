"""The blocks of the pages: what is code, what is a command, what is not run and why; how each is tried."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fusionkit.registry import Registry
from fusionkit.specs import EncoderSpec

ROOT = Path(__file__).parent.parent
FILES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "examples").glob("*/README.md")),
]
PAGES = {
    path.relative_to(ROOT).as_posix().removeprefix("docs/"): path.read_text(encoding="utf-8")
    for path in FILES
}
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n\n?)?"
    r"(?:^```(?P<language>[a-z]*)\n(?P<fenced>.*?)^```$"
    r"|(?<=\n\n)(?P<indented>(?:^    [^\n]*\n|\n(?=    ))+))",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Block:
    """A block of a page: its line, its language, and why it is not run, if it is not."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    """Yields a page's blocks; one that is indented holds commands, line by line."""
    for match in BLOCK.finditer(text):
        inner = (
            match["fenced"]
            if match["fenced"] is not None
            else re.sub("^    ", "", match["indented"], flags=re.M)
        )
        language = match["language"] if match["fenced"] is not None else "sh"
        yield Block(
            page, text[: match.start()].count("\n") + 1, language, inner.strip("\n") + "\n", match["reason"]
        )


BLOCKS = [block for page, text in PAGES.items() for block in blocks_of(page, text)]

# a fragment of a recipe


BASE: dict[str, Any] = {
    "name": "base",
    "source": {
        "use": "manifest",
        "table": "rows.csv",
        "subject": "patient",
        "outcome": "diagnosis",
        "classes": {"healthy": "healthy", "ill": "ill"},
        "columns": {"image": {"kind": "file"}, "age": {"kind": "numeric"}},
    },
    "modalities": {
        "image": {"columns": ["image"], "encoder": {"use": "handcrafted"}},
        "emr": {"columns": ["age"], "encoder": {"use": "structured"}},
    },
    "head": {"use": "concat_mlp"},
    "stages": [{"name": "prepare", "fit": ["emr.encoder"]}, {"name": "fuse", "train": ["head"]}],
    "split": {"scheme": "folds", "folds": 2},
}
"""The recipe that a fragment is put into."""


def as_recipe(text: str, registry: Registry) -> dict[str, Any]:
    """Returns the whole recipe that a block stands for.

    One with a `name` is whole. One that begins with `use` is a component, and takes the place of the
    source or of the image's encoder. Any other is merged into `BASE`, mapping by mapping: a key with
    dots is a path, stages come before the last one, and columns that a new modality names are declared.
    """
    tree = yaml.safe_load(text)
    if "name" in tree:
        return tree
    recipe = copy.deepcopy(BASE)
    if "use" in tree and tree["use"] in registry.names("source"):
        recipe["source"] = tree
        for modality in recipe["modalities"].values():
            del modality["columns"]
        return recipe
    if "use" in tree:
        recipe["modalities"]["image"]["encoder"] = tree
        return recipe
    for key, value in tree.items():
        _merge(recipe, key.split("."), value)
    for modality in recipe["modalities"].values():
        kind = _kind_of(modality["encoder"], registry)
        for column in modality.get("columns", ()):
            recipe["source"]["columns"].setdefault(column, {"kind": kind})
    return recipe


def _merge(tree: dict[str, Any], path: list[str], value: Any) -> None:
    key, *rest = path
    if rest:
        _merge(tree[key], rest, value)
    elif isinstance(value, dict) and isinstance(tree.get(key), dict) and "use" not in value:
        for name, inner in value.items():
            _merge(tree[key], [name], inner)
    elif key == "stages":
        tree[key] = [*tree[key][:-1], *value, tree[key][-1]]
    else:
        tree[key] = value


def _kind_of(encoder: dict[str, Any], registry: Registry) -> str:
    """Returns the kind of an encoder's columns: text where an option says where its files are."""
    is_listed = {"table", "folder"} & set(encoder)
    return "text" if is_listed else registry.card(EncoderSpec, encoder["use"]).reads[0]
