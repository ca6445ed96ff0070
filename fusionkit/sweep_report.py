"""What a sweep leaves: table.md, table.csv, table.json and figures, from its experiments' results."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit.errors import shorten
from fusionkit.evaluation.compare import METRICS, Repetition, Row, compare, judge_row, row_entry
from fusionkit.evaluation.figures import draw_curves, draw_roc, draw_rows
from fusionkit.evaluation.metrics import LABELS
from fusionkit.evaluation.report import ENOUGH, LEAKAGE, SIMULATED
from fusionkit.evaluation.roc import roc_curve
from fusionkit.learned import json_bytes
from fusionkit.recipe.load import dump_yaml
from fusionkit.recipe.schema import missing_name
from fusionkit.recipe.sweep import LoadedSweep, Task, VariantNode, models_of
from fusionkit.registry import Registry
from fusionkit.run import write_environment
from fusionkit.run_folder import hidden_until_whole, make_run_folder, point_latest
from fusionkit.store import write_atomic
from fusionkit.sweep import Experiments

NO_CURVE = 0.0
"""The only rate of a sweep without `curve`: nothing is blanked."""


@dataclass(frozen=True)
class SweepTable:
    """A sweep's table.

    Args:
        entry: All of it as JSON values.
        figures: File name -> PNG.
    """

    entry: Mapping[str, Any]
    figures: Mapping[str, bytes]


def label_of(task: Task, loaded: LoadedSweep) -> str:
    """Returns an experiment's label: the variant's name, and the seed where there are several."""
    return f"{task.variant.name}, seed {task.seed}" if len(loaded.sweep.seeds) > 1 else task.variant.name


def build_table(loaded: LoadedSweep, done: Experiments) -> SweepTable:
    """Compares what the experiments predict; a variant without result is named with its reason."""
    sweep = loaded.sweep
    failed = {
        task.variant.name: list(error.problems)
        for task in loaded.tasks
        if (error := done.failures.get(label_of(task, loaded))) is not None
    }
    variants = [variant for variant in sweep.variants if variant.name not in failed]
    results = list(done.results.values())
    rates = _rates(loaded) if sweep.curve is not None else [NO_CURVE]
    compared = {rate: _compare(loaded, done, variants, rate) for rate in rates}
    rows = [
        _entry(row, variant, rate if sweep.curve is not None else None, unit=_unit(loaded, variant))
        for variant in variants
        for rate, found in compared.items()
        for row in found
        if row.name == variant.name
    ]
    evaluation = loaded.tasks[0].loaded.recipe.evaluation
    is_simulated = any(result.is_simulated for result in results)
    warnings = [SIMULATED] if is_simulated else []
    leaking = list(dict.fromkeys(row["name"] for row in rows if row["unit"] == "sample"))
    warnings += [f"{LEAKAGE} Rows: {', '.join(leaking)}."] if leaking else []
    warnings += _notes(loaded, rows)
    warnings += dict.fromkeys(text for result in results for text in result.warnings)
    return SweepTable(
        {
            "sweep": sweep.name,
            "description": sweep.description,
            "simulated": is_simulated,
            "metric": sweep.metric,
            "reference": sweep.reference,
            "curve": sweep.curve,
            "seeds": list(sweep.seeds) or sorted({task.seed for task in loaded.tasks}),
            "overrides": list(loaded.overrides),
            "classes": list(loaded.tasks[0].loaded.source.classes),
            "interval": evaluation.interval,
            "resamples": evaluation.resamples,
            "rows": rows,
            "failed": failed,
            "warnings": warnings,
        },
        _draw(loaded, done, variants, rows, is_simulated=is_simulated),
    )


def _unit(loaded: LoadedSweep, variant: VariantNode) -> str:
    """Returns what a variant's split keeps apart: subject, or sample, which is leakage."""
    recipe = next(task.loaded.recipe for task in loaded.tasks if task.variant is variant)
    return str(getattr(recipe.split, "unit", "subject"))


def _notes(loaded: LoadedSweep, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Says where few subjects were tested, and where a comparison is not of all that a row tested."""
    notes = []
    fewest = min((row["n_subjects"] for row in rows), default=0)
    if fewest < 2 * ENOUGH:
        notes.append(
            f"Few subjects were tested ({fewest} in the smallest row): these figures are uncertain, and a "
            "difference that exists can easily be missed."
        )
    sources = {t.variant.name: (t.loaded.source_plan.use, t.loaded.source_plan.options) for t in loaded.tasks}
    for row in rows:
        difference, reference = row["difference"], loaded.sweep.reference
        if difference is None:
            continue
        if difference["n_subjects"] < row["n_subjects"]:
            notes.append(
                f"{row['name']}: compared with {reference} on {difference['n_subjects']} common subjects, "
                f"and tested on {row['n_subjects']}."
            )
        elif sources[row["name"]] != sources[str(reference)]:
            notes.append(
                f"{row['name']}: its source has other options than that of {reference}; subjects of one id "
                "are taken for the same."
            )
    return list(dict.fromkeys(notes))


def _rates(loaded: LoadedSweep) -> list[float]:
    """Returns the rates that every variant of a curve is tested at, nothing blanked first."""
    curve = str(loaded.sweep.curve)
    rates = [set(task.loaded.recipe.evaluation.missing.get(curve, ())) for task in loaded.tasks]
    return [NO_CURVE, *sorted(set.intersection(*rates) - {NO_CURVE})]


def _model(loaded: LoadedSweep, task: Task, rate: float) -> str:
    model = task.variant.model or models_of(task.loaded)[0]
    return model if rate == NO_CURVE else missing_name(model, str(loaded.sweep.curve), rate)


def _repetitions(
    loaded: LoadedSweep, done: Experiments, variant: VariantNode, rate: float
) -> list[Repetition]:
    found = []
    for task in loaded.tasks:
        if task.variant is variant:
            result = done.results[label_of(task, loaded)]
            folds = result.predictions[_model(loaded, task, rate)]
            evaluation = task.loaded.recipe.evaluation
            draws = 1 if rate == NO_CURVE else evaluation.missing_draws
            found.append(Repetition(folds, result.outcomes, evaluation, draws))
    return found


def _compare(
    loaded: LoadedSweep, done: Experiments, variants: Sequence[VariantNode], rate: float
) -> list[Row]:
    evaluation = loaded.tasks[0].loaded.recipe.evaluation
    return compare(
        {variant.name: _repetitions(loaded, done, variant, rate) for variant in variants},
        next(iter(done.results.values())).classes,
        loaded.sweep.metric,
        loaded.sweep.reference,
        resamples=evaluation.resamples,
        interval=evaluation.interval,
        seed=loaded.tasks[0].loaded.recipe.seed,
    )


def _entry(row: Row, variant: VariantNode, rate: float | None, *, unit: str) -> dict[str, Any]:
    entry = row_entry(row)
    more = {"unit": unit} if rate is None else {"unit": unit, "missing": rate}
    return {"name": entry.pop("name"), **more, "model": variant.model, "paper": dict(variant.paper), **entry}


def _name(row: Mapping[str, Any]) -> str:
    """Returns a row's name as tables and figures show it; leakage is never without its word."""
    return f"{row['name']} (LEAKAGE)" if row["unit"] == "sample" else str(row["name"])


def _draw(
    loaded: LoadedSweep,
    done: Experiments,
    variants: Sequence[VariantNode],
    rows: Sequence[Mapping[str, Any]],
    *,
    is_simulated: bool,
) -> dict[str, bytes]:
    sweep = loaded.sweep
    title = f"{sweep.name}: {LABELS[sweep.metric]} by subject" + (" (SIMULATED DATA)" if is_simulated else "")
    if sweep.curve is not None:
        curves = {
            variant.name: [
                (row["missing"], row["subject"][sweep.metric]) for row in rows if row["name"] == variant.name
            ]
            for variant in variants
        }
        figures = {"figure.png": draw_curves(curves, sweep.metric, f"share of {sweep.curve} blanked", title)}
    else:
        named = [{**row, "name": _name(row)} for row in rows]
        figures = {"figure.png": draw_rows(named, sweep.metric, title)}
    classes = loaded.tasks[0].loaded.source.classes
    if sweep.roc and len(classes) == 2:
        judged = {
            each.name: judge_row(_repetitions(loaded, done, each, NO_CURVE), classes) for each in variants
        }
        evaluation = loaded.tasks[0].loaded.recipe.evaluation
        found = {
            name: roc_curve(folds, resamples=evaluation.resamples, interval=evaluation.interval)
            for name, folds in judged.items()
        }
        known = {name: curve for name, curve in found.items() if curve is not None}
        if known:
            figures["roc.png"] = draw_roc(known, title.replace(LABELS[sweep.metric], "ROC"))
    return figures


def check_writable(runs: Path, name: str) -> None:
    """Raises ResourceError at once where a sweep's folder could not be written."""
    make_run_folder(runs, name).rmdir()


def write_sweep(runs: Path, loaded: LoadedSweep, table: SweepTable, registry: Registry) -> Path:
    """Writes all that a sweep leaves into a folder, which has its name when it is whole; returns it."""
    folder = make_run_folder(runs, loaded.sweep.name)
    with hidden_until_whole(folder) as unfinished:
        write_atomic(unfinished / "sweep.yaml", loaded.text.encode())
        for number, task in enumerate(loaded.tasks, 1):
            words = re.sub(r"[^a-z0-9]+", "_", label_of(task, loaded).lower()).strip("_")[:60]
            path = unfinished / "recipes" / f"{number:03}_{words}.yaml"
            write_atomic(path, dump_yaml(task.loaded.resolved).encode())
        write_environment(unfinished, loaded.tasks[0].loaded, registry)
        write_table(unfinished, table)
    point_latest(folder)
    return folder


def write_table(folder: Path, table: SweepTable) -> None:
    """Writes table.json, table.csv, table.md and the figures into a folder."""
    write_atomic(folder / "table.json", json_bytes(table.entry))
    write_atomic(folder / "table.csv", table_csv(table.entry).encode())
    for name, image in table.figures.items():
        write_atomic(folder / name, image)
    write_atomic(folder / "table.md", table_markdown(table.entry).encode())


def table_csv(entry: Mapping[str, Any]) -> str:
    """Returns the table as CSV: a row per row, a column per figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("value", "low", "high")
    head = ["row", "missing", "simulated", "split_unit", "n_subjects", "n_seeds", "n_folds"]
    for metric in METRICS:
        head += [metric, f"{metric}_low", f"{metric}_high", f"{metric}_pooled"]
        head += [f"{metric}_sd_seeds", f"{metric}_sd_folds", f"{metric}_paper"]
    compared = ["difference", "difference_low", "difference_high", "p", "p_holm"]
    writer.writerow([*head, *compared])
    for row in entry["rows"]:
        cells = [row["name"], row.get("missing"), str(entry["simulated"]).lower(), row["unit"]]
        cells += [row["n_subjects"], row["n_seeds"], row["n_folds"]]
        for metric in METRICS:
            cells += [row["subject"][metric][end] for end in ends]
            cells += [row["pooled"][metric]["value"], row["sd_seeds"][metric], row["sd_folds"][metric]]
            cells.append(row["paper"].get(metric))
        difference = row["difference"] or {}
        cells += [difference.get(key) for key in (*ends, "p", "p_holm")]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return text.getvalue()


def table_markdown(entry: Mapping[str, Any]) -> str:
    """Returns the table as Markdown, for people."""
    main = entry["metric"]
    shown = [main, "roc_auc" if main != "roc_auc" else "accuracy"]
    has_paper = any(row["paper"] for row in entry["rows"])
    lines = [f"# {entry['sweep']}", ""]
    lines += [f"**{SIMULATED}**", ""] if entry["simulated"] else []
    lines += [entry["description"], ""] if entry["description"] else []
    head = ["row", *(["missing"] if entry["curve"] else []), *(LABELS[metric] for metric in shown)]
    head += [f"{LABELS[metric]}, the paper" for metric in shown if has_paper and _has_paper(entry, metric)]
    head += ["sd over seeds", "sd over folds"]
    head += [f"{LABELS[main]} minus {entry['reference']}", "p (Holm)"] if entry["reference"] else []
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cells(row, entry, shown)) + " |" for row in entry["rows"]]
    lines += [f"| {name} | failed: {problems[0]} |" for name, problems in entry["failed"].items()]
    lines += ["", *_legend(entry)]
    return "\n".join(lines) + "\n"


def table_text(entry: Mapping[str, Any], width: int = 80) -> str:
    """Returns the table as plain text for the terminal: the metric that is compared, and differences."""
    metric = entry["metric"]
    lines = [SIMULATED] if entry["simulated"] else []
    names = [_text_name(row) for row in entry["rows"]]
    indent = min(max([len(name) for name in names] + [4]) + 2, width - 44)
    head = [
        "row".ljust(indent),
        LABELS[metric].ljust(19),
        "paper".ljust(7) if _has_paper(entry, metric) else "",
    ]
    lines.append("".join(head) + (f"minus {entry['reference']}" if entry["reference"] else ""))
    for name, row in zip(names, entry["rows"], strict=True):
        cells = [shorten(name, indent - 1).ljust(indent), _short(row["subject"][metric]).ljust(19)]
        cells.append(_number(row["paper"].get(metric)).ljust(7) if _has_paper(entry, metric) else "")
        lines.append("".join([*cells, _short(row["difference"], "+") if row["difference"] else ""]).rstrip())
    lines += [f"{name}: failed" for name in entry["failed"]]
    lines += ["", *(textwrap.fill(text, width, subsequent_indent="  ") for text in _legend(entry))]
    return "\n".join(lines)


def _text_name(row: Mapping[str, Any]) -> str:
    return f"{_name(row)}, missing {row['missing']:g}" if "missing" in row else _name(row)


def _short(estimate: Mapping[str, Any], sign: str = "") -> str:
    if estimate["value"] is None or estimate["low"] is None:
        return "none"
    ends = (f"{estimate[end]:{sign}.2f}".replace("0.", ".", 1) for end in ("low", "high"))
    return f"{estimate['value']:{sign}.3f} {'-'.join(ends) if not sign else ' to '.join(ends)}"


def _has_paper(entry: Mapping[str, Any], metric: str) -> bool:
    return any(metric in row["paper"] for row in entry["rows"])


def _cells(row: Mapping[str, Any], entry: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    main = entry["metric"]
    cells = [_name(row), *([f"{row['missing']:g}"] if entry["curve"] else [])]
    cells += [_estimate(row["subject"][metric]) for metric in shown]
    cells += [_number(row["paper"].get(metric)) for metric in shown if _has_paper(entry, metric)]
    cells += [_number(row["sd_seeds"][main]), _number(row["sd_folds"][main])]
    if entry["reference"]:
        difference = row["difference"]
        cells += ["", ""] if difference is None else [_estimate(difference, "+"), _p(difference["p_holm"])]
    return [cell.replace("|", "\\|") for cell in cells]


def _estimate(estimate: Mapping[str, Any], sign: str = "") -> str:
    if estimate["value"] is None:
        return str(estimate.get("reason", "none"))
    if estimate["low"] is None:
        return format(estimate["value"], f"{sign}.3f")
    return f"{estimate['value']:{sign}.3f} [{estimate['low']:{sign}.3f}, {estimate['high']:{sign}.3f}]"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _p(value: float | None) -> str:
    return "" if value is None else "< .001" if value < 0.001 else f"{value:.3f}"


def _legend(entry: Mapping[str, Any]) -> list[str]:
    seeds = ", ".join(map(str, entry["seeds"]))
    lines = [
        f"By subject: mean over folds and seeds ({seeds}), in brackets the {100 * entry['interval']:g} % "
        f"interval from {entry['resamples']} resamples of subjects."
    ]
    if entry["reference"]:
        lines.append(
            f"Differences are paired on common subjects; p after Holm's correction for all comparisons with "
            f"{entry['reference']}" + (" at one missing rate." if entry["curve"] else ".")
        )
    return [*lines, *(f"- {warning}" for warning in entry["warnings"] if warning != SIMULATED)]
