"""The packages of examples/: shaped like what `fusionkit new` writes, whole when installed elsewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

import pytest
import torch
from command_line import environment
from packaging.requirements import Requirement

from fusionkit import __version__

ROOT = Path(__file__).parent.parent
EXAMPLES = ROOT / "examples"
TEMPLATE = ROOT / "fusionkit" / "template" / "source"
PACKAGES = {"ecg": ["ecg"], "skin": ["skin_lesions", "product_of_experts"]}
"""Name of a package, less `fusionkit-` -> its components."""


def test_every_folder_of_the_examples_is_looked_at():
    assert sorted(path.name for path in EXAMPLES.iterdir() if path.is_dir()) == [
        f"fusionkit-{name}" for name in PACKAGES
    ]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_has_the_shape_that_new_writes(name):
    folder, module = EXAMPLES / f"fusionkit-{name}", f"fusionkit_{name}"
    shape = {path.name.replace("my_source", name) for path in TEMPLATE.iterdir() if path.name[0] not in "._"}
    assert {path.name for path in folder.iterdir() if path.name[0] not in "._"} == shape
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    assert project["entry-points"] == {"fusionkit": {module: module}}
    (requirement,) = map(Requirement, project["dependencies"])
    assert (requirement.name, requirement.specifier.contains(__version__)) == ("fusionkit", True)
    assert "@parametrize_with_checks(fusionkit_components())" in (folder / f"test_{name}.py").read_text()
    assert len((folder / "README.md").read_text().splitlines()) <= 15


# installed


def python(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs the separate environment's Python, with nothing of this one in reach but what it was given."""
    kept = {name: value for name, value in environment().items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [folder / "env" / "bin" / "python", *map(str, arguments)],
        cwd=folder,
        env={**kept, "PATH": f"{folder / 'env' / 'bin'}{os.pathsep}{kept['PATH']}"},
        capture_output=True,
        text=True,
    )


def fusionkit(folder: Path, *arguments: object) -> str:
    done = python(folder, folder / "env" / "bin" / "fusionkit", *arguments)
    assert (done.returncode, "error" in done.stderr) == (0, False), done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with an environment that has fusionkit and both packages as pip builds and installs them.

    What fusionkit needs is as in this environment, since PyTorch is too large to be installed for a test.
    """
    folder = tmp_path_factory.mktemp("elsewhere")
    venv.create(folder / "env", with_pip=False)
    (site,) = (folder / "env" / "lib").glob("python*/site-packages")
    (site / "needs.pth").write_text(f"{Path(torch.__file__).parent.parent}\n")
    sources = [ROOT, *(EXAMPLES / f"fusionkit-{name}" for name in PACKAGES)]
    pip = [sys.executable, "-m", "pip", "--python", folder / "env" / "bin" / "python", "install"]
    options = ["--no-index", "--no-deps", "--no-build-isolation", "--ignore-installed", "--quiet"]
    done = subprocess.run([*pip, *options, *sources], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for name in PACKAGES:
        (folder / f"fusionkit-{name}").mkdir()
        for path in (EXAMPLES / f"fusionkit-{name}").glob("*.*"):
            shutil.copy(path, folder / f"fusionkit-{name}")  # all but the package, which is installed
    return folder


@pytest.mark.slow
def test_both_are_found_where_they_were_installed(installed):
    where = python(
        installed, "-c", "import fusionkit, fusionkit_ecg; print(fusionkit.__file__, fusionkit_ecg.__file__)"
    )
    assert all(path.startswith(f"{installed}/env/") for path in where.stdout.split()), where
    plugins = {
        plugin["name"]: plugin for plugin in json.loads(fusionkit(installed, "plugins", "--json"))["plugins"]
    }
    for name, components in PACKAGES.items():
        plugin = plugins[f"fusionkit_{name}"]
        assert plugin["distribution"] == f"fusionkit-{name} 0.1.0"
        assert sorted(name for names in plugin["components"].values() for name in names) == sorted(components)
    listed = {
        component["name"] for component in json.loads(fusionkit(installed, "list", "--json"))["components"]
    }
    assert listed > {name for components in PACKAGES.values() for name in components}


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_its_own_tests_pass(installed, name):
    done = python(
        installed, "-m", "pytest", "-q", "-W", "error", "--import-mode=importlib", f"fusionkit-{name}"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", PACKAGES)
def test_its_components_are_checked_and_its_recipe_runs(installed, name):
    checked = json.loads(fusionkit(installed, "check", "--json", *PACKAGES[name]))
    assert not [each for each in checked if each["status"] == "fail"]
    assert python(installed, f"fusionkit-{name}/{name}_rows.py", f"rows_{name}").returncode == 0
    printed = fusionkit(installed, "run", f"fusionkit-{name}/recipe.yaml", "--data-root", f"rows_{name}")
    report = json.loads((installed / "runs" / name / "latest" / "report.json").read_text())
    if name == "skin":
        assert printed.startswith("SIMULATED DATA: these figures say nothing about patients.\n")
        assert set(report["models"]) == {"fused", "image", "record"}
    else:
        tested = {name: model["n_subjects"] for name, model in report["models"].items()}
        assert tested == {"fused": 48, "ecg": 40, "image": 48, "record": 48, "ecg_pretrained": 40}
    again = fusionkit(installed, "run", f"fusionkit-{name}/recipe.yaml", "--data-root", f"rows_{name}")
    assert "Nothing computed, all from the store." in again
