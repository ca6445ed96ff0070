"""What a sweep leaves: table.md, table.csv, table.json and figures, from its experiments' results."""

from __future__ import annotations

import csv
import io
import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fusionkit.errors import shorten
from fusionkit.evaluation.compare import METRICS, Repetition, Row, compare, judge_row, row_entry
from fusionkit.evaluation.figures import LABELS, draw_curves, draw_roc, draw_rows
from fusionkit.evaluation.report import SIMULATED
from fusionkit.evaluation.roc import roc_curve
from fusionkit.learned import json_bytes
from fusionkit.recipe.load import dump_yaml
from fusionkit.recipe.sweep import LoadedSweep, Task, VariantNode, missing_name, models_of
from fusionkit.registry import Registry
from fusionkit.run import make_run_folder, point_latest, write_environment
from fusionkit.store import write_atomic
from fusionkit.sweep import Experiments

NO_CURVE = 0.0
"""The only rate of a sweep without `curve`: nothing is blanked."""


@dataclass(frozen=True)
class SweepTable:
    """A sweep's table.

    Args:
        entry: All of it as JSON values.
        rows: Each rate's rows, as they were compared.
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
    rows: list[dict[str, Any]] = []
    figures: dict[str, bytes] = {}
    if variants:
        rates = _rates(loaded) if sweep.curve is not None else [NO_CURVE]
        compared = {rate: _compare(loaded, done, variants, rate) for rate in rates}
        rows = [
            _entry(row, variant, rate if sweep.curve is not None else None)
            for variant in variants
            for rate, found in compared.items()
            for row in found
            if row.name == variant.name
        ]
        figures = _draw(loaded, done, variants, rows, is_simulated=results[0].is_simulated)
    evaluation = loaded.tasks[0].loaded.recipe.evaluation
    is_simulated = any(result.is_simulated for result in results)
    warnings = [SIMULATED] if is_simulated else []
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
        figures,
    )


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
            found.append(Repetition(folds, result.outcomes, task.loaded.recipe.evaluation))
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
    )


def _entry(row: Row, variant: VariantNode, rate: float | None) -> dict[str, Any]:
    entry = row_entry(row)
    more = {} if rate is None else {"missing": rate}
    return {"name": entry.pop("name"), **more, "model": variant.model, "paper": dict(variant.paper), **entry}


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
        figures = {"figure.png": draw_rows(rows, sweep.metric, title)}
    if sweep.roc and len(loaded.tasks[0].loaded.source.classes) == 2:
        judged = {
            variant.name: judge_row(_repetitions(loaded, done, variant, NO_CURVE)) for variant in variants
        }
        found = {name: roc_curve(folds) for name, folds in judged.items()}
        known = {name: curve for name, curve in found.items() if curve is not None}
        if known:
            figures["roc.png"] = draw_roc(known, title.replace(LABELS[sweep.metric], "ROC"))
    return figures


def make_sweep_folder(runs: Path, name: str) -> Path:
    """Makes the folder that sweeps of a name go into; ResourceError at once where it cannot be written."""
    folder = make_run_folder(runs, name)
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    os.replace(folder, unfinished)
    return unfinished


def write_sweep(unfinished: Path, loaded: LoadedSweep, table: SweepTable, registry: Registry) -> Path:
    """Writes all that a sweep leaves, and gives its folder its name; returns it."""
    write_atomic(unfinished / "sweep.yaml", loaded.text.encode())
    for number, task in enumerate(loaded.tasks, 1):
        words = re.sub(r"[^a-z0-9]+", "_", label_of(task, loaded).lower()).strip("_")[:60]
        write_atomic(
            unfinished / "recipes" / f"{number:03}_{words}.yaml", dump_yaml(task.loaded.resolved).encode()
        )
    write_environment(unfinished, loaded.tasks[0].loaded, registry)
    write_table(unfinished, table)
    folder = unfinished.with_name(unfinished.name.removeprefix(".").removesuffix(".unfinished"))
    os.replace(unfinished, folder)
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
    head = ["row", "missing", "simulated", "n_subjects", "n_seeds", "n_folds"]
    for metric in METRICS:
        head += [metric, f"{metric}_low", f"{metric}_high", f"{metric}_pooled"]
        head += [f"{metric}_sd_seeds", f"{metric}_sd_folds", f"{metric}_paper"]
    compared = ["difference", "difference_low", "difference_high", "p", "p_holm"]
    writer.writerow([*head, *compared])
    for row in entry["rows"]:
        cells = [row["name"], row.get("missing"), str(entry["simulated"]).lower()]
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
    return f"{row['name']}, missing {row['missing']:g}" if "missing" in row else str(row["name"])


def _short(estimate: Mapping[str, Any], sign: str = "") -> str:
    if estimate["value"] is None or estimate["low"] is None:
        return "none"
    ends = (f"{estimate[end]:{sign}.2f}".replace("0.", ".", 1) for end in ("low", "high"))
    return f"{estimate['value']:{sign}.3f} {'-'.join(ends) if not sign else ' to '.join(ends)}"


def _has_paper(entry: Mapping[str, Any], metric: str) -> bool:
    return any(metric in row["paper"] for row in entry["rows"])


def _cells(row: Mapping[str, Any], entry: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    main = entry["metric"]
    cells = [row["name"], *([f"{row['missing']:g}"] if entry["curve"] else [])]
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
