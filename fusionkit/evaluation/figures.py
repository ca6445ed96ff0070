"""Figures of a comparison: rows with intervals, curves over missing rates, ROC curves."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fusionkit.errors import shorten
from fusionkit.evaluation.metrics import LABELS
from fusionkit.evaluation.roc import GRID, RocCurve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito 2008: told apart without red-green vision, and by line style in print
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", "-.", ":")
MOST_BANDS = 5
"""Beyond, bands of ROC curves would hide them; the table has the intervals. The paper's figure 6 has 5."""
LONGEST_NAME = 60
"""Characters of a name or a title; longer ones would leave no room for what is drawn."""
MARK_LENGTH = 17
"""Of ` (SIMULATED DATA)`, the longest mark."""
_DOTS = 130


def draw_rows(rows: Sequence[Mapping[str, Any]], metric: str, title: str) -> bytes:
    """Returns a PNG: one line per row with its interval, the paper's number as an open diamond.

    Args:
        rows: Entries of the table, with `name`, `subject` and `paper`.
        metric: What is drawn.
        title: Above it.
    """
    figure, axes = _figure(7.5, 1.3 + 0.32 * len(rows))
    for place, row in enumerate(rows):
        estimate = row["subject"][metric]
        if estimate["value"] is not None:
            low, high = estimate["low"], estimate["high"]
            if low is not None:
                axes.plot([low, high], [place, place], color=COLOURS[0], linewidth=2)
            axes.plot([estimate["value"]], [place], "o", color=COLOURS[0])
        if metric in row["paper"]:
            axes.plot([row["paper"][metric]], [place], "D", color=COLOURS[1], markerfacecolor="none")
    axes.plot([], [], "o-", color=COLOURS[0], label="here, interval over subjects")
    if any(metric in row["paper"] for row in rows):
        axes.plot([], [], "D", color=COLOURS[1], markerfacecolor="none", label="the paper")
    axes.set_yticks(range(len(rows)), [_plain(row["name"]) for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(LABELS[metric])
    axes.grid(axis="x", alpha=0.3)
    return _finish(figure, axes, title)


def draw_curves(
    curves: Mapping[str, Sequence[tuple[float, Mapping[str, Any]]]], metric: str, over: str, title: str
) -> bytes:
    """Returns a PNG: one curve per name over the rates, with bands.

    Args:
        curves: Name -> (rate, estimate) in rising order.
        metric: What the estimates are of.
        over: What the rates are of.
        title: Above it.
    """
    figure, axes = _figure(8.0, 4.8)
    for number, (name, points) in enumerate(curves.items()):
        known = [(rate, e) for rate, e in points if e["value"] is not None]
        rates = [rate for rate, _ in known]
        colour, style = _look(number)
        axes.plot(
            rates,
            [e["value"] for _, e in known],
            marker=".",
            label=_plain(name),
            color=colour,
            linestyle=style,
        )
        banded = [(rate, e["low"], e["high"]) for rate, e in known if e["low"] is not None]
        if banded and len(curves) <= len(COLOURS):
            where, low, high = (list(ends) for ends in zip(*banded, strict=True))
            axes.fill_between(where, low, high, color=colour, alpha=0.1)
    axes.set_xlabel(_plain(over))
    axes.set_ylabel(LABELS[metric])
    axes.grid(alpha=0.3)
    return _finish(figure, axes, title)


def draw_roc(curves: Mapping[str, RocCurve], title: str) -> bytes:
    """Returns a PNG: one ROC curve per name, with bands."""
    figure, axes = _figure(5.6, 5.6)
    for number, (name, curve) in enumerate(curves.items()):
        colour, style = _look(number)
        axes.plot(GRID, curve.mean, label=_plain(name), color=colour, linestyle=style)
        if len(curves) <= MOST_BANDS:
            axes.fill_between(GRID, curve.low, curve.high, color=colour, alpha=0.1)
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=0.8)
    axes.set_xlabel("1 - specificity")
    axes.set_ylabel("sensitivity")
    axes.set_aspect("equal")
    return _finish(figure, axes, title)


def _plain(text: str) -> str:
    """Returns a short text that matplotlib shows as it is: between two `$` it would set mathematics.

    Its end stays, where names and titles say LEAKAGE and SIMULATED DATA.
    """
    return shorten(text, LONGEST_NAME, MARK_LENGTH).replace("$", r"\$")


def _look(number: int) -> tuple[str, str]:
    return COLOURS[number % len(COLOURS)], STYLES[number // len(COLOURS) % len(STYLES)]


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    # without pyplot: nothing global, no window, no display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()


def _finish(figure: Figure, axes: Axes, title: str) -> bytes:
    axes.set_title(_plain(title), fontsize=10)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=7, handlelength=4)  # as long as tells a dashed line from a whole one
    image = io.BytesIO()
    # no date and no version: equal input, equal bytes
    figure.savefig(image, format="png", dpi=_DOTS, metadata={"Software": None})
    return image.getvalue()
