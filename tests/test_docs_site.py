"""The site: it builds without network, its generated pages are up to date, and everything public is on it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Union, get_args, get_origin

import pytest
import typer
import yaml
from pydantic import BaseModel
from test_docs import DESCRIBED, row_of

import fusionkit
from fusionkit import cli, hookspecs, testing
from fusionkit.registry import Registry
from fusionkit.specs import COMPONENT_KINDS

ROOT = Path(__file__).parent.parent
PAGES = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("*.md")}
SITE = yaml.safe_load((ROOT / "properdocs.yml").read_text(encoding="utf-8"))


def load_generator():
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()


@pytest.mark.parametrize("page", GENERATOR.PAGES)
def test_a_generated_page_is_what_the_code_says(page):
    assert GENERATOR.PAGES[page]() == PAGES[page], "run `make pages`"


def test_no_page_is_missing_from_the_navigation():
    named = [page for entry in SITE["nav"] for page in entry.values()]
    assert sorted(named) == sorted(PAGES)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    offline = "import socket; socket.socket.connect = None; from properdocs.__main__ import cli; cli()"
    done = subprocess.run(
        [sys.executable, "-c", offline, "build", "--strict", "--quiet", "--site-dir", folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return folder


def resources_of(html: str) -> list[str]:
    """Returns the addresses of what a browser fetches by itself to show a page."""
    tags = re.findall(r"<(?:link|script|img|iframe|source|object|embed)\b[^>]*>", html)
    return [value for tag in tags for value in re.findall(r"""(?:src|href|data)=["']?([^"'\s>]+)""", tag)]


def test_the_site_builds_and_fetches_nothing_from_elsewhere(site):
    pages = list(site.rglob("*.html"))
    assert {page.stem for page in pages if page.parent == site} >= {Path(name).stem for name in PAGES}
    foreign = re.compile(r"(https?:)?//")
    for page in pages:
        addresses = resources_of(page.read_text(encoding="utf-8"))
        assert any(address.endswith(".css") for address in addresses)
        assert [address for address in addresses if foreign.match(address)] == []
    for sheet in site.rglob("*.css"):
        text = sheet.read_text(encoding="utf-8")
        assert re.findall(r"""(?:url\(|@import)\s*["']?(?:https?:)?//[^)]*""", text) == []


def test_a_resource_from_elsewhere_is_seen():
    assert resources_of('<script async src="https://cdn.example/x.js"></script><a href="https://a">') == [
        "https://cdn.example/x.js"
    ]


def test_a_file_that_a_page_links_to_is_on_the_site(site):
    html = (site / "files" / "recipes" / "paper" / "table4.yaml.page.html").read_text(encoding="utf-8")
    assert "breast_rfn.yaml" in html
    link = re.search(r'href="([^"]+table4[^"]+)"', (site / "recipes.html").read_text(encoding="utf-8"))
    assert (site / link[1]).is_file()


def test_the_glossary_has_every_word_of_the_house_in_order():
    rows = re.findall(r"^\| ([a-z ]+) \| [A-Z]", PAGES["glossary.md"], re.MULTILINE)
    house = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Words\n")[1]
    nouns = re.search(r"messages and docs: ([^.]+)\.", " ".join(house.split()))[1].split(", ")
    nouns += re.findall(r"\*(\w+)\*", house)
    assert len(nouns) > 12
    assert set(nouns) <= set(rows)
    assert rows == sorted(set(rows) - {"word"})


# everything public is on it


@dataclass(frozen=True)
class Fact:
    """One public thing, and the line by which a page documents it."""

    kind: str
    name: str
    page: str
    section: str
    line: re.Pattern[str]

    def lines(self, pages: dict[str, str]) -> list[str]:
        lines = section_of(pages[self.page], self.section)
        return [line for line in lines if self.line.fullmatch(line)]


def section_of(text: str, heading: str) -> list[str]:
    """Returns the lines of the section under a heading, or of the whole page."""
    if not heading:
        return text.splitlines()
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.DOTALL | re.MULTILINE)
    return found[0].splitlines() if found else []


def row(name: str, cells: int) -> re.Pattern[str]:
    """Returns the row of a table whose last cell says something."""
    between = r"(?:[^|\\]|\\.)*\| " * (cells - 2)
    return re.compile(rf"\| `{re.escape(name)}` \| {between}\S.* \|")


def sentence() -> re.Pattern[str]:
    return re.compile(r"[A-Z`].*")


def public_names() -> Iterator[Fact]:
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, f"{hookspecs.GROUP}_spec")]
    assert hooks == ["fusionkit_components", "fusionkit_event"]
    for kind, names in (("name", [*fusionkit.__all__, *testing.__all__]), ("hook", hooks)):
        for name in names:
            yield Fact(kind, name, "api.md", f"### {name}", sentence())


def option_names(config: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in config.model_fields.items():
        is_union = get_origin(field.annotation) in (Union, UnionType)
        members = get_args(field.annotation) if is_union else [field.annotation]
        nested = [each for each in members if isinstance(each, type) and issubclass(each, BaseModel)]
        yield from option_names(nested[0], f"{prefix}{name}.") if nested else [prefix + name]


def components() -> Iterator[Fact]:
    registry = Registry.discover()
    for kind in COMPONENT_KINDS:
        for card, _ in registry.cards(kind):
            yield Fact("component", card.name, "options.md", f"### {card.name}", sentence())
            yield Fact("component", card.name, "components.md", f"## {kind.capitalize()}s", row(card.name, 2))
            for name in option_names(card.config):
                yield Fact("option", f"{card.name} {name}", "options.md", f"### {card.name}", row(name, 4))


def commands() -> Iterator[Fact]:
    """Yields each command with its flags, as its own help names them."""

    def help_of(*path: str) -> str:
        with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
            cli.main([*path, "-h"])
        return out.getvalue()

    paths = []
    for name in cli.COMMANDS:
        inner = re.search(r"^Commands:\n((?:  .*\n)+)", help_of(name), re.MULTILINE)
        paths += [(name, line.split()[0]) for line in inner[1].splitlines()] if inner else [(name,)]
    for path in [(), *paths]:
        heading = " ".join(["## fusionkit", *path])
        yield Fact("command", heading[3:], "command-line.md", heading, sentence())
        for flag in re.findall(r"^  (?:-\w, )?(--[\w-]+)", help_of(*path), re.MULTILINE):
            pattern = re.compile(rf"\| .*`{flag}(?: [A-Z]+)?` \| .* \| \S.* \|")
            if flag != "--help":
                yield Fact("flag", f"{heading[3:]} {flag}", "command-line.md", heading, pattern)


def keys() -> Iterator[Fact]:
    for node in DESCRIBED:
        for name, field in node.model_fields.items():
            line = re.compile(re.escape(row_of(name, field)))
            yield Fact("key", f"{node.__name__} {name}", "recipes.md", "", line)


@pytest.fixture(scope="module")
def facts():
    return [*public_names(), *components(), *keys(), *commands()]


def undocumented(facts: list[Fact], pages: dict[str, str]) -> set[str]:
    return {f"{fact.kind} {fact.name}" for fact in facts if not fact.lines(pages)}


def test_everything_public_is_documented(facts):
    counts = Counter(fact.kind for fact in facts)
    assert counts["option"] > 200
    assert counts["flag"] > 60
    assert counts["key"] > 80
    assert undocumented(facts, PAGES) == set()


@pytest.mark.parametrize("kind", ["name", "hook", "component", "option", "key", "command", "flag"])
def test_what_is_taken_off_its_page_is_missed(facts, kind):
    for fact in [fact for fact in facts if fact.kind == kind][::7]:
        text = PAGES[fact.page]
        for line in fact.lines(PAGES):
            text = text.replace(f"{line}\n", "")
        assert f"{kind} {fact.name}" in undocumented([fact], {**PAGES, fact.page: text})


def test_typer_shows_no_command_that_is_not_on_the_page():
    app = typer.main.get_command(cli.build_app())
    named = set(re.findall(r"^## fusionkit (\w+)", PAGES["command-line.md"], re.MULTILINE))
    assert named == set(app.commands)
