"""Rows that training cannot learn from, or must learn from all the same: messages, finite figures."""

from __future__ import annotations

import csv
import json
import random
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from command_line import call, command, environment, write_recipe

RECIPE = """\
name: rows
source:
  use: manifest
  table: rows.csv
  sample: id
  subject: patient
  outcome: outcome
  classes: {ill: ill, well: well}
  columns:
    age: {kind: numeric}
    dose: {kind: numeric}
    sex: {kind: binary, values: [f, m]}
    gene: {kind: numeric}
modalities:
  record:
    columns: [age, dose, sex]
    encoder: {use: structured}
    raiser: {use: toy_denoise, width: 5}
  genes:
    columns: [gene]
    encoder: {use: structured}
head: {use: toy_norm}
stages:
  - {name: prepare, fit: [record.encoder, record.raiser, genes.encoder], epochs: 2, batch_size: 8}
  - {name: fuse, train: [head], epochs: 2, batch_size: 8}
split: {scheme: folds, folds: 2}
evaluation: {resamples: 100, modalities_alone: false}
training: {device: cpu, threads: 1}
"""
N_ROWS = 36


def make_rows() -> list[dict[str, str]]:
    draw = random.Random(3)
    return [
        {
            "id": f"s{number}",
            "patient": f"p{number}",
            "outcome": "ill" if number % 2 else "well",
            "age": f"{draw.gauss(50 + 5 * (number % 2), 9):.1f}",
            "dose": f"{draw.uniform(0, 3):.3f}",
            "sex": draw.choice("fm"),
            "gene": f"{draw.gauss(number % 2, 1):.3f}",
        }
        for number in range(N_ROWS)
    ]


@pytest.fixture
def run(tmp_path, capsys, monkeypatch):
    """Writes the rows after a change, and runs the recipe on them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.yaml").write_text(RECIPE)

    def run_it(change: Any, *overrides: str, quiet: bool = True) -> tuple[int, str, str]:
        rows = make_rows()
        for number, row in enumerate(rows):
            change(number, row)
        with open(tmp_path / "rows.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        arguments = ["run", "rows.yaml", "--data-root", ".", "--store", "s", *overrides]
        code, out, err = call(capsys, *arguments, *(["-q"] if quiet else []), "--json")
        assert "Traceback" not in err
        return code, out, err

    return run_it


def report_of(result: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = result
    assert (code, err) == (0, "")
    report = json.loads(out)["report"]  # JSON has no NaN: json_bytes refuses it
    assert 0 <= report["models"]["fused"]["subject"]["roc_auc"]["value"] <= 1
    assert isinstance(report, dict)
    return report


def keep(number: int, row: dict[str, str]) -> None:
    """Changes nothing."""


# numbers that are not there


@pytest.mark.parametrize("text", ["nan", "NaN", "inf", "-inf", "1e39", "n/a"])
def test_a_cell_that_is_no_finite_number(run, text):
    def spoil(number, row):
        row["age"] = text if number == 5 else row["age"]

    assert run(spoil) == (
        4,
        "",
        f"error: sample s5 (subject p5): age: not a finite number ('{text}'). "
        "Missing is written: nothing but an empty cell.\n",
    )


def test_missing_cells_that_reach_a_part_which_does_not_accept_them(run):
    assert run(keep, "modalities.genes.encoder.missing=keep") == (
        3,
        "",
        "error: override 'modalities.genes.encoder.missing=keep': modalities.genes.encoder: structured may "
        "emit missing values, which the head "
        "does not accept. Set modalities.genes.encoder.missing: mean or use a raiser that accepts them "
        "(ae, dae, dae_l1, piecewise_linear, toy_denoise).\n",
    )


LEAKY = """\
import toys
from dataclasses import replace
from fusionkit import hookimpl

CARD = next(card for card in toys.CARDS if card.name == "toy_mean")


@hookimpl
def fusionkit_components():
    honest = dict(emits_missing=lambda config: False)
    return [replace(CARD, name="leaky", **honest), replace(CARD, name="still", learns="nothing", **honest)]
"""
TRAIN = "stages.fuse.train=[head, record.encoder]"
LEAK = "gives values that are not finite for sample sample20 (subject subject06). "


@pytest.mark.parametrize(
    ("encoder", "stages", "code", "start", "end"),
    [
        (
            "leaky",
            [],
            7,
            "stage learn_record: the loss is not finite (nan) in epoch 1, batch ",
            f"record.encoder {LEAK}Lower the learning rate, or look at these rows.",
        ),
        (
            "leaky",
            ["stages.learn_record=null", TRAIN, "modalities.record.standardize=false"],
            7,
            "stage fuse: the loss is not finite (nan) in epoch 1, batch ",
            f"record.encoder {LEAK}Lower the learning rate, or look at these rows.",
        ),
        (
            "still",
            ["stages.learn_record=null"],
            5,
            f"record.encoder: {LEAK}",
            "Mend the plugin, or look at these rows.",
        ),
    ],
    ids=["pretrain", "train", "frozen"],
)  # fmt: skip
def test_missing_cells_that_a_plugin_lets_through_without_saying_so(
    tmp_path, capsys, monkeypatch, encoder, stages, code, start, end
):
    """Its card says that NaN never comes out; one row of the 36 lacks one of two cells."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "leaky.py").write_text(LEAKY)
    use = f"modalities.record.encoder={{use: {encoder}, width: 3, missing: keep}}"
    overrides = [
        use,
        "modalities.record.raiser=null",
        "source.blanks=true",
        "split={scheme: holdout, test: 0.1}",
    ]
    arguments = ["-p", "leaky.py", "run", write_recipe(tmp_path), *overrides, *stages, "--store", "s", "-q"]
    found, out, err = call(capsys, *arguments)
    assert (found, out) == (code, "")
    assert err.startswith(f"error: {start}")
    assert err.endswith(f"{end}\n")
    assert len(err.splitlines()) == 1


def blank(column: str) -> Any:
    def change(number: int, row: dict[str, str]) -> None:
        row[column] = ""

    return change


def constant(column: str, text: str) -> Any:
    def change(number: int, row: dict[str, str]) -> None:
        row[column] = text

    return change


@pytest.mark.parametrize(
    "change",
    [
        blank("dose"),
        blank("sex"),
        constant("dose", "3"),
        constant("sex", "f"),
        constant("gene", "1.5"),
        constant("age", "1e30"),
    ],
    ids=["no dose", "no sex", "one dose", "one sex", "one gene", "one huge age"],
)
@pytest.mark.parametrize("scale", ["mean", "keep"])
def test_a_column_without_a_value_or_with_one_alone_leaves_figures_finite(run, change, scale):
    report = report_of(run(change, f"modalities.record.encoder.missing={scale}"))
    assert report["counts"]["subjects"] == N_ROWS


def test_a_modality_without_a_single_value(run):
    code, out, err = run(blank("gene"))
    assert (code, out) == (4, "")
    assert err == (
        "error: stage prepare, genes.encoder: repeat 0, fold 0: no training row has the modality (0 rows). "
        "Use more data or fewer folds.\n"
    )


def test_a_modality_that_one_class_alone_has_is_said_in_the_report(run):
    def spoil(number, row):
        row["gene"] = row["gene"] if row["outcome"] == "ill" else ""

    report = report_of(run(spoil))
    assert [text for text in report["warnings"] if text.startswith("genes: only")] == [
        "genes: only ill subjects (18 of 36) have it, so that its presence gives the outcome away. "
        "Look at how the data were gathered."
    ]


# batches of one


@pytest.mark.parametrize("size", [17, 18, 9, 2])
def test_no_size_of_a_batch_leaves_batch_normalisation_with_one_row(run, size):
    """18 rows learn in each fold: batches of 17 would leave one."""
    report_of(run(keep, f"stages.fuse.batch_size={size}"))


def test_batches_of_one_that_are_asked_for(run):
    code, out, err = run(keep, "stages.fuse.batch_size=1")
    assert (code, out) == (7, "")
    start, rest = err.split(": sample ")
    assert start == (
        "error: stage fuse: batch normalisation cannot learn from one row alone (epoch 1, batch 1"
    )
    assert rest.endswith("). Use a larger batch_size, or parts without it.\n")
    report_of(run(keep, "stages.fuse.batch_size=1", "head={use: toy_linear}"))


# memory


def test_a_report_says_that_memory_was_full_also_when_the_store_has_it_all(run, monkeypatch):
    import torch
    import toy_images

    real = toy_images.NormHead.forward

    def forward(self, features, present):
        if self.training and len(features["genes"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB.")
        return real(self, features, present)

    monkeypatch.setattr(toy_images.NormHead, "forward", forward)
    code, out, err = run(keep, quiet=False)
    assert code == 0
    assert "stage fuse: memory is full, batches are computed in 2 parts\n" in err
    first = json.loads(out)
    assert first["report"]["warnings"][-1] == (
        "memory was full in fuse: batches were computed in parts, each weighing as many rows as it has; "
        "batch normalisation and dropout saw the parts."
    )
    log = [json.loads(line) for line in (Path(first["folder"]) / "log.jsonl").read_text().splitlines()]
    full = [event for event in log if event["event"] == "memory_full"]
    assert [(event["where"], event["parts"]) for event in full] == [("stage fuse", 2)] * 2, "once per fold"
    again = json.loads(run(keep)[1])
    assert again["computed"] == 0
    assert again["report"] == first["report"]


# a read that hangs

HANGING = """\
import time
import fusionkit.data.batches
import fusionkit.data.threads
import toy_images
from fusionkit import EncoderSpec, hookimpl

fusionkit.data.batches.SLOW_SECONDS = 0.1
fusionkit.data.threads.LOOK_SECONDS = 0.05
fusionkit.data.threads.LEAVE_SECONDS = 0.1


def build(config, columns):
    encoder = toy_images.ToyConv(config, columns)
    read = encoder.input_spec.load

    def load(cells, cuts):
        if cells["picture"].name == "07.png":
            time.sleep(3600)
        return read(cells, cuts)

    encoder.input_spec.load = load
    return encoder


@hookimpl
def fusionkit_components():
    config = toy_images.ConvConfig
    return [EncoderSpec(name="hanging", summary="", source="", config=config, build=build, reads=("file",))]
"""


def test_a_read_that_hangs_is_told_and_ctrl_c_ends_it(tmp_path):
    (tmp_path / "hanging.py").write_text(HANGING)
    encoder = "modalities.image.encoder={use: hanging, input: {size: 8}}"
    options = [encoder, "training.workers=2", "split={scheme: holdout, test: 0.1}"]
    arguments = command("-p", "hanging.py", "run", write_recipe(tmp_path), *options)
    process = subprocess.Popen(
        arguments, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    line = next(line for line in iter(process.stderr.readline, "") if "still reading" in line)
    what = "image: still reading sample sample07 (subject subject02): 07.png, for 0 s; Ctrl-C ends the run"
    assert line == f"{what}\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in err
