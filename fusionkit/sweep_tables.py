"""A sweep's table for people and programs: CSV, Markdown, and text for the terminal."""

from __future__ import annotations

import csv
import io
import re
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from fusionkit.errors import shorten
from fusionkit.evaluation.metrics import LABELS
from fusionkit.evaluation.report import SIMULATED
from fusionkit.recipe.task_nodes import OF_ALL_FOLDS, OF_OUTCOME, SHOWN

MARK_LENGTH = 13
"""Of what a row's name ends with, which stays where a name is cut: `, missing 0.3`, ` (LEAKAGE)`."""


def row_name(row: Mapping[str, Any]) -> str:
    """Returns a row's name as tables and figures show it; leakage is never without its word."""
    return f"{row['name']} (LEAKAGE)" if row["unit"] == "sample" else str(row["name"])


def table_csv(entry: Mapping[str, Any]) -> str:
    """Returns the table as CSV: a row per row, a column per figure."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    ends = ("value", "low", "high")
    head = ["row", "missing", "simulated", "split_unit", "n_subjects", "n_seeds", "n_folds"]
    metrics = SHOWN[entry["task"]]
    for metric in metrics:
        head += [metric, f"{metric}_low", f"{metric}_high", f"{metric}_pooled"]
        head += [f"{metric}_sd_seeds", f"{metric}_sd_folds", f"{metric}_paper"]
    compared = ["compared_with", "difference", "difference_low", "difference_high", "p", "p_holm", "failed"]
    writer.writerow([*head, *compared])
    for row in entry["rows"]:
        cells = [row["name"], row.get("missing"), str(entry["simulated"]).lower(), row["unit"]]
        cells += [row["n_subjects"], row["n_seeds"], row["n_folds"]]
        for metric in metrics:
            cells += [row["subject"][metric][end] for end in ends]
            cells += [row["pooled"][metric]["value"], row["sd_seeds"][metric], row["sd_folds"][metric]]
            cells.append(row["paper"].get(metric))
        difference = row["difference"] or {}
        cells += [*(difference.get(key) for key in ("reference", *ends, "p", "p_holm")), None]
        writer.writerow(["" if cell is None else cell for cell in cells])
    for name, problems in entry["failed"].items():
        writer.writerow([name, *[""] * (len(head) + len(compared) - 2), "; ".join(problems)])
    return text.getvalue()


def table_markdown(entry: Mapping[str, Any]) -> str:
    """Returns the table as Markdown, for people."""
    main = entry["metric"]
    others = [metric for metric in SHOWN[entry["task"]] if metric != main]
    shown = [main, *others[:1]]
    has_paper = any(row["paper"] for row in entry["rows"])
    lines = [f"# {entry['sweep']}", ""]
    lines += [f"**{SIMULATED}**", ""] if entry["simulated"] else []
    lines += [entry["description"], ""] if entry["description"] else []
    head = ["row", *(["missing"] if entry["curve"] else []), *(LABELS[metric] for metric in shown)]
    head += [f"{LABELS[metric]}, the paper" for metric in shown if has_paper and _has_paper(entry, metric)]
    head += ["sd over seeds", "sd over folds"]
    head += [f"{LABELS[main]} {_minus(entry)}", "p (Holm)"] if entry["references"] else []
    lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(_cells(row, entry, shown)) + " |" for row in entry["rows"]]
    blank = " |" * (len(head) - 2)
    for name, problems in entry["failed"].items():
        reason = " ".join(problems[0].split())
        shown = [text.replace("|", "\\|") for text in (name, f"failed: {reason}")]
        lines.append(f"| {' | '.join(shown)} |{blank}")
    lines += ["", *_legend(entry)]
    return "\n".join(lines) + "\n"


def table_text(entry: Mapping[str, Any], width: int = 80) -> str:
    """Returns the table as plain text for the terminal: the metric that is compared, and differences."""
    metric = entry["metric"]
    lines = [SIMULATED] if entry["simulated"] else []
    names = [_text_name(row) for row in entry["rows"]]
    values = [_short(row["subject"][metric], metric) for row in entry["rows"]]
    papers = [_number(row["paper"].get(metric), metric) for row in entry["rows"]]
    # what is in the outcome's unit may be long
    column = max([19, *(len(text) + 2 for text in values)])
    beside = max([7, *(len(text) + 2 for text in papers)]) if _has_paper(entry, metric) else 0
    indent = min(max([len(name) for name in names] + [4]) + 2, max(width - 20 - column - max(beside, 7), 20))
    head = ["row".ljust(indent), LABELS[metric].ljust(column), "paper".ljust(beside) if beside else ""]
    room = width - sum(map(len, head))
    lines.append("".join(head) + (shorten(_minus(entry), room) if entry["references"] else ""))
    for name, row, value, paper in zip(names, entry["rows"], values, papers, strict=True):
        cells = [shorten(name, indent - 1, MARK_LENGTH).ljust(indent), value.ljust(column)]
        cells.append(paper.ljust(beside) if beside else "")
        cells.append(_short(row["difference"], metric, "+") if row["difference"] else "")
        lines.append("".join(cells).rstrip())
    lines += [f"{name}: failed" for name in entry["failed"]]
    lines += [
        "",
        *(textwrap.fill(text, width, subsequent_indent="  ") for text in _legend(entry, is_text=True)),
    ]
    return "\n".join(lines)


def _text_name(row: Mapping[str, Any]) -> str:
    return f"{row_name(row)}, missing {row['missing']:g}" if "missing" in row else row_name(row)


def _short(estimate: Mapping[str, Any], metric: str, sign: str = "") -> str:
    if estimate["value"] is None or estimate["low"] is None:
        return "none"
    # only a leading zero: 10.50 stays
    low, high = (
        re.sub(r"^([+-]?)0\.", r"\1.", _round(estimate[end], 2, metric, sign)) for end in ("low", "high")
    )
    between = "-" if not sign and "e" not in low + high else " to "
    return f"{_round(estimate['value'], 3, metric, sign)} {low}{between}{high}"


def _round(value: float, digits: int, metric: str, sign: str = "") -> str:
    """Returns a number; what is large or in the outcome's unit has significant digits.

    What rounds to nothing has no minus.
    """
    if metric in OF_OUTCOME or abs(value) >= 1000:
        return f"{value + 0.0:{sign}.{digits + 1}g}"
    return f"{round(value, digits) + 0.0:{sign}.{digits}f}"


def _has_paper(entry: Mapping[str, Any], metric: str) -> bool:
    return any(metric in row["paper"] for row in entry["rows"])


def _cells(row: Mapping[str, Any], entry: Mapping[str, Any], shown: Sequence[str]) -> list[str]:
    main = entry["metric"]
    cells = [row_name(row), *([f"{row['missing']:g}"] if entry["curve"] else [])]
    cells += [_estimate(row["subject"][metric], metric) for metric in shown]
    cells += [_number(row["paper"].get(metric), metric) for metric in shown if _has_paper(entry, metric)]
    cells += [_number(row[sd][main], main) for sd in ("sd_seeds", "sd_folds")]
    if entry["references"]:
        difference = row["difference"]
        cells += ["", ""] if difference is None else [_difference(row, entry), _p(difference, entry)]
    return [cell.replace("|", "\\|") for cell in cells]


def _estimate(estimate: Mapping[str, Any], metric: str, sign: str = "") -> str:
    if estimate["value"] is None:
        return str(estimate.get("reason", "none"))
    if estimate["low"] is None:
        return _round(estimate["value"], 3, metric, sign)
    value, low, high = (_round(estimate[end], 3, metric, sign) for end in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def _number(value: float | None, metric: str) -> str:
    return "" if value is None else _round(value, 3, metric)


def _p(difference: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Returns a corrected p-value; of the smallest that so many resamples can give, that it is no larger."""
    if difference["p_holm"] is None:
        return ""
    is_least = difference["p"] <= 2 / (entry["resamples"] + 1)
    return ("≤ " if is_least else "") + f"{difference['p_holm']:.3f}"


def _minus(entry: Mapping[str, Any]) -> str:
    return f"minus {entry['reference']}" if entry["reference"] else "minus the row compared with"


def _difference(row: Mapping[str, Any], entry: Mapping[str, Any]) -> str:
    """Returns a difference, with the name of the other row where it is not the table's reference."""
    other = row["difference"]["reference"]
    return _estimate(row["difference"], entry["metric"], "+") + (
        "" if other == entry["reference"] else f" ({other})"
    )


def _legend(entry: Mapping[str, Any], *, is_text: bool = False) -> list[str]:
    seeds = ", ".join(map(str, entry["seeds"]))
    where = "beside it" if is_text else "in brackets"
    pooled = [
        f" {LABELS[metric]} is of the folds pooled."
        for metric in SHOWN[entry["task"]]
        if metric in OF_ALL_FOLDS
    ]
    lines = [
        f"By subject: mean over folds and seeds ({seeds}), {where} the {100 * entry['interval']:g} % "
        f"interval from {entry['resamples']} resamples of subjects." + "".join(pooled)
    ]
    if entry["references"]:
        others = [
            f"{name} with {other}"
            for name, other in entry["references"].items()
            if other != entry["reference"]
        ]
        lines.append(
            "Differences are paired on common subjects"
            + ("; their p-values are in table.md," if is_text else "; p")
            + " after Holm's correction for all comparisons"
            + (" at one missing rate." if entry["curve"] else ".")
            + (f" Compared otherwise: {'; '.join(others)}." if entry["reference"] and others else "")
        )
    lines.append(
        "Intervals and p-values say how much depends on who was tested; the learned models are held as they "
        "are, and another training would give other values."
    )
    return [*lines, *(f"- {warning}" for warning in entry["warnings"] if warning != SIMULATED)]
