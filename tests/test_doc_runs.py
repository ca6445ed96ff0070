"""The pages' commands and code, run from top to bottom on small data, in one folder with one store.

Recipes are scaled down first (`SMALLER`), so that a command stands as the page gives it and takes seconds.
"""

from __future__ import annotations

import csv
import io
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import environment
from doc_blocks import BLOCKS, ROOT, Block
from PIL import Image

pytestmark = pytest.mark.slow

SMALLER = {
    r"patients: 185": "patients: 16",
    r"fresh_patients: 400": "fresh_patients: 16",
    r"images_per_patient: 4": "images_per_patient: 1",
    r"subjects: (300|400)": "subjects: 24",
    r"fresh_subjects: 500": "fresh_subjects: 40",  # so that each of four grades is there
    r"width: 96": "width: 48",
    r"height: 72": "height: 36",
    r"size: 48": "size: 32",
    r"epochs: \d+": "epochs: 1",
    r"use: vgg16_multilevel, weights: imagenet": "use: handcrafted, input: {size: 32}",  # would be downloaded
}
"""Text of a recipe -> what stands for it here."""
STANDS_FOR = {
    "source .venv/bin/activate": "true  # the environment is active",
    "make run": "fusionkit run recipes/breast_rfn.yaml  # what it runs after it has installed",
    "pip install -e fusionkit-ecg": "true  # tests/test_examples.py installs packages by pip",
    "pip install -e fusionkit-skin": "true  # the same",
    "fusionkit data audit recipes/breast_usg.yaml": "fusionkit validate recipes/breast_usg.yaml  # real data",
}
"""A line of a page -> the line that is run for it, and why."""
NEEDS = {"recipes.md": ["README.md"], "command-line.md": ["README.md"]}
"""Page -> pages that make the runs and files that its commands name."""
PAGES = list(dict.fromkeys(block.page for block in BLOCKS if block.language in ("sh", "python")))


def smaller(text: str) -> str:
    for pattern, replacement in SMALLER.items():
        text = re.sub(rf"\b{pattern}\b", replacement, text)
    return text


def paint(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_table(file: Path, text: str, prefix: str) -> None:
    """Writes a page's table eight times, each time with other patients and images of their own."""
    header, *rows = csv.reader(io.StringIO(text))
    file.parent.mkdir(parents=True, exist_ok=True)
    written = [header]
    for copy in range(8):
        for number, row in enumerate(rows):
            cells = dict(zip(header, row, strict=True))
            cells["patient"] = f"{prefix}{copy}_{cells['patient']}"
            cells["image"] = cells["image"].replace("images/", f"images/{prefix}{copy}_")
            paint(file.parent / cells["image"], hash_of(prefix, copy, number))
            written.append(list(cells.values()))
    with open(file, "w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows(written)


def hash_of(prefix: str, copy: int, number: int) -> int:
    return sum(map(ord, prefix)) * 1000 + copy * 10 + number


class Workshop:
    """The folder in which pages are run, and which of them were."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: set[str] = set()
        shutil.copytree(ROOT / "recipes", folder / "recipes")
        shutil.copytree(ROOT / "examples", folder / "examples")
        for recipe in folder.rglob("*.yaml"):
            recipe.write_text(smaller(recipe.read_text(encoding="utf-8")), encoding="utf-8")
        plugin = (ROOT / "examples" / "first_plugin.py").read_text(encoding="utf-8")
        (folder / "my_plugin.py").write_text(plugin.replace('name="fourier"', 'name="my_component"'))
        bin_folder = folder / "bin"
        bin_folder.mkdir()
        (bin_folder / "fusionkit").write_text(
            f'#!/bin/sh\nexec {sys.executable} -c "from fusionkit.cli import main; main()" "$@"\n'
        )
        (bin_folder / "python").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
        for file in bin_folder.iterdir():
            file.chmod(0o755)

    def run(self, page: str) -> None:
        for needed in [*NEEDS.get(page, ()), page]:
            if needed not in self.done:
                if needed == "command-line.md":
                    self.write_photos()
                for block in BLOCKS:
                    if block.page == needed and block.reason in (None, "installs"):
                        self.run_block(block)
                self.done.add(needed)

    def write_photos(self) -> None:
        """Writes what the example of `predict` names: a table with ids, and photos in a folder."""
        for number in range(3):
            paint(self.folder / "photos" / f"{number}.png", number)
        (self.folder / "rows.csv").write_text("case,image\n" + "".join(f"c{n},{n}.png\n" for n in range(3)))

    def run_block(self, block: Block) -> None:
        if block.language == "csv":
            write_table(self.folder / "data" / "my_study" / "rows.csv", block.text, "here")
            write_table(self.folder / "other" / "rows.csv", block.text, "other")
        elif block.language == "yaml":
            tree = yaml.safe_load(block.text)
            if "name" in tree:  # a whole recipe
                (self.folder / f"{tree['name']}.yaml").write_text(smaller(block.text), encoding="utf-8")
        elif block.language == "python":
            is_test = "def test_" in block.text
            name = "test_block.py" if is_test else "block.py"
            (self.folder / name).write_text(block.text, encoding="utf-8")
            self.call(
                block, f"python {'-m pytest -q -W error -p no:cacheprovider ' if is_test else ''}{name}"
            )
        elif block.language == "sh":
            for line in block.text.splitlines():
                if line and not line.startswith("git clone "):
                    self.call(block, STANDS_FOR.get(line, line))

    def call(self, block: Block, line: str) -> None:
        done = subprocess.run(
            ["bash", "-e", "-o", "pipefail", "-c", line],
            cwd=self.folder / "examples" if block.page.startswith("examples/") else self.folder,
            env=environment(
                PATH=f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
                FUSIONKIT_STORE=str(self.folder / ".fusionkit" / "store"),
            ),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, f"{block}: {line}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    return Workshop(tmp_path_factory.mktemp("pages"))


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs_from_top_to_bottom(workshop, page):
    workshop.run(page)


def test_what_make_run_runs_is_what_stands_for_it():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    recipe = re.search(r"^run: .*\n\t\.venv/bin/(.*)$", makefile, re.MULTILINE)
    assert STANDS_FOR["make run"].split("  #")[0] == recipe[1]


@pytest.mark.parametrize("pattern", SMALLER)
def test_every_text_that_is_made_smaller_is_in_a_recipe_or_on_a_page(pattern):
    recipes = [path.read_text(encoding="utf-8") for path in (ROOT / "recipes").rglob("*.yaml")]
    texts = [*recipes, *(block.text for block in BLOCKS if block.language == "yaml")]
    assert any(re.search(rf"\b{pattern}\b", text) for text in texts)


def test_every_line_that_another_stands_for_is_on_a_page():
    lines = {line for block in BLOCKS if block.language == "sh" for line in block.text.splitlines()}
    assert set(STANDS_FOR) <= lines


def test_a_command_that_fails_fails_its_page(workshop):
    block = Block("a.md", 1, "sh", "fusionkit validate recipes/no.yaml\n", None)
    with pytest.raises(AssertionError, match=r"a\.md:1: fusionkit validate recipes/no\.yaml"):
        workshop.run_block(block)
