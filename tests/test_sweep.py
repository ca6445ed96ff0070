"""sweep: each experiment once, whoever computes it; the same table, however it came about."""

from __future__ import annotations

import csv
import io
import json
import random
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import toys
from command_line import TOYS, command, environment

from fusionkit import sweep as sweep_module
from fusionkit.errors import ResourceError
from fusionkit.evaluation.figures import _plain
from fusionkit.prepare import Places
from fusionkit.recipe.sweep import LoadedSweep, load_sweep, models_of
from fusionkit.registry import Registry
from fusionkit.run import run
from fusionkit.sweep import Experiments, Worker, digest_rows, result_address, run_experiments
from fusionkit.sweep_report import build_table, experiment_label
from fusionkit.sweep_tables import table_csv, table_markdown, table_text

EXTRA = [argument for argument in TOYS if argument != "-p"]
SWEEP = """\
name: widths
base: toy.yaml
overrides: {evaluation.resamples: 100, training.threads: 1}
seeds: [3, 4]
metric: accuracy
reference: narrow
roc: true
variants:
  - {name: narrow, paper: {accuracy: 0.9}}
  - {name: wide, overrides: {modalities.numbers.encoder.width: 9}}
  - {name: words only, model: words_pretrained}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "toy.yaml").write_text(toys.RECIPE)
    (tmp_path / "sweep.yaml").write_text(SWEEP)
    return tmp_path


def sweep(folder: Path, tell: Any = lambda name, data: None, **given: Any) -> tuple[LoadedSweep, Experiments]:
    registry = Registry.discover(EXTRA)
    overrides = given.pop("overrides", ())
    loaded = load_sweep(folder / "sweep.yaml", registry, overrides, data_root=folder / "data")
    recipes = {experiment_label(one, loaded): one.loaded for one in loaded.experiments}
    places = Places(folder / "data", folder / "store", folder / "runs")
    return loaded, run_experiments(recipes, registry, places, tell, **given)


def table(folder: Path, **given: Any) -> str:
    return json.dumps(build_table(*sweep(folder, **given)).entry)


def test_an_experiment_predicts_what_its_recipe_alone_predicts(folder):
    loaded, done = sweep(folder)
    one = loaded.experiments[2]  # wide, seed 3
    places = Places(folder / "data", folder / "other", folder / "runs")
    result = run(one.loaded, Registry.discover(EXTRA), places, lambda name, data: None)
    [row] = [row for row in build_table(loaded, done).entry["rows"] if row["name"] == "wide"]
    own = [values(result.report)]
    assert row["n_seeds"] == 2
    other = run(loaded.experiments[3].loaded, Registry.discover(EXTRA), places, lambda name, data: None)
    assert row["subject"]["accuracy"]["value"] == pytest.approx(sum([*own, values(other.report)]) / 2)


def values(report: Any) -> float:
    return float(report["models"]["fused"]["subject"]["accuracy"]["value"])


def test_a_row_says_what_it_is_compared_with(folder):
    text = SWEEP.replace("name: words only,", "name: words only, against: wide,")
    (folder / "sweep.yaml").write_text(text)
    entry = build_table(*sweep(folder)).entry
    compared = {row["name"]: (row["difference"] or {}).get("reference") for row in entry["rows"]}
    assert compared == {"narrow": None, "wide": "narrow", "words only": "wide"}
    lines = table_markdown(entry).splitlines()
    assert "accuracy minus narrow" in lines[4]
    ends = {line.split(" | ")[0]: line for line in lines[6:9]}
    assert "(wide)" in ends["| words only"]
    assert "(narrow)" not in ends["| wide"]
    assert "Compared otherwise: words only with wide." in table_text(entry).replace("\n  ", " ")
    [head, *rows] = csv.reader(io.StringIO(table_csv(entry)))
    assert [row[head.index("compared_with")] for row in rows] == ["", "narrow", "wide"]


def test_the_least_p_value_that_so_many_resamples_give_is_marked(folder):
    entry = json.loads(table(folder))
    for row in entry["rows"]:
        if row["difference"]:
            row["difference"] |= {"p": 2 / 101, "p_holm": 4 / 101}
    assert table_markdown(entry).count("≤ 0.040 |") == 2
    for row in entry["rows"]:
        if row["difference"]:
            row["difference"] |= {"p": 3 / 101, "p_holm": 4 / 101}
    assert "≤" not in table_markdown(entry)


def test_what_is_stored_is_not_computed_again_and_gives_the_same_table(folder):
    events: list[str] = []
    first = table(folder)
    again = table(folder, tell=lambda name, data: events.append(name))
    assert first == again
    assert events == ["experiment_finished"] * 6


def test_variants_share_what_is_equal_in_them(folder):
    stages: list[tuple[str, Any]] = []
    sweep(
        folder,
        lambda name, data: stages.append((data["experiment"], data)) if name == "stage_started" else None,
    )
    by_label: dict[str, list[str]] = {}
    for label, data in stages:
        by_label.setdefault(label, []).append(data["stage"])
    assert "learn_words" in by_label["narrow, seed 3"]
    assert "learn_words" not in by_label["wide, seed 3"]  # the same encoder, pretrained alike
    assert "words only, seed 3" not in by_label  # another model of narrow's run


@pytest.mark.parametrize(
    ("change", "is_new"),
    [
        (["stages.fuse.epochs=1"], True),
        (["modalities.words.raiser.width=6"], True),
        (["name=other", "description=words", "training.workers=1"], False),
    ],
)
def test_a_result_is_found_by_all_that_determines_it(folder, change, is_new):
    def addresses(*overrides: str) -> set[str]:
        registry = Registry.discover(EXTRA)
        loaded = load_sweep(folder / "sweep.yaml", registry, overrides, data_root=folder)
        places = Places(folder, folder / "store", folder / "runs")
        from fusionkit.prepare import read_manifest

        return {
            result_address(one.loaded, digest_rows(one.loaded, read_manifest(one.loaded, places, 1)), places)
            for one in loaded.experiments
        }

    assert (addresses(*change) != addresses()) == is_new


def test_another_content_of_a_file_is_another_result(tmp_path):
    import toy_images

    (tmp_path / "toy.yaml").write_text(toy_images.RECIPE)
    (tmp_path / "sweep.yaml").write_text(
        "{name: pictures, base: toy.yaml, overrides: {evaluation.resamples: 100}, variants: [{name: one}]}"
    )
    assert sweep(tmp_path)[1].computed == 1
    assert sweep(tmp_path)[1].computed == 0
    picture = next((tmp_path / "store" / "sources").rglob("*.png"), None) or next(
        (tmp_path / "data").rglob("*.*")
    )
    from PIL import Image

    with Image.open(picture) as image:
        image.rotate(90).save(picture)
    assert sweep(tmp_path)[1].computed == 1


def test_several_processes_end_at_the_same_table_as_one(folder, tmp_path_factory, monkeypatch):
    other = tmp_path_factory.mktemp("other")
    for name in ("toy.yaml", "sweep.yaml"):
        (other / name).write_text((folder / name).read_text())
    begun = threading.Event()
    work = Worker.work

    def work_later(*given: Any) -> None:
        assert begun.wait(120)  # in so small a sweep, this process would be done before the other begins
        work(*given)

    monkeypatch.setattr(Worker, "work", work_later)
    table_of_two = table(folder, n_jobs=2, tell=lambda name, data: begun.set() if "job" in data else None)
    monkeypatch.undo()
    assert table_of_two == table(other)


def test_one_experiment_that_fails_stops_no_other(folder):
    text = SWEEP + "  - {name: exploding, overrides: {stages.fuse.learning_rate: 1.0e+38}}\n"
    (folder / "sweep.yaml").write_text(text)
    loaded, done = sweep(folder)
    entry = build_table(loaded, done).entry
    assert [row["name"] for row in entry["rows"]] == ["narrow", "wide", "words only"]
    assert list(entry["failed"]) == ["exploding"]
    assert "not finite" in entry["failed"]["exploding"][0]


def test_a_machine_that_refuses_stops_all_at_once(folder):
    (folder / "store").write_text("not a folder")
    with pytest.raises(ResourceError):
        sweep(folder)


def call_sweep(folder: Path, *options: str) -> subprocess.Popen[bytes]:
    words = command("sweep", "sweep.yaml", "-q", "--store", "store", *options)
    return subprocess.Popen(
        words, cwd=folder, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def kill_and_repeat(folder: Path, undisturbed: str, n_kills: int, seed: int) -> None:
    """Kills the sweep at random moments, each time from an empty store, and lets it end afterwards."""
    draw = random.Random(seed)
    n_killed = 0
    for number in range(n_kills):
        own = folder / str(number)
        own.mkdir()
        for name in ("toy.yaml", "sweep.yaml"):
            (own / name).write_text((folder / name).read_text())
        process = call_sweep(own, "--jobs", "2")
        n_due = draw.randint(1, 30)  # stages; a moment in seconds would be another one on every machine
        while process.poll() is None and len(list(own.glob("store/artefacts/*"))) < n_due:
            time.sleep(0.02)
        time.sleep(draw.uniform(0, 0.3))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        n_killed += process.returncode == -signal.SIGKILL  # else it was done before
        again = call_sweep(own, "--jobs", "2")
        assert again.communicate()[1] == b""
        assert again.returncode == 0
        assert (own / "runs" / "widths" / "latest" / "table.json").read_text() == undisturbed
    assert n_killed


@pytest.mark.slow
def test_a_sweep_that_is_killed_ends_at_the_same_table(folder):
    process = call_sweep(folder)
    assert process.communicate()[1] == b""
    kill_and_repeat(folder, (folder / "runs" / "widths" / "latest" / "table.json").read_text(), 3, seed=5)


def test_a_curve_has_each_variant_at_each_rate_and_compares_at_equal_rates(folder):
    (folder / "sweep.yaml").write_text(
        "name: curves\nbase: toy.yaml\nreference: narrow\ncurve: words\noverrides:\n"
        "  evaluation.resamples: 100\n  evaluation.missing: {words: [0.5, 1]}\nvariants:\n"
        "  - {name: narrow}\n  - {name: wide, overrides: {modalities.numbers.encoder.width: 9}}\n"
    )
    loaded, done = sweep(folder)
    found = build_table(loaded, done)
    rows = found.entry["rows"]
    assert [(row["name"], row["missing"]) for row in rows] == [
        (name, rate) for name in ("narrow", "wide") for rate in (0.0, 0.5, 1.0)
    ]
    for narrow, wide in zip(rows[:3], rows[3:], strict=True):
        each = [row["subject"]["roc_auc"]["value"] for row in (wide, narrow)]
        assert wide["difference"]["value"] == pytest.approx(each[0] - each[1])
        assert narrow["difference"] is None
    plain = run(
        loaded.experiments[0].loaded,
        Registry.discover(EXTRA),
        Places(folder / "data", folder / "store", folder / "runs"),
        lambda name, data: None,
    ).report["models"]
    assert set(plain) == set(models_of(loaded.experiments[0].loaded))
    for row, model in zip(
        rows[:3], ("fused", "fused_missing_words_0.5", "fused_missing_words_1"), strict=True
    ):
        assert row["subject"]["roc_auc"]["value"] == plain[model]["subject"]["roc_auc"]["value"]
    assert list(found.figures) == ["figure.png"]


def test_the_rows_of_a_source_are_read_once_however_many_experiments_there_are(folder, monkeypatch):
    read: list[int] = []

    def counted(loaded: Any, manifest: Any) -> str:
        read.append(len(manifest))
        return digest_rows(loaded, manifest)

    monkeypatch.setattr(sweep_module, "digest_rows", counted)
    sweep(folder)
    assert read == [24]


def test_tables_and_figures_take_any_name_of_one_line(folder):
    name = 'a|b, $\\frac$ $z$ "q"'
    (folder / "sweep.yaml").write_text(SWEEP.replace("name: wide,", f"name: {json.dumps(name)},"))
    entry = build_table(*sweep(folder)).entry
    assert entry["rows"][1]["name"] == name
    assert name.replace("|", "\\|") in table_markdown(entry)
    assert [row[0] for row in csv.reader(io.StringIO(table_csv(entry)))][2] == name


def test_a_variant_that_failed_is_in_every_table(folder):
    entry = dict(json.loads(table(folder)))
    entry["failed"] = {"gone | lost": ["table.csv: is not there.", "more"]}
    lines = table_markdown(entry).splitlines()
    (line,) = [line for line in lines if "gone" in line]
    assert line.replace("\\|", "").count("|") == lines[4].count("|")
    [head, *rows] = csv.reader(io.StringIO(table_csv(entry)))
    assert rows[-1][0] == "gone | lost"
    assert rows[-1][head.index("failed")] == "table.csv: is not there.; more"
    assert len(rows[-1]) == len(head)


def test_text_stays_within_80_columns_and_nothing_is_minus_zero(folder):
    wide = "name: wide, overrides: {modalities.numbers.encoder.width: 9}"
    (folder / "sweep.yaml").write_text(SWEEP.replace(wide, f"name: {'w' * 80}"))
    entry = build_table(*sweep(folder)).entry
    assert max(map(len, table_text(entry).splitlines())) <= 80
    assert "+0.000 +.00 to +.00" in table_text(entry)
    assert "-0.000" not in table_markdown(entry)


def test_a_name_that_is_cut_keeps_its_mark(folder):
    entry = dict(json.loads(table(folder)))
    entry["rows"] = [
        {**row, "name": row["name"] + " and so on" * 7, "unit": "sample"} for row in entry["rows"]
    ]
    lines = [line for line in table_text(entry).splitlines() if "(LEAKAGE)" in line]
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    title = _plain("a" * 80 + ": AUC by subject (SIMULATED DATA)")
    assert len(title) == 60
    assert title.endswith("... (SIMULATED DATA)")
    assert _plain("b" * 80 + " (LEAKAGE)").endswith("bbb (LEAKAGE)")
