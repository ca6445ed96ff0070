"""Outcomes that are cells of the data: read as numbers, and what is wrong with them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.alike import tell_once
from fusionkit.errors import counted
from fusionkit.specs import read_number

if TYPE_CHECKING:
    from fusionkit.data.manifest import Manifest

FloatArray = NDArray[np.float64]

LARGEST = 1e100
"""The largest outcome: squares of it, and their sums, stay far from the end of float64; ours."""
_SHOWN = 20
"""Wrong cells that are named one by one."""
NAME_IT = "Name it under task.positive or task.negative, declare the column binary, or blank the cell."
_NAMED = 5
"""Rows that are named where they say the same."""


@dataclass(frozen=True)
class YesNoTexts:
    """Which texts of a column mean yes and no."""

    positive: tuple[str, ...]
    negative: tuple[str, ...]

    def read(self, text: str) -> float | str:
        """Returns 1 or 0, or what is wrong."""
        if text in self.positive:
            return 1.0
        if text in self.negative:
            return 0.0
        yes, no = (" or ".join(repr(word) for word in words) for words in (self.positive, self.negative))
        return f"neither yes ({yes}) nor no ({no})"


def yes_no_texts_of(
    manifest: Manifest, column: str, positive: tuple[str, ...] | None, negative: tuple[str, ...] | None
) -> YesNoTexts:
    """Returns which texts of a column mean yes and no: as given, as it is declared if binary, or 1 and 0."""
    if positive is not None and negative is not None:
        return YesNoTexts(positive, negative)
    spec = manifest.schema.get(column)
    if spec is not None and spec.kind == "binary":
        return YesNoTexts(spec.values[1:], spec.values[:1])
    return YesNoTexts(("1",), ("0",))


def read_outcome(text: str) -> float | str:
    """Returns a number that can be learned, or what is wrong."""
    value = read_number(text)
    if value is None:
        return "not a number"
    if abs(value) > LARGEST or 0 < abs(value) < 1 / LARGEST:
        return f"its size is not from {1 / LARGEST:g} to {LARGEST:g}"
    return value


def texts_of(manifest: Manifest, column: str, rows: Any = None) -> list[str | None]:
    """Returns the texts of a column, of all rows or some; None where they are missing."""
    cells = manifest.cells[column]
    spec = manifest.schema.get(column)
    missing = ("",) if spec is None else ("", *spec.missing)
    chosen = cells if rows is None else cells.gather(np.asarray(rows, dtype=np.int64))
    return [None if text is None or text in missing else text.strip() for text in chosen.to_list()]


class OutcomeCells(ABC):
    """What tasks have in common whose outcome is in cells: numbers (n, k), NaN where unknown.

    A task says how a row is read; `strata` has one name unless it says otherwise.
    """

    classes: tuple[str, ...] = ()
    columns: tuple[str, ...]
    strata: tuple[str, ...]

    @abstractmethod
    def parse(self, manifest: Manifest, texts: Sequence[str | None]) -> tuple[list[float], list[str]]:
        """Returns a row's numbers, and what is wrong with its cells, each as `column: sentence`."""

    def stratum(self, outcome: Any) -> int:
        """Returns 0 where any number is known, else -1."""
        return -1 if all(value is None or math.isnan(value) for value in outcome) else 0

    def targets(self, manifest: Manifest, rows: Any) -> FloatArray:
        """Returns the outcomes (n, k) of rows, NaN where unknown."""
        values, _ = self._read(manifest, rows)
        return values

    def with_strata(self, manifest: Manifest) -> Manifest:
        """Returns the data with each row's stratum as its outcome, and every cell that is wrong named."""
        manifest.require_columns(self.columns, "task")
        values, wrong = self._read(manifest, range(len(manifest)))
        told = _told_once(manifest, wrong)
        problems = [sentence for sentence, _ in told[:_SHOWN]]
        if n_more := sum(n_cells for _, n_cells in told[_SHOWN:]):
            problems.append(f"task: and {counted(n_more, 'more cell')} of the outcome.")
        codes = [self.stratum(value) for value in values.tolist()]
        return replace(
            manifest,
            outcomes=[None if code < 0 else self.strata[code] for code in codes],
            subject_outcomes=None,
            classes=self.strata,
            problems=[*manifest.problems, *problems],
        )

    def _read(self, manifest: Manifest, rows: Any) -> tuple[FloatArray, list[tuple[int, str]]]:
        columns = [texts_of(manifest, name, rows) for name in self.columns]
        known: Mapping[tuple[str | None, ...], tuple[list[float], list[str]]] = {
            texts: self.parse(manifest, texts) for texts in dict.fromkeys(zip(*columns, strict=True))
        }
        found = [known[texts] for texts in zip(*columns, strict=True)]
        wrong = [(int(row), text) for row, (_, texts) in zip(rows, found, strict=True) for text in texts]
        return np.array([values for values, _ in found], dtype=np.float64).reshape(
            len(found), len(self.columns)
        ), wrong


def _told_once(manifest: Manifest, wrong: Sequence[tuple[int, str]]) -> list[tuple[str, int]]:
    """Returns sentences, each with its number of cells: one per text that is no answer, or per mistake."""
    rows: dict[tuple[int, str], list[int]] = {}
    for row, sentence in wrong:
        rows.setdefault((-1 if sentence.endswith(NAME_IT) else row, sentence), []).append(row)
    n_cells: dict[str, int] = {}
    for (_, sentence), of_text in rows.items():
        where = manifest.where(of_text[0])
        if len(of_text) > 1:
            more = ", ..." if len(of_text) > _NAMED else ""
            named = ", ".join(manifest.samples[row] for row in of_text[:_NAMED])
            where = f"{len(of_text)} samples ({named}{more})"
        n_cells[f"{where}: {sentence}"] = len(of_text)
    return [(told, n_cells.get(told, n_rows)) for told, n_rows in tell_once(list(n_cells))]
