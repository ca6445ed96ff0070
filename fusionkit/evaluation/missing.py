"""Tests with part of a modality missing: which cells are blanked, and the curves that come of it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl

from fusionkit.data.batches import draw_seed
from fusionkit.data.manifest import Manifest
from fusionkit.evaluation.aggregate import FoldSubjects
from fusionkit.evaluation.metrics import BoolArray, FloatArray
from fusionkit.recipe.schema import EvaluationNode, missing_name
from fusionkit.specs import TABULAR_KINDS

_BITS = 63
"""Of a draw's seed."""
_CELL = 7
"""Characters of one rate in the terminal."""


@dataclass(frozen=True)
class Blanked:
    """A model that is tested with a share of one modality's cells blanked.

    Args:
        plain: The same model's name where nothing is blanked.
        modality: Whose cells are blanked.
        rate: Their share.
        draws: How often they are drawn anew; every draw counts as a repeat of its own.
    """

    plain: str
    modality: str
    rate: float
    draws: int = 1

    @property
    def name(self) -> str:
        """Under which the report has it, such as fused_missing_emr_0.3."""
        return missing_name(self.plain, self.modality, self.rate)

    def repeat(self, repeat: int, draw: int) -> int:
        """Returns the number of the repeat that a draw counts as."""
        return repeat * self.draws + draw


def blanked_models(evaluation: EvaluationNode, readers: Mapping[str, Sequence[str]]) -> list[Blanked]:
    """Returns what a recipe asks for, by modality and rate.

    Args:
        evaluation: The recipe's node.
        readers: Modality -> the names of the models that read its columns.
    """
    return [
        Blanked(plain, modality, rate, evaluation.missing_draws)
        for modality, rates in evaluation.missing.items()
        for plain in readers[modality]
        for rate in sorted(rates)
    ]


class Blanks:
    """One draw of which cells of some rows are blanked, at every rate: what is blank at .3 is blank at .5.

    A cell has a number in [0, 1) from hash(seed, content key of the row's modality, column, draw), and is
    blanked at the rates above it. So nothing depends on the order of rows, and rows with the same record
    lack the same. A modality with files has one number per row: it is there or not, as a whole.

    Args:
        manifest: The data as they are.
        rows: Which rows may lose cells; all others stay.
        columns: The modality's columns.
        key: The content key of a row's modality; None where it is absent.
        seed: The recipe's.
        draw: Which draw.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: Sequence[int],
        columns: Sequence[str],
        key: Callable[[int], bytes | None],
        *,
        seed: int,
        draw: int = 0,
    ) -> None:
        self.manifest, self.rows, self.columns = manifest, np.asarray(rows, dtype=np.int64), tuple(columns)
        is_record = all(manifest.schema[name].kind in TABULAR_KINDS for name in columns)
        units = [f"missing {name}" for name in columns] if is_record else ["missing"]
        known: dict[bytes, list[float]] = {}
        numbers = np.ones((len(self.rows), len(units)))
        for index, row in enumerate(self.rows.tolist()):
            content = key(row)
            if content is None:
                continue
            if content not in known:
                known[content] = [draw_seed(seed, content, unit, draw) / 2**_BITS for unit in units]
            numbers[index] = known[content]
        self.numbers: FloatArray = np.broadcast_to(numbers, (len(self.rows), len(self.columns)))

    def at(self, rate: float) -> Manifest:
        """Returns the data with the cells of one rate blanked, as if they had never been filled in."""
        cells = self.manifest.cells
        for index, name in enumerate(self.columns):
            is_blank: BoolArray = np.zeros(len(self.manifest), dtype=bool)
            is_blank[self.rows] = self.numbers[:, index] < rate
            kept = pl.when(pl.Series(~is_blank)).then(pl.col(name)).otherwise(None)
            cells = cells.with_columns(kept.alias(name))
        return replace(self.manifest, cells=cells)


def by_draw(folds: Sequence[FoldSubjects], blanked: Blanked) -> list[FoldSubjects]:
    """Returns a plain model's folds once per draw, as the folds of its blanked ones are numbered."""
    return [
        replace(fold, repeat=blanked.repeat(fold.repeat, draw))
        for fold in folds
        for draw in range(blanked.draws)
    ]


def by_curve(blanked: Sequence[Blanked]) -> dict[tuple[str, str], list[Blanked]]:
    """Groups models by curve: one plain model with more and more of one modality blanked."""
    curves: dict[tuple[str, str], list[Blanked]] = {}
    for model in blanked:
        curves.setdefault((model.plain, model.modality), []).append(model)
    return curves


def curve_entries(blanked: Sequence[Blanked]) -> list[dict[str, Any]]:
    """Returns the report's `missing`: which models make a curve, as JSON values."""
    return [
        {
            "model": plain,
            "modality": modality,
            "draws": models[0].draws,
            "rates": [model.rate for model in models],
            "models": [model.name for model in models],
        }
        for (plain, modality), models in by_curve(blanked).items()
    ]


def curve_text(report: Mapping[str, Any], metric: str, label: str, width: int) -> tuple[str, list[str]]:
    """Returns a small table of one metric by modality, rate and model; and sentences on it."""
    blocks, sentences = [], []
    modalities = dict.fromkeys(curve["modality"] for curve in report.get("missing", ()))
    for modality in modalities:
        curves = [curve for curve in report["missing"] if curve["modality"] == modality]
        blocks += list(_blocks(report, modality, curves, metric, label, width))
        sentences += [text for curve in curves for text in _fewer_subjects(report, curve)]
        draws = curves[0]["draws"]
        if draws > 1:
            sentences.append(f"{modality}: each share was blanked anew {draws} times; values are means.")
    return "\n\n".join(blocks), sentences


def _blocks(
    report: Mapping[str, Any],
    modality: str,
    curves: Sequence[Mapping[str, Any]],
    metric: str,
    label: str,
    width: int,
) -> Iterator[str]:
    models = report["models"]
    indent = max(len(str(curve["model"])) for curve in curves) + 2
    indent = max(indent, len("blanked") + 2)
    per_block = max(1, (width - indent) // _CELL - 1)
    rates = curves[0]["rates"]
    places = [place for place, rate in enumerate(rates) if rate > 0]  # at 0 it is what nothing blanked is
    for start in range(0, len(places), per_block):
        chosen = places[start : start + per_block]
        share = modality if all(rates[i] == 1 for i in places) else f"a share of {modality}"
        title = f"{label} with {share} blanked in the test rows:"
        lines = [textwrap.fill(title, width, subsequent_indent="  ")] if start == 0 else []
        lines.append(_line("blanked", ["0 %", *(_share(rates[i]) for i in chosen)], indent))
        for curve in curves:
            names = [curve["model"], *(curve["models"][i] for i in chosen)]
            values = [models[name]["subject"][metric]["value"] for name in names]
            cells = ["none" if value is None else f"{value:.3f}" for value in values]
            lines.append(_line(curve["model"], cells, indent))
        yield "\n".join(lines)


def _share(rate: float) -> str:
    return "all" if rate == 1 else f"{100 * rate:g} %"


def _line(first: str, cells: Sequence[str], indent: int) -> str:
    return (first.ljust(indent) + "".join(cell.ljust(_CELL) for cell in cells)).rstrip()


def _fewer_subjects(report: Mapping[str, Any], curve: Mapping[str, Any]) -> list[str]:
    """Says how few subjects are left at the end of a curve, where some have nothing left to answer from."""
    every = report["models"][curve["model"]]["n_subjects"]
    left = report["models"][curve["models"][-1]]["n_subjects"]
    if left == every:
        return []
    return [
        f"{curve['model']}: with {_share(curve['rates'][-1])} of {curve['modality']} blanked, {left} of "
        f"{every} subjects have anything left that it reads; the others are not counted."
    ]
