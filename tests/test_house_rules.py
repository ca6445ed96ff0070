"""The rules of CONTRIBUTING.md that a program can check."""

from __future__ import annotations

import ast
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = [
    path
    for folder in ("fusionkit", "plugins", "examples")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "template" not in path.relative_to(ROOT).parts and not path.name.startswith("test_")
]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in SOURCES}
PLUGINS = sorted(path.parent.name for path in (ROOT / "plugins").glob("*/__init__.py"))
MAX_LINES, MAX_FUNCTION_LINES, MAX_FOLDERS = 400, 60, 2
ROOMS_WITHOUT_A_NAME = {"utils.py", "helpers.py", "base.py", "common.py", "misc.py"}
# what runs code from data, and what goes to the network
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}
NETWORK_MODULES = {"aiohttp", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "urllib", "urllib3"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "torch.load", "torch.save", "numpy.load", "np.load"}
UNSAFE_CALLS |= {"os.system", "os.popen", "yaml.unsafe_load", "yaml.full_load"}
SAFE_LOADERS = {"yaml.BaseLoader", "yaml.SafeLoader", "yaml.CSafeLoader", "yaml.CBaseLoader"}

FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef


def place(path, node):
    return f"{path.relative_to(ROOT)}:{node.lineno}"


def nodes(kind):
    return [(path, node) for path, tree in TREES.items() for node in ast.walk(tree) if isinstance(node, kind)]


def test_there_is_something_to_check():
    assert len(SOURCES) > 40
    assert len(PLUGINS) >= 6


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in SOURCES}
    assert {name: length for name, length in lengths.items() if length >= MAX_LINES} == {}


def test_functions_are_short():
    lengths = {place(path, node): node.end_lineno - node.lineno + 1 for path, node in nodes(FUNCTION)}
    assert {name: length for name, length in lengths.items() if length >= MAX_FUNCTION_LINES} == {}


def test_no_room_is_without_a_name():
    assert [str(path) for path in SOURCES if path.name in ROOMS_WITHOUT_A_NAME] == []


def test_there_are_two_levels_of_folders():
    # a folder of examples/ is a project of its own
    relative = [Path(*path.relative_to(ROOT).parts["examples" in path.parts :]) for path in SOURCES]
    assert [str(path) for path in relative if len(path.parts) - 1 > MAX_FOLDERS] == []


def test_nothing_is_imported_that_runs_code_from_data_or_goes_to_the_network():
    found = []
    for path, node in nodes(ast.Import | ast.ImportFrom):
        names = (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
        )
        tops = {name.split(".")[0] for name in names}
        found += [f"{place(path, node)}: {top}" for top in tops & (UNSAFE_MODULES | NETWORK_MODULES)]
    assert found == []


def test_nothing_is_called_that_runs_code_from_data():
    found = []
    for path, node in nodes(ast.Call):
        name = ast.unparse(node.func)
        loaders = {ast.unparse(keyword.value) for keyword in node.keywords if keyword.arg == "Loader"}
        is_unsafe_yaml = name == "yaml.load" and not loaders & SAFE_LOADERS
        if name in UNSAFE_CALLS or is_unsafe_yaml:
            found.append(f"{place(path, node)}: {name}")
        found += [f"{place(path, node)}: shell" for keyword in node.keywords if keyword.arg == "shell"]
    assert found == []


def test_no_error_is_dropped_and_nothing_is_left_for_later():
    dropped = [
        place(path, node)
        for path, node in nodes(ast.ExceptHandler)
        if node.type is None or all(isinstance(statement, ast.Pass) for statement in node.body)
    ]
    later = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
    left = [str(path.relative_to(ROOT)) for path in SOURCES if later.search(path.read_text(encoding="utf-8"))]
    assert (dropped, left) == ([], [])


def public_without_docstring(tree):
    """Yields the module, and public classes, functions and methods, where they have no docstring."""
    if ast.get_docstring(tree) is None:
        yield 1, "the module"
    holders = [tree, *(node for node in tree.body if isinstance(node, ast.ClassDef))]
    for holder in holders:
        for node in holder.body:
            is_public = isinstance(node, FUNCTION | ast.ClassDef) and not node.name.startswith("_")
            is_hidden = isinstance(holder, ast.ClassDef) and holder.name.startswith("_")
            if is_public and not is_hidden and ast.get_docstring(node) is None:
                yield node.lineno, node.name


def test_public_things_have_a_docstring():
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path, tree in TREES.items()
        for line, name in public_without_docstring(tree)
    ]
    assert found == []


def test_docstrings_start_with_a_whole_sentence():
    found = []
    for path, node in nodes(FUNCTION | ast.ClassDef | ast.Module):
        text = ast.get_docstring(node)
        if text is not None and not re.match(r"\s*\S.*?[.:?]($|\s)", text, re.DOTALL):
            found.append(f"{path.relative_to(ROOT)}: {text.splitlines()[0]}")
    assert found == []


def read_texts():
    # git knows which files are ours; caches and environments lie beside them
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    suffixes = {".py", ".md", ".yaml", ".toml", ".cff", ""}
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.suffix in suffixes and path.is_file() and path != Path(__file__):
            yield name, path.read_text(encoding="utf-8")


def test_no_text_names_a_place_on_one_machine():
    pattern = re.compile(r"(?<![\w.$}])/(work|home|root|tmp|Users)/\w")
    assert [name for name, text in read_texts() if pattern.search(text)] == []


def test_every_plugin_stands_wherever_pyproject_lists_plugins():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    linter = project["tool"]["importlinter"]
    contracts = {contract["name"]: contract for contract in linter["contracts"]}
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    lists = {
        "entry points": list(project["project"]["entry-points"]["fusionkit"]),
        "wheel": [name.removeprefix("plugins/") for name in wheel if name.startswith("plugins/")],
        "root_packages": [name for name in linter["root_packages"] if name != "fusionkit"],
        "core": contracts["The core knows no plugin"]["forbidden_modules"],
        "each other": contracts["Plugins do not know each other"]["modules"],
        "public names": contracts["Plugins import only fusionkit's public names"]["source_modules"],
    }
    assert {name: sorted(entries) for name, entries in lists.items()} == dict.fromkeys(lists, PLUGINS)
    light = contracts["What describes recipes and plugins imports nothing heavy"]["source_modules"]
    assert set(PLUGINS) <= set(light)
