"""`fusionkit new`: what it writes keeps the contract and runs, untouched; what it refuses."""

from __future__ import annotations

import importlib
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import call, environment
from packaging.requirements import Requirement
from packaging.version import Version

from fusionkit import __version__, cli
from fusionkit.cli import new
from fusionkit.errors import DataError
from fusionkit.registry import Registry
from fusionkit.specs import COMPONENT_KINDS
from fusionkit.testing import parametrize_with_checks

TEMPLATES = Path(cli.__file__).parent.parent / "template"
REGISTRY = Registry.discover([str(TEMPLATES / kind / f"fusionkit_my_{kind}") for kind in COMPONENT_KINDS])
CARDS = [REGISTRY.find(kind, f"my_{kind}")[0] for kind in COMPONENT_KINDS]


@parametrize_with_checks(CARDS)
def test_the_templates_keep_the_contract(case, check):
    check(case)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_of(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("kind", COMPONENT_KINDS)
def test_the_package_has_the_new_name_everywhere(folder, capsys, kind):
    code, out, err = call(capsys, "new", kind, "heart_beat")
    assert (code, err) == (0, "")
    assert out == (
        "Written: fusionkit-heart-beat. Lines to change say `yours`; next (fusionkit-heart-beat/README.md):\n"
        "  fusionkit -p fusionkit-heart-beat/fusionkit_heart_beat check heart_beat\n"
    )
    package = folder / "fusionkit-heart-beat"
    texts = {path: path.read_text() for path in package.rglob("*") if path.is_file()}
    assert [str(path) for path in texts if f"my_{kind}" in str(path)] == []
    old = re.compile(rf"my[_-]?{kind}", re.IGNORECASE)
    assert [str(path) for path, text in texts.items() if old.search(text)] == []
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    assert project["name"] == "fusionkit-heart-beat"
    assert project["entry-points"] == {"fusionkit": {"fusionkit_heart_beat": "fusionkit_heart_beat"}}
    found = Registry.discover([str(package / "fusionkit_heart_beat")])
    sys.modules.pop("fusionkit_heart_beat")
    assert found.broken == {}
    assert found.find(kind, "heart_beat")[0].name == "heart_beat"
    assert package.stat().st_mode & 0o777 == 0o777 & ~new._umask()
    assert list(folder.iterdir()) == [package], "nothing else is left"


@pytest.mark.parametrize("kind", COMPONENT_KINDS)
def test_the_templates_ask_for_this_fusionkit(kind):
    project = tomllib.loads((TEMPLATES / kind / "pyproject.toml").read_text())["project"]
    (requirement,) = map(Requirement, project["dependencies"])
    assert requirement.name == "fusionkit"
    here = Version(__version__)
    assert requirement.specifier.contains(here)
    assert not requirement.specifier.contains(f"{here.major}.{here.minor + 1}")


def process(folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    # as installed, and with nothing of the tests in reach
    return subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment(), capture_output=True, text=True
    )


FUSIONKIT = ("-c", "from fusionkit.cli import main; main()")


@pytest.mark.slow
@pytest.mark.parametrize("kind", COMPONENT_KINDS)
def test_the_readmes_commands_work(folder, kind):
    assert process(folder, *FUSIONKIT, "new", kind, "heart_beat").returncode == 0
    readme = (folder / "fusionkit-heart-beat" / "README.md").read_text()
    commands = re.findall(r"^    (fusionkit|python) (.*)$", readme, re.MULTILINE)
    assert len(commands) == (3 if kind in ("encoder", "source") else 2)
    for program, arguments in commands:
        done = process(folder, *(FUSIONKIT if program == "fusionkit" else ()), *arguments.split())
        assert (done.returncode, done.stderr if "run" not in arguments else "") == (0, "")
    assert (folder / "runs" / "heart_beat" / "latest" / "report.json").is_file()
    done = process(folder, "-m", "pytest", "-q", "-W", "error", "fusionkit-heart-beat")
    assert done.returncode == 0, done.stdout
    assert " failed" not in done.stdout


def test_a_readme_has_ten_lines_and_a_test_about_six():
    for kind in COMPONENT_KINDS:
        assert len((TEMPLATES / kind / "README.md").read_text().splitlines()) <= 12
        test = (TEMPLATES / kind / f"test_my_{kind}.py").read_text().splitlines()
        assert len([line for line in test[1:] if line.strip()]) <= 6


@pytest.mark.parametrize("kind", COMPONENT_KINDS)
def test_what_is_to_change_is_marked_in_comments_alone(kind):
    marked = 0
    for path in (TEMPLATES / kind).rglob("*.py"):
        for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
            marked += token.type == tokenize.COMMENT and "yours" in token.string
            assert token.type == tokenize.COMMENT or "yours" not in token.string, f"{path}: {token.start}"
    assert marked >= 5


@pytest.mark.parametrize(("kind", "option"), [("encoder", "gives_tokens"), ("head", "takes_tokens")])
def test_the_option_of_tokens_that_a_card_names_in_a_comment_is_one(folder, capsys, kind, option):
    assert call(capsys, "new", kind, "heart_beat")[0] == 0
    module = folder / "fusionkit-heart-beat" / "fusionkit_heart_beat" / "__init__.py"
    comment = rf"# yours, perhaps: ({option}=.*) \(docs/plugins\.md, Tokens\)"
    changed, n_comments = re.subn(comment, r"\1,", module.read_text())
    assert n_comments == 1
    module.write_text(changed)
    found = Registry.discover([str(module.parent)])
    sys.modules.pop("fusionkit_heart_beat")
    card = found.find(kind, "heart_beat")[0]
    assert getattr(card, option)(card.config()) is True


# what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["encoders", "pulse"], "there is no kind of component called 'encoders'. Did you mean 'encoder'? "),
        (["encoder", "Ecg"], "a component's name is in snake_case, of at most 40 characters (given: Ecg). "),
        (["encoder", "ecg-12"], "a component's name is in snake_case, of at most 40 characters (given: ecg-"),
        (["encoder", "../ecg"], "a component's name is in snake_case, of at most 40 characters (given: ../"),
        (["encoder", "a" * 41], "a component's name is in snake_case, of at most 40 characters (given: aaa"),
        (["head", "lambda"], "lambda is a word of Python. Choose another name, such as my_lambda."),
        (["head", "json"], "a module json is installed already. Choose another name, such as my_json."),
        (["head", "torch"], "a module torch is installed already. Choose another name, such as my_torch."),
        (["raiser", "heads"], "a module fusionkit_heads is installed already. Choose another name, such as"),
        (["head", "gated"], "there is a head gated already, of plugin fusionkit_heads. Choose another name."),
        (
            ["encoder", "pixels"],
            "there is an encoder pixels already, of plugin fusionkit_pixels. Choose another",
        ),
        (["encoder", "tensor"], "Tensor means something else in the template. Choose another name, such as"),
        (["encoder", "component"], "ComponentConfig means something else in the template. Choose another na"),
        (["head", "pulse", "--into", "no"], "--into no: there is no such folder. Make it first."),
        (
            ["head", "there"],
            "fusionkit-there is there already. Choose another name, or --into another folder.",
        ),
    ],
)
def test_what_is_refused_is_a_sentence_and_writes_nothing(folder, capsys, arguments, said):
    (folder / "fusionkit-there").mkdir()
    code, out, err = call(capsys, "new", *arguments)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: new: {said}")
    assert len(err.splitlines()) == 1
    assert files_of(folder) == ["fusionkit-there"]


def test_nothing_is_written_over_and_all_problems_are_told(folder, capsys):
    (folder / "fusionkit-json").symlink_to("nowhere")
    code, _, err = call(capsys, "new", "head", "json")
    assert (code, len(err.splitlines())) == (2, 2)
    assert (folder / "fusionkit-json").is_symlink()


def test_into_another_folder(folder, capsys):
    (folder / "with space").mkdir()
    code, out, _ = call(capsys, "new", "head", "pulse", "--into", "with space")
    assert code == 0
    assert out.endswith("  fusionkit -p 'with space/fusionkit-pulse/fusionkit_pulse' check pulse\n")
    assert (folder / "with space" / "fusionkit-pulse" / "recipe.yaml").is_file()


def test_what_cannot_be_written_whole_is_not_written(folder, capsys, monkeypatch):
    written: list[Any] = []
    write = Path.write_text

    def fail(self, *rest, **options):
        written.append(self)
        if len(written) == 3:
            raise OSError(28, os.strerror(28), str(self))
        return write(self, *rest, **options)

    monkeypatch.setattr(Path, "write_text", fail)
    code, out, err = call(capsys, "new", "head", "pulse")
    assert (code, out) == (8, "")
    assert "No space left on device" in err
    assert files_of(folder) == []


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.zeros(0), "not a signal (shape: (0,)). One finite value a step is due, at least one."),
        (np.zeros((2, 3)), "not a signal (shape: (2, 3)). One finite value a step is due, at least one."),
        (np.array([0, np.inf]), "not a signal (shape: (2,)). One finite value a step is due, at least one."),
        (np.full(3, 1e300), "not a signal (shape: (3,)). One finite value a step is due, at least one."),
        (np.ones(3, dtype=complex), "not real numbers (dtype: complex128). Save integers or floats."),
        (np.ones(3, dtype=bool), "not real numbers (dtype: bool). Save integers or floats."),
        (np.array(["1"]), "not real numbers (dtype: <U1). Save integers or floats."),
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered in cast")
def test_the_encoders_template_refuses_what_is_no_signal(folder, values, said):
    read = importlib.import_module("fusionkit_my_encoder.signals").read
    np.save(folder / "a.npy", values)
    with pytest.raises(DataError) as error:
        read(folder / "a.npy", 16)
    assert error.value.problems == (f"{folder / 'a.npy'}: {said}",)


def test_the_encoders_template_reads_integers_cut_or_filled_up(folder):
    read = importlib.import_module("fusionkit_my_encoder.signals").read
    np.save(folder / "a.npy", np.arange(3))
    assert read(folder / "a.npy", 5).tolist() == [0, 1, 2, 0, 0]
    assert read(folder / "a.npy", 2).tolist() == [0, 1]


def test_the_wheel_holds_the_templates():
    project = tomllib.loads((TEMPLATES.parent.parent / "pyproject.toml").read_text())
    assert "fusionkit" in project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    ignored = subprocess.run(
        [shutil.which("git") or "git", "check-ignore", *files_in_git()], cwd=TEMPLATES, capture_output=True
    )
    assert ignored.stdout == b"", "hatchling leaves out what git ignores"


def files_in_git() -> list[str]:
    return [str(path) for path in TEMPLATES.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
