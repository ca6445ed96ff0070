"""An unfinished run's folder says so, and why; every command that meets one says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fusionkit.errors import DataError, PluginError, RecipeError, TrainingError, UsageError
from fusionkit.registry import Registry
from fusionkit.run_folder import (
    find_unfinished,
    followed,
    hinting_at_plugins,
    is_finished,
    marked_unfinished,
    why_unfinished,
)


def make_run(runs: Path, name: str, *, finished: bool = False, recipe: str = "study") -> Path:
    folder = runs / recipe / name
    (folder / "model").mkdir(parents=True)
    (folder / "resolved.yaml").touch()
    if finished:
        (folder / "model" / "index.json").touch()
    return folder


@pytest.mark.parametrize(
    ("error", "status", "problems"),
    [
        (TrainingError(["a", "b"]), "failed after ", ["a", "b"]),
        (KeyboardInterrupt(), "interrupted after ", []),
        (ValueError("x"), "failed after ", ["ValueError('x')"]),
    ],
)  # fmt: skip
def test_what_stops_a_run_stands_in_its_folder(tmp_path, error, status, problems):
    marker = tmp_path / "unfinished.json"

    def stop() -> None:
        with marked_unfinished(tmp_path, {"store": "s"}):
            assert json.loads(marker.read_text())["status"] == "still running, or killed"
            raise error

    with pytest.raises(type(error)):
        stop()
    node = json.loads(marker.read_text())
    assert node["status"].startswith(status)
    assert (node["problems"], node["store"]) == (problems, "s")
    assert node["continue"] == f"fusionkit resume {tmp_path}"
    line = json.loads((tmp_path / "log.jsonl").read_text())
    assert (line["event"], line["problems"]) == ("run_stopped", problems)
    assert line["status"] == node["status"]


def test_a_run_that_ends_well_has_no_marker(tmp_path):
    with marked_unfinished(tmp_path, {}):
        assert [path.name for path in tmp_path.iterdir()] == ["unfinished.json"]
    assert list(tmp_path.iterdir()) == []


def test_what_stops_a_run_is_not_hidden_by_a_folder_that_is_gone(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()

    def stop() -> None:
        with marked_unfinished(folder, {}):
            (folder / "unfinished.json").unlink()
            folder.rmdir()
            folder.touch()
            raise TrainingError("stage fuse: the loss")

    with pytest.raises(TrainingError, match="the loss"):
        stop()


# sentences


def test_an_unfinished_run_says_how_it_ended(tmp_path):
    folder = make_run(tmp_path, "20260101T000000Z-aaaaaa")
    assert why_unfinished(folder) == (
        f"{folder}: this run is not finished (killed). Continue it: fusionkit resume {folder}"
    )
    (folder / "unfinished.json").write_text('{"status": "interrupted after 3 s"}')
    assert "is not finished (interrupted after 3 s). " in why_unfinished(folder)
    (folder / "unfinished.json").write_text("{")
    assert "is not finished (killed). " in why_unfinished(folder)


def test_latest_before_any_run_has_finished_names_the_newest(tmp_path):
    make_run(tmp_path, "20260101T000000Z-aaaaaa")
    newest = make_run(tmp_path, "20260102T000000Z-aaaaaa")
    assert why_unfinished(tmp_path / "study" / "latest") == (
        f"{tmp_path}/study/latest: no run of this recipe has finished yet. "
        f"Continue the newest: fusionkit resume {newest}"
    )


def test_latest_that_leads_nowhere_names_the_newest_that_is_there(tmp_path):
    make_run(tmp_path, "20260101T000000Z-aaaaaa", finished=True)
    newest = make_run(tmp_path, "20260102T000000Z-aaaaaa", finished=True)
    (tmp_path / "study" / "latest").symlink_to("gone")
    assert why_unfinished(tmp_path / "study" / "latest") == (
        f"{tmp_path}/study/latest: it points to a run that is gone. The newest that is there: {newest}"
    )


def test_the_folder_of_all_runs_is_told_apart(tmp_path):
    make_run(tmp_path, "20260101T000000Z-aaaaaa", finished=True)
    assert why_unfinished(tmp_path / "study") == (
        f"{tmp_path}/study: the folder of all runs of a recipe. Give one, such as {tmp_path}/study/latest."
    )


def test_a_folder_that_is_not_there_names_those_that_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert why_unfinished(Path("runs/study/latest")) == (
        "runs/study/latest: there is no such run folder. Give one, such as runs/NAME/latest."
    )
    run = make_run(Path("runs"), "20260101T000000Z-aaaaaa", finished=True)
    (run.parent / "latest").symlink_to(run.name)
    assert why_unfinished(Path("runs/study/lates")) == (
        "runs/study/lates: there is no such run folder. Known: runs/study/latest."
    )
    assert why_unfinished(Path("runs/stduy/latest")) == (
        "runs/stduy/latest: there is no such run folder. Known: runs/study/latest."
    )


def test_any_other_folder_is_no_run(tmp_path):
    assert why_unfinished(tmp_path) == (
        f"{tmp_path}: no finished run (no model/index.json). Give one, such as runs/NAME/latest."
    )


# which run is continued


def test_the_newest_of_all_recipes_is_continued(tmp_path):
    make_run(tmp_path, "20260101T000000Z-aaaaaa", recipe="zebra")
    newest = make_run(tmp_path, "20260102T000000Z-aaaaaa", recipe="ant")
    (newest.parent / "latest").symlink_to(newest.name)
    assert find_unfinished(None, tmp_path) == newest
    assert find_unfinished(newest.parent / "latest", tmp_path) == newest
    assert followed(newest.parent / "latest") == newest
    assert not is_finished(newest)


def test_what_is_finished_or_no_run_is_not_continued(tmp_path):
    with pytest.raises(UsageError) as caught:
        find_unfinished(None, tmp_path / "runs")
    assert str(caught.value) == f"resume: there is no run in {tmp_path}/runs. Start one: fusionkit run RECIPE"
    make_run(tmp_path, "20260101T000000Z-aaaaaa")
    newest = make_run(tmp_path, "20260102T000000Z-aaaaaa", finished=True)
    with pytest.raises(UsageError) as caught:
        find_unfinished(None, tmp_path)
    assert str(caught.value) == f"resume: nothing to continue, the newest run is finished ({newest})."
    with pytest.raises(UsageError) as caught:
        find_unfinished(newest, tmp_path)
    assert str(caught.value) == f"resume: nothing to continue, this run is finished ({newest})."
    with pytest.raises(DataError, match="no finished run"):
        find_unfinished(tmp_path, tmp_path)


# plugins that the run had


def test_a_run_whose_recipe_is_not_understood_names_the_plugins_that_are_not_loaded_now(tmp_path):
    registry = Registry.discover(["toys"])
    loaded = [*registry.plugins, "somewhere/else/toys.py"]  # the same plugin, by another path
    versions = dict.fromkeys([*loaded, "my/signals.py"], "1")
    (tmp_path / "environment.json").write_text(json.dumps({"plugins": versions}))
    with pytest.raises(PluginError) as caught, hinting_at_plugins(tmp_path, registry):
        raise RecipeError(
            [
                "resolved.yaml:9: head.use: there is no head of that name ('signal'). Known: concat_mlp.",
                "override 'source.use=mani': source.use: there is no source of that name ('mani').",
                "resolved.yaml:12: stages: something else.",
            ]
        )
    # not that another name is nearest to what the plugin offered
    assert list(caught.value.problems) == [
        f"{tmp_path}: the run had the plugin 'my/signals.py', which is not loaded now. Name it before the "
        "command, `fusionkit -p my/signals.py ...`, or install it.",
        "override 'source.use=mani': source.use: there is no source of that name ('mani').",
        "resolved.yaml:12: stages: something else.",
    ]


@pytest.mark.parametrize("text", [None, "{", "[]", '{"plugins": 3}'])
def test_without_a_list_of_plugins_there_is_nothing_to_hint_at(tmp_path, text):
    if text is not None:
        (tmp_path / "environment.json").write_text(text)
    with pytest.raises(RecipeError) as caught, hinting_at_plugins(tmp_path, Registry()):
        raise RecipeError("no encoder of that name.")
    assert str(caught.value) == "no encoder of that name."
