"""A report in plain words, for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fusionkit.errors import counted
from fusionkit.evaluation.metrics import label_of
from fusionkit.evaluation.missing import curve_text
from fusionkit.evaluation.report import LEAKAGE, SIMULATED
from fusionkit.recipe.schema import PRETRAINED
from fusionkit.recipe.task_nodes import OF_ALL_FOLDS, OF_OUTCOME, SHOWN, horizon_text

_COLUMN = 13


def report_text(report: Mapping[str, Any], width: int = 80) -> str:
    """Returns the report as plain text: who was tested, a table of models, whether fusion is worth it."""
    main = _shown(report)[0]
    curves, on_curves = curve_text(report, main, label_of(main), width)
    report = _without_blanked(report)
    paragraphs = [SIMULATED] if report["simulated"] else []
    paragraphs += [LEAKAGE] if report["unit"] == "sample" else []
    paragraphs.append(_cohort(report))
    blocks = [_wrap(paragraphs, width), _table(report, width), _wrap(_legend(report), width)]
    blocks.append(_wrap(_comparisons(report), width))
    blocks += [curves, _wrap(on_curves, width)]
    blocks.append(_wrap([text for text in report["warnings"] if text not in (SIMULATED, LEAKAGE)], width))
    return "\n\n".join(block for block in blocks if block) + "\n"


def _shown(report: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns the metrics that are shown, the main one first; of survival, those of its horizons, too."""
    if report["task"] == "survival":
        return tuple(next(iter(report["models"].values()))["subject"])
    return SHOWN[report["task"]]


def _without_blanked(report: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the report without the models that were tested with cells blanked: those make curves."""
    names = {name for curve in report.get("missing", ()) for name in curve["models"]}
    models = {name: model for name, model in report["models"].items() if name not in names}
    return {**report, "models": models, "differences": [d for d in report["differences"] if d["b"] in models]}


def _wrap(paragraphs: Sequence[str], width: int) -> str:
    return "\n".join(textwrap.fill(text, width, subsequent_indent="  ") for text in paragraphs)


def _cohort(report: Mapping[str, Any]) -> str:
    counts = report["counts"]
    classes = ", ".join(f"{count} {name}" for name, count in counts["subjects_by_class"].items())
    unknown = counts["subjects_without_outcome"]
    more = f", {unknown} of unknown outcome, not scored" if unknown else ""
    who, what = counted(counts["subjects"], "subject"), counted(counts["samples"], "sample")
    known = f" ({classes}{more})" if classes or more else ""
    return f"Tested: {who}{known} with {what}."


def _table(report: Mapping[str, Any], width: int) -> str:
    models = report["models"]
    longest = max(len(text) for name in models for text in ("model", name, _size(models[name])))
    metrics = _shown(report)
    cells = [text for m in models.values() for texts in _cells_of(m, metrics) for text in texts]
    heads = [label_of(metric) for metric in metrics]
    column = max([_COLUMN, *(len(text) + 2 for text in [*cells, *heads])])
    indent = min(longest + 2, max(width - len(metrics) * column, 16))
    per_block = max(1, (width - indent) // column)
    blocks = []
    for start in range(0, len(metrics), per_block):
        chosen = metrics[start : start + per_block]
        lines = [_line("model", [label_of(metric) for metric in chosen], indent, column)]
        for name, model in models.items():
            lines.extend(_model_lines(name, model, chosen, indent, column))
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _cells_of(model: Mapping[str, Any], metrics: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns a model's values, and their intervals."""
    estimates = {metric: model["subject"][metric] for metric in metrics}
    values = ["none" if e["value"] is None else _digits(e["value"], m, 3) for m, e in estimates.items()]
    ranges = []
    for metric, e in estimates.items():
        ends = [] if e["low"] is None else [_digits(e[end], metric, 2) for end in ("low", "high")]
        ranges.append(("-" if all(map(_is_plain, ends)) else " to ").join(ends))
    return values, ranges


def _digits(value: float, metric: str, decimals: int) -> str:
    """Writes a share by its decimals; what may be of any size by one significant digit more."""
    if metric in OF_OUTCOME or abs(value) >= 1000:
        return f"{value:.{decimals + 1}g}"
    return f"{value + 0.0:.{decimals}f}"


def _is_plain(text: str) -> bool:
    return text.replace(".", "").isdigit()


def _model_lines(
    name: str, model: Mapping[str, Any], metrics: Sequence[str], indent: int, column: int
) -> Iterator[str]:
    values, ranges = _cells_of(model, metrics)
    if len(name) >= indent:
        yield name
        name = ""
    yield _line(name, values, indent, column)
    yield _line(_size(model), ranges, indent, column)


def _size(model: Mapping[str, Any]) -> str:
    return f" {counted(model['n_subjects'], 'subject')}"


def _line(first: str, cells: Sequence[str], indent: int, column: int) -> str:
    return (first.ljust(indent) + "".join(cell.ljust(column) for cell in cells)).rstrip()


def _legend(report: Mapping[str, Any]) -> list[str]:
    models = list(report["models"].values())
    main = _shown(report)[0]
    n_folds = max((len(model["folds"]) for model in models), default=0)
    over = f", means over {n_folds} folds" if n_folds > 1 else ", of one fold"
    if report.get("split", "some") is None:  # other data: all of them are tested
        over = ""
    lines = [
        f"Values by subject{over}; below each, its {_percent(report)} interval "
        f"({report['resamples']} resamples of subjects)."
    ]
    if n_folds > 1:
        pooled = ((name, model["pooled"][main]["value"]) for name, model in report["models"].items())
        each = ", ".join(f"{name} {_number(value)}" for name, value in pooled)
        lines.append(
            f"{label_of(main)} is of the test folds pooled, mean over repeats."
            if main in OF_ALL_FOLDS
            else f"{label_of(main)} of the test folds pooled, mean over repeats: {each}."
        )
    if report["threshold"] == "validation":
        lines.append(_thresholds(report))
    elif report["threshold"] is not None:
        lines.append(
            f"A subject is called {report['classes'][-1]} from probability {report['threshold']:g} on."
        )
    lines += map(_by_horizon, report.get("horizons", ()))
    reasons = {
        f"{name}: {label_of(metric)} {model['subject'][metric]['reason']}."
        for name, model in report["models"].items()
        for metric in _shown(report)
        if model["subject"][metric]["value"] is None
    }
    lines += sorted(reasons)
    lines += _without_width(report)
    lines.append("Intervals say how much depends on who was tested; another training would differ, too.")
    if report["counts"]["samples"] != report["counts"]["subjects"]:
        each = "; ".join(
            f"{name} " + ", ".join(f"{label_of(m)} {_number(of_sample[m], m)}" for m in _shown(report)[:2])
            for name, of_sample in ((name, model["sample"]) for name, model in report["models"].items())
        )
        lines.append(f"By sample, without interval, since samples of one subject are alike: {each}.")
    return lines


def _thresholds(report: Mapping[str, Any]) -> str:
    """Says which thresholds the folds have, of each model."""
    ranges = []
    for name, model in report["models"].items():
        found = [fold["threshold"] for fold in model["folds"]]
        ends = dict.fromkeys(_number(end) for end in (min(found), max(found)))
        ranges.append(f"{name} {' to '.join(ends)}")
    return (
        f"A subject is called {report['classes'][-1]} from a probability on that was set on validation "
        f"subjects of each fold ({', '.join(ranges)})."
    )


def _by_horizon(entry: Mapping[str, Any]) -> str:
    """Says on how many the scores by a time rest, and what a Brier score is read against."""
    known = f"the state of {entry['known']} of {counted(entry['subjects'], 'subject')} is known"
    one = entry["brier_of_one_probability"]
    against = "" if one is None else f"; a Brier score of {one:.3f} is that of one probability for all"
    return f"By {horizon_text(entry['horizon'])}: {known}{against}."


def _without_width(report: Mapping[str, Any]) -> list[str]:
    """Says which intervals say nothing: resamples of subjects who are all called rightly have one value."""
    flat = [
        f"{name} {label_of(metric)}"
        for name, model in report["models"].items()
        for metric in _shown(report)
        if (found := model["subject"][metric])["low"] is not None and found["low"] == found["high"]
    ]
    if not flat:
        return []
    return [
        f"Every resample gives the same value of {', '.join(flat)}: an interval without width is no "
        "certainty, other subjects would differ."
    ]


def _comparisons(report: Mapping[str, Any]) -> list[str]:
    return [
        _sentence(entry, report) for entry in report["differences"] if entry["metric"] == _shown(report)[0]
    ]


def _sentence(entry: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    pretrained = str(entry["b"]).removesuffix(PRETRAINED)
    # a pretrain stage's own classifier is no modality
    other = (
        f"the {pretrained} alone" if pretrained == entry["b"] else f"the pretrained {pretrained} classifier"
    )
    value, low, high = entry["value"], entry["low"], entry["high"]
    label = label_of(entry["metric"])
    if low is None:
        return f"Fusion against {other}: the difference in {label} is {entry['reason']}."
    who = counted(entry["n_subjects"], "subject")
    bounds = f"{_percent(report)} interval {_number(low)} to {_number(high)}; {who}"
    if low > 0:
        return f"Fusion adds {_number(value)} {label} over {other} ({bounds})."
    if high < 0:
        return f"Fusion loses {_number(-value)} {label} against {other} ({bounds})."
    return f"Fusion is not shown to differ from {other} (difference in {label} {_number(value)}, {bounds})."


def _percent(report: Mapping[str, Any]) -> str:
    return f"{100 * report['interval']:g} %"


def _number(value: float | None, metric: str = "") -> str:
    """Writes three decimals; more where these would turn a small number into zero."""
    if value is None:
        return "none"
    if metric in OF_OUTCOME or abs(value) >= 1000:
        return _digits(value, metric, 3)
    text = f"{value + 0.0:.3f}"  # -0.0 becomes 0.0
    return f"{value:.1g}" if value and float(text) == 0 else text
