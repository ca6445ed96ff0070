"""validate, list, show, schema: what they print, and the exit code of every kind of error."""

# ruff: noqa: E501 (a message is one line)

import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import toys
import typer

from fusionkit import cli, errors
from fusionkit.cli import listing

FUSIONKIT = [sys.executable, "-c", "from fusionkit.cli import main; main()"]


@pytest.fixture
def call(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")

    def call(*arguments):
        with pytest.raises(SystemExit) as stop:
            cli.main(["-p", str(toys.TOY_PATH), *map(str, arguments)])
        out, err = capsys.readouterr()
        return stop.value.code, out, err

    return call


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "toy.yaml"
    path.write_text(toys.RECIPE)
    return path


def test_a_valid_recipe_is_summarised(call, recipe):
    assert call("validate", recipe, "split.validation=0.25") == (
        0,
        f"""\
{recipe} is valid.
  source   toy (simulated)
  classes  no, yes
  numbers  1 column -> toy_mean -> head
  words    1 column -> toy_mean -> toy_denoise -> head
  head     toy_linear
  stage 1  learn_words: pretrain words.encoder
  stage 2  raise_words: fit words.raiser
  stage 3  fuse: train head, numbers.encoder
  split    2 folds by subject, 25% of the training subjects for validation
""",
        "",
    )


@pytest.mark.parametrize(
    ("split", "text"),
    [
        ("{scheme: holdout, repeats: 3}", "20% held out by subject, 3 times"),
        ("{scheme: column, column: set}", "by the column set"),
        (
            "{scheme: folds, unit: sample, accept_leakage: true}",
            "5 folds by sample (leakage: one subject on both sides)",
        ),
    ],
)
def test_the_split_is_put_in_words(split, text, call, recipe):
    assert call("validate", recipe, f"split={split}")[1].splitlines()[-1] == f"  split    {text}"


def test_every_problem_is_one_line_of_stderr(call, recipe):
    assert call("validate", recipe, "seed=-1", "head.bais=no") == (
        3,
        "",
        "error: override 'seed=-1': seed: must be at least 0 (-1).\n"
        "error: override 'head.bais=no': head.bais: no such option of toy_linear ('no'). "
        "Did you mean 'bias'? Known: bias.\n",
    )


def test_validate_speaks_json(call, recipe):
    code, out, _ = call("validate", recipe, "--json")
    assert code == 0
    assert json.loads(out)["resolved"]["head"] == {"use": "toy_linear", "bias": True}
    code, out, err = call("validate", recipe, "seed=-1", "--json")
    assert (code, err) == (3, "")
    assert json.loads(out) == {
        "valid": False,
        "problems": ["override 'seed=-1': seed: must be at least 0 (-1)."],
    }


def test_list_fits_80_columns_and_names_every_kind(call):
    code, out, _ = call("list")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert "raiser  toy_repeat " in out
    assert "\x1b" not in out


def test_list_speaks_json(call):
    _, out, _ = call("list", "raiser", "--json")
    toy = next(card for card in json.loads(out)["components"] if card["name"] == "toy_repeat")
    assert toy.pop("version").startswith("source-")
    assert toy == {
        "kind": "raiser",
        "name": "toy_repeat",
        "summary": "Repeats the vector.",
        "source": "ours",
        "plugin": str(toys.TOY_PATH),
        "package": "toys",
    }


def test_a_broken_plugin_is_listed_and_stops_nothing(toy_registry, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    toy_registry.broken["other"] = "ImportError: no module named x"
    try:
        lines = listing._as_table(toy_registry, ["head"]).splitlines()
    finally:
        del toy_registry.broken["other"]
    assert lines == [
        f"head    toy_linear  {'One linear layer.':<56}toys",
        "broken: plugin other (ImportError: no module named x)",
    ]


def test_show_describes_every_option(call):
    code, out, _ = call("show", "toy_mean")
    assert code == 0
    assert out.splitlines()[:4] == [
        "toy_mean (encoder)",
        "One linear layer over the columns.",
        "",
        "Source:  ours",
    ]
    assert out.splitlines()[5:] == [
        "It learns from outcomes: name it in a stage, unless it comes with weights.",
        "It reads columns of kind numeric or category.",
        "",
        "Options",
        "  width: whole number, at least 1; default 4",
        "      Width of the result.",
        '  missing: zero or keep; default "zero"',
        "      zero: a missing cell counts as 0; keep: it makes the whole vector missing.",
        "",
        "In a recipe",
        "  encoder:",
        "    use: toy_mean",
        "    width: 4",
        "    missing: zero",
    ]


def test_show_gives_no_example_that_would_be_refused(call):
    code, out, _ = call("show", "sklearn")
    assert code == 0
    shown = out.partition("In a recipe\n")[2]
    assert (
        shown
        == "  head:\n    use: sklearn\n    model: logistic_regression\n    balanced: false\n    C: 1.0\n"
    )


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("transformers_text", "It can give its tokens to a head that takes them."),
        ("cross_attention", "It can read the tokens of encoders that give them."),
    ],
)
def test_show_says_who_gives_tokens_and_who_reads_them(call, name, sentence):
    assert sentence in call("show", name)[1].splitlines()
    assert "tokens" not in call("show", "toy_mean")[1]


def test_show_speaks_json(call):
    _, out, _ = call("show", "toy_mean", "--json")
    assert json.loads(out)[0]["options"]["properties"]["width"]["minimum"] == 1


def test_every_installed_component_can_be_shown(call):
    _, out, _ = call("list", "--json")
    for card in json.loads(out)["components"]:
        code, text, _ = call("show", card["name"])
        assert code == 0
        assert max(map(len, text.splitlines())) <= 80


def test_a_folder_or_a_word_beside_the_plugin_is_told_its_path(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for folder in ("fusionkit-topk/fusionkit_topk", "nothing"):
        Path(folder).mkdir(parents=True)
    Path("fusionkit-topk/fusionkit_topk/__init__.py").touch()
    Path("near_by.py").touch()
    with pytest.raises(SystemExit) as stop:
        cli.main(["-p", "fusionkit-topk", "-p", "nothing", "-p", "near_by", "list"])
    assert stop.value.code == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: -p fusionkit-topk: a folder without __init__.py. "
        "Name the package in it: fusionkit-topk/fusionkit_topk.",
        "error: -p nothing: a folder without __init__.py. Name a package's folder or a .py file.",
        "error: -p near_by: there is no module of that name. Did you mean near_by.py?",
    ]


def test_the_module_is_the_command_line_too():
    command = [sys.executable, "-m", "fusionkit", "list", "heads"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: list: there is no kind of component called 'heads'.")


def test_schema_prints_a_json_schema(call):
    code, out, _ = call("schema")
    assert code == 0
    jsonschema.Draft7Validator.check_schema(json.loads(out))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["lsit"], 2, "No such command 'lsit'"),
        (["list", "heads"], 2, "error: list: there is no kind of component called 'heads'. Did you mean 'head'?"),
        (["show", "toy_maen"], 2, "error: show: there is no component called 'toy_maen'. Did you mean 'toy_mean'?"),
        (["validate"], 2, "Missing argument"),
        (["validate", "not_there.yaml"], 3, "error: not_there.yaml: there is no such recipe file."),
        (
            ["-p", "not_there.py", "-p", "nor/this", "list"],
            2,
            "error: -p not_there.py: there is no such plugin file or folder. Give its path from here, or a module's name.\n"
            "error: -p nor/this: there is no such plugin file or folder. Give its path from here, or a module's name.",
        ),
        (["-p", "not_there", "show", "toy"], 5, "error: -p not_there: ModuleNotFoundError: No module named 'not_there'"),
    ],
)  # fmt: skip
def test_a_mistake_is_a_sentence_and_a_code(arguments, code, message, call):
    found, _, err = call(*arguments)
    assert found == code
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        *((kind(["one", "two"]), kind.exit_code, "error: one\nerror: two\n") for kind in errors.FusionkitError.__subclasses__()),
        (KeyboardInterrupt(), 130, ""),
        (MemoryError(), 8, "error: memory is full. Ask for narrower layers or smaller batches.\n"),
        (RuntimeError("can't start new thread"), 8, "error: the machine starts no further thread. Ask for fewer workers.\n"),
        (OSError(errno.ENOSPC, "No space left on device", "a"), 8, "error: a: No space left on device. Mend that; what was computed is kept.\n"),
        (ZeroDivisionError("x"), 1, "error: this is a bug in fusionkit or in a plugin. Please report it with the lines above.\n"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)  # fmt: skip
def test_every_error_has_its_exit_code(error, code, message, call, monkeypatch):
    def fail(context: typer.Context):
        raise error

    monkeypatch.setattr("fusionkit.cli.schema.run", fail)
    found, _, err = call("schema")
    assert found == code
    assert err.endswith(message)
    assert ("Traceback" in err) == (code == 1)


def test_version_and_help(call):
    assert call("--version") == (0, "fusionkit 0.1.0\n", "")
    for command in ([], *([name] for name in cli.COMMANDS)):
        code, out, _ = call(*command, "--help")
        assert code == 0
        assert max(map(len, out.splitlines())) <= 80


def test_a_reader_that_leaves_is_no_mistake():
    for buffered in ("", "1"):
        process = subprocess.Popen(
            [*FUSIONKIT, "list"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"PYTHONUNBUFFERED": buffered},
        )
        process.stdout.close()
        assert process.stderr.read() == b""
        process.stderr.close()
        assert process.wait() == 0


def test_every_command_is_a_file_of_its_own():
    folder = Path(cli.__file__).parent
    for module in cli.COMMANDS.values():
        assert (folder / f"{module}.py").is_file()


class Terminal(io.StringIO):
    """A terminal that remembers."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_message_ends_its_lines_between_words_and_leaves_paths_whole(monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    path = "a-folder/with-a-long-name/" * 4 + "recipe.yaml"
    text = f"error: {path}: there is no such recipe file, and none of that name anywhere else."
    shown = cli._wrapped(text, Terminal())
    assert path in shown
    assert " ".join(shown.split()) == text
    assert all(len(line) <= 60 for line in shown.splitlines() if path not in line)
    assert cli._wrapped(text, io.StringIO()) == text


@pytest.mark.parametrize("option", ["-p", "--plugin"])
def test_a_plugin_named_after_the_command_is_told_to_go_before_it(call, recipe, option):
    code, out, err = call("run", recipe, option, "plugin.py")
    assert (code, out) == (2, "")
    assert err.splitlines()[-2:] == [
        f"Error: No such option: {option}",
        "-p goes before the command: fusionkit -p PLUGIN COMMAND ...",
    ]
    assert "goes before" not in call("run", recipe, "--other")[2]
