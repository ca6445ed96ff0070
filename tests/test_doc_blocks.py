"""Every block of the pages is code that runs, a command that runs, or says why it does not; recipes load."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shlex
import tomllib
from collections import Counter
from typing import Any

import pytest
import torch
import typer
import yaml
from doc_blocks import BLOCKS, PAGES, ROOT, as_recipe, blocks_of

from fusionkit import RecipeError, cli
from fusionkit.recipe.load import load_text
from fusionkit.registry import Registry

MOST = {"installs": 2, "needs a network": 1, "needs real data": 1, "takes long": 1}
"""Why a block is not run -> how many blocks may say so."""
LANGUAGES = {"csv", "python", "sh", "text", "toml", "yaml"}
PROGRAMS = re.compile(r"^\s*(\.venv/bin/)?(fusionkit|python3?|make|pip|pytest|source|git|cd) ", re.MULTILINE)


def of(language):
    return [pytest.param(block, id=str(block)) for block in BLOCKS if block.language == language]


def test_every_block_says_what_it_is():
    assert [str(block) for block in BLOCKS if block.language not in LANGUAGES] == []
    assert {block.language for block in BLOCKS} == LANGUAGES


def test_what_is_not_run_is_bounded():
    assert Counter(block.reason for block in BLOCKS if block.reason) == MOST
    assert sum(text.count("<!-- not run") for text in PAGES.values()) == sum(MOST.values())


def test_blocks_are_found_with_their_lines_and_reasons():
    text = "a\n\n<!-- not run: installs -->\n\n    make run\n\n    make test\n\n```python\nx\n```\n- b\n  c\n"
    found = [(block.line, block.language, block.text, block.reason) for block in blocks_of("p", text)]
    assert found == [(3, "sh", "make run\n\nmake test\n", "installs"), (9, "python", "x\n", None)]


@pytest.mark.parametrize("block", of("text"))
def test_no_command_hides_in_a_text(block):
    assert PROGRAMS.findall(block.text) == []


@pytest.mark.parametrize("block", of("sh"))
def test_every_line_of_a_command_is_one(block):
    for line in block.text.split("\n" if block.page != "README.md" else "\n\n"):
        assert not line or PROGRAMS.match(line) or line.startswith("("), line


@pytest.mark.parametrize("block", of("python"))
def test_python_compiles(block):
    compile(block.text, str(block), "exec")


def test_rows_of_several_lengths_do_not_see_their_padding():
    (text,) = [block.text for block in BLOCKS if block.language == "python" and "def collate" in block.text]
    names: dict[str, Any] = {}
    exec(text, names)
    torch.manual_seed(0)
    part, lengths = names["Convolutions"](4), (1, 2, 5, 9, 14, 32, 33)
    items = [torch.randn(length).numpy() for length in lengths]
    with torch.no_grad():
        alone = torch.cat([part(names["collate"]([item])) for item in items])
        together = part(names["collate"](items))
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("block", of("toml"))
def test_toml_is_toml(block):
    assert tomllib.loads(block.text)


@pytest.fixture(scope="module")
def registry():
    return Registry.discover([str(ROOT / "examples" / "fusionkit-ecg" / "fusionkit_ecg")])


@pytest.mark.parametrize("block", of("yaml"))
def test_a_recipe_or_a_part_of_one_loads(block, registry, tmp_path):
    load_text(json.dumps(as_recipe(block.text, registry)), registry, data_root=tmp_path)


@pytest.mark.parametrize(
    ("fragment", "problem"),
    [
        ("evaluation: {mising: {emr: [0.1]}}", "mising"),
        ("use: hashed_words\nwidht: 3", "widht"),
        ("modalities:\n  notes: {columns: [note], encoder: {use: hashed_words}}", "no stage names it"),
    ],
)
def test_a_fragment_with_a_mistake_does_not_load(registry, fragment, problem):
    with pytest.raises(RecipeError, match=problem):
        load_text(json.dumps(as_recipe(fragment, registry)), registry)


# commands: those of blocks and those within sentences


def commands() -> list[tuple[str, str]]:
    """Returns every command of the command line that a page gives, with the page."""
    inline = [
        (page, " ".join(code.split()))
        for page, text in PAGES.items()
        for code in re.findall(
            r"(?<!`)`([^`]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.M)
        )
    ]
    lines = [
        (str(block), line) for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()
    ]
    found = [(page, code.removeprefix(".venv/bin/")) for page, code in [*inline, *lines]]
    return sorted(
        {(page, code) for page, code in found if code.startswith("fusionkit ") and "=0.1,<" not in code}
    )


COMMANDS = commands()
MENTIONS = ("MissingParameter", "BadOptionUsage")
"""What the parser may say: a sentence may name a command without arguments, an option without its value."""
PLACEHOLDERS = {"DAYS": "30", "[PATH=VALUE": "a=b", "...]": "c=d", "COMMAND": "run"}


def parse(code: str) -> str:
    """Parses a command as the command line would, without running it; returns its name."""
    words = [PLACEHOLDERS.get(word, word).strip("[]") for word in shlex.split(code)[1:] if word != "-h"]
    command = typer.main.get_command(cli.build_app())
    context = command.make_context("fusionkit", words, resilient_parsing=True)
    words = [word for word in words if word not in ("-p", *(context.params.get("plugin") or ()))]
    while hasattr(command, "commands"):
        if not words or words[0].startswith("-"):
            return command.name or ""
        name, words = words[0], words[1:]
        if name not in command.commands:
            raise ValueError(f"{code}: there is no command {name}")
        command = command.commands[name]
    try:
        command.make_context(command.name, words)
    except Exception as error:
        if type(error).__name__ not in MENTIONS:
            raise ValueError(f"{code}: {error}") from error
    return command.name


def test_there_are_commands_to_look_at():
    assert len(COMMANDS) > 60


@pytest.mark.parametrize(("page", "code"), COMMANDS)
def test_the_command_line_takes_every_command(page, code):
    parse(code)


def test_a_command_with_a_mistake_is_not_taken():
    for code in (
        "fusionkit swep a.yaml",
        "fusionkit run a.yaml --dryrun",
        "fusionkit sweep a.yaml --jobs two",
    ):
        with pytest.raises(ValueError, match=r"swep|dryrun|two"):
            parse(code)


FILES = sorted(
    {word for _, code in COMMANDS for word in code.split() if re.fullmatch(r"recipes/\S+\.yaml", word)}
)


@pytest.mark.parametrize("file", FILES)
def test_a_recipe_that_a_command_names_is_valid(file, monkeypatch):
    monkeypatch.chdir(ROOT)
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit) as stop:
        cli.main(["validate", file])
    assert (stop.value.code, "valid" in out.getvalue()) == (0, True)
    assert isinstance(yaml.safe_load((ROOT / file).read_text(encoding="utf-8")), dict)
