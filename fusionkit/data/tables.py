"""Tables: text cells read from CSV or Parquet, checked against their declaration, and turned into numbers."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import json
import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
from torch import Tensor

from fusionkit.data.manifest import Manifest
from fusionkit.data.parquet import read_parquet
from fusionkit.errors import DataError, RecipeError, counted, shorten, suggest
from fusionkit.interfaces import Cells, Cut
from fusionkit.specs import TABULAR_KINDS, ColumnSpec, read_number

Encoding = Literal["utf-8", "latin-1"]
Value = float | int | tuple[int, ...] | None
"""A parsed cell: a number, a code, the codes of a multi column, or None where missing."""

VERSION = 1
"""Part of every address: raised when the same cells would give other numbers."""

_LARGEST = torch.finfo(torch.float32).max
_MEMO_ROWS = 4096
_BLOCK = 8192
"""Rows that are read before they become a frame."""
_SHOWN = 20
_NO_SINGLE_VALUE = (pl.Binary, pl.Object, pl.Duration)
_MARKS = (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class TabularInput:
    """Reads one record: numbers as they are, codes for single values, one column per value of a multi column.

    An item is a float32 tensor (output_dim,) with NaN where a cell is missing, a batch (n, output_dim).

    Args:
        columns: The columns that it reads, in order, with what each may hold.
        cell_dropout: Probability with which a training draw blanks a cell (a whole column's, all its values).

    Attributes:
        output_dim: How many numbers one record has.
        feature_names: Name of each number: `Age`, or `Signs=redness` for a multi column.
        sources: Name of the column that each number comes from.
        is_code: Whether each number is a code (ordinal, category, binary).

    Raises:
        RecipeError: There is no column, or one of a kind that is no number.
    """

    def __init__(self, columns: Mapping[str, ColumnSpec], cell_dropout: float = 0.0) -> None:
        problems = [
            f"columns: {name} is no number (kind: {spec.kind}). Known: {', '.join(TABULAR_KINDS)}."
            for name, spec in columns.items()
            if spec.kind not in TABULAR_KINDS
        ]
        if problems or not columns:
            raise RecipeError(
                problems or "columns: a record has at least one column (given: none). Name some."
            )
        self.specs = dict(columns)
        self.columns = tuple(columns)
        self.cell_dropout = cell_dropout
        self.draws = 1
        numbers = [
            (name, feature, spec.kind)
            for name, spec in columns.items()
            for feature in ([f"{name}={value}" for value in spec.values] if spec.kind == "multi" else [name])
        ]
        self.sources = tuple(name for name, _, _ in numbers)
        self.feature_names = tuple(feature for _, feature, _ in numbers)
        self.is_code = tuple(kind in ("ordinal", "category", "binary") for _, _, kind in numbers)
        self.output_dim = len(numbers)
        self._memo: dict[tuple[str | Path | None, ...], tuple[Value, ...]] = {}

    def identity(self) -> Mapping[str, Any]:
        """Returns the columns as declared, less the words for people, and the cell dropout."""
        columns = [
            [name, spec.model_dump(mode="json", exclude={"unit", "description"})]
            for name, spec in self.specs.items()
        ]
        return {
            "input": "record",
            "version": VERSION,
            "columns": columns,
            "cell_dropout": self.cell_dropout,
        }

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns the one view that a record has."""
        return ("record",)

    def is_random(self, *, training: bool) -> bool:
        """Whether draws blank cells."""
        return training and self.cell_dropout > 0

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of the parsed cells, or None where every cell is missing."""
        values = self._parse(cells)
        if all(value is None for value in values):
            return None
        content = json.dumps(
            dict(zip(self.columns, values, strict=True)), sort_keys=True, separators=(",", ":")
        )
        return hashlib.sha256(content.encode()).digest()

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Tensor]:
        """Returns one float32 tensor (output_dim,) per cut; raises DataError that names column and value."""
        values = self._parse(cells)
        return [torch.tensor(list(self._numbers(self._blank(values, cut.seed)))) for cut in cuts]

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        """Stacks items into (n, output_dim), float32."""
        return torch.stack(list(items))

    def _parse(self, cells: Cells) -> tuple[Value, ...]:
        texts = tuple(cells[name] for name in self.columns)
        values = self._memo.get(texts)
        if values is None:
            problems: list[str] = []
            parsed: list[Value] = []
            for (name, spec), text in zip(self.specs.items(), texts, strict=True):
                try:
                    parsed.append(parse_cell(name, spec, None if text is None else str(text)))
                except DataError as error:
                    problems.extend(error.problems)
            if problems:
                raise DataError(problems)
            values = tuple(parsed)
            if len(self._memo) >= _MEMO_ROWS:
                self._memo.clear()
            self._memo[texts] = values
        return values

    def _blank(self, values: tuple[Value, ...], seed: int | None) -> tuple[Value, ...]:
        if seed is None or not self.cell_dropout:
            return values
        draw = random.Random(seed)
        return tuple(None if draw.random() < self.cell_dropout else value for value in values)

    def _numbers(self, values: tuple[Value, ...]) -> Iterator[float]:
        for spec, value in zip(self.specs.values(), values, strict=True):
            if spec.kind != "multi":
                yield math.nan if value is None else float(value)  # type: ignore[arg-type]
            elif isinstance(value, tuple):
                yield from (float(code in value) for code in range(len(spec.values)))
            else:
                yield from (math.nan for _ in spec.values)


def parse_cell(name: str, spec: ColumnSpec, text: str | None) -> Value:
    """Returns the value of one cell, None where missing; raises DataError that names column and value."""
    text = (text or "").strip()
    if not text or text in spec.missing:
        return None
    value = _read_value(spec, text)
    if value is None:
        raise DataError(f"{name}: {_why_refused(spec, text)}")
    return value


def _read_value(spec: ColumnSpec, text: str) -> Value:
    """Returns what a text that is there means, or None where its column does not allow it."""
    if spec.kind == "numeric":
        number = _read_float32(text)
        is_inside = not spec.range or (number is not None and spec.range[0] <= number <= spec.range[1])
        return number if is_inside else None
    codes = [spec.values.index(part) if part in spec.values else None for part in _parts_of(spec, text)]
    known = [code for code in codes if code is not None]
    if len(known) < len(codes):
        return None
    return tuple(sorted(set(known))) if spec.kind == "multi" else known[0]


def _read_float32(text: str) -> float | None:
    number = read_number(text)
    return number if number is not None and abs(number) <= _LARGEST else None


def _parts_of(spec: ColumnSpec, text: str) -> list[str]:
    return [part.strip() for part in text.split(spec.separator)] if spec.kind == "multi" else [text]


def _why_refused(spec: ColumnSpec, text: str) -> str:
    if spec.kind != "numeric":
        wrong = next(part for part in _parts_of(spec, text) if part not in spec.values)
        return f"not an allowed value ('{shorten(wrong)}'). {suggest(wrong, spec.values)}"
    if spec.range and _read_float32(text) is not None:
        unit = f" {spec.unit}" if spec.unit else ""
        allowed = f"{spec.range[0]:g} to {spec.range[1]:g}{unit}"
        return f"outside its range ('{shorten(text)}'). Allowed: {allowed}."
    missing = ", ".join(f"'{word}'" for word in spec.missing if word) or "nothing but an empty cell"
    return f"not a finite number ('{shorten(text)}'). Missing is written: {missing}."


def bad_cells(
    manifest: Manifest, columns: Mapping[str, ColumnSpec], limit: int
) -> tuple[list[tuple[int, str]], int]:
    """Returns row and sentence of the first cells that their declaration forbids, and how many there are.

    Columns that are not numbers (files, text) are left to those who read them.
    """
    problems: list[tuple[int, str]] = []
    n_bad = 0
    for name, spec in columns.items():
        if spec.kind not in TABULAR_KINDS:
            continue
        reasons = _bad_texts(name, spec, manifest.cells[name], limit)
        rows: list[int] = manifest.cells[name].is_in(list(reasons)).arg_true().to_list() if reasons else []
        n_bad += len(rows)
        for row in rows[: max(0, limit - len(problems))]:
            problems.append((row, f"{manifest.where(row)}: {reasons[manifest.cells[name][row]]}"))
    return problems, n_bad


def parse_texts(spec: ColumnSpec, texts: Iterable[str]) -> dict[str, Value]:
    """Returns the value of each text that is allowed, None for those that mean missing."""
    found: dict[str, Value] = {}
    for text in texts:
        given = text.strip()
        is_missing = not given or given in spec.missing
        value = None if is_missing else _read_value(spec, given)
        if is_missing or value is not None:
            found[text] = value
    return found


def _bad_texts(name: str, spec: ColumnSpec, cells: pl.Series, limit: int) -> dict[str, str]:
    """Returns each distinct text that is not allowed, the first ones with the reason."""
    reasons: dict[str, str] = {}
    for text in cells.drop_nulls().unique(maintain_order=True).to_list():
        given = text.strip()
        if not given or given in spec.missing or _read_value(spec, given) is not None:
            continue
        # in the order of rows: those whose reason is shown are among the first
        reasons[text] = f"{name}: {_why_refused(spec, given)}" if len(reasons) < limit else ""
    return reasons


def read_table(path: str | Path, encoding: Encoding = "utf-8") -> pl.DataFrame:
    """Returns a CSV or Parquet file as text columns: blanks around cells removed, empty cells null.

    Args:
        path: A .csv, .tsv or .txt file (separated by comma, semicolon or tab) or a .parquet file.
        encoding: How the bytes of a CSV file spell its text.

    Raises:
        DataError: There is no such file, or it is no table: empty, ragged, unnamed or repeated columns.
    """
    path = Path(path)
    try:
        is_there = path.is_file()  # and no device, which may have no end
    except OSError as error:
        raise DataError(f"{path}: the table cannot be read ({error.strerror}). Check its name.") from None
    if not is_there and path.exists():
        raise DataError(f"{path}: a folder, a pipe or a device, not a table. Give a file.")
    if not is_there:
        raise DataError(f"{path}: there is no such table. Check its name and the folder of the data.")
    suffix = path.suffix.lower()
    if suffix == ".parquet":
        frame = _read_parquet(path)
    elif suffix in (".csv", ".tsv", ".txt"):
        frame = _read_csv(path, encoding)
    else:
        raise DataError(
            f"{path}: not a kind of table that is read ('{suffix}'). Known: .csv, .tsv, .txt, .parquet."
        )
    return frame


def _read_parquet(path: Path) -> pl.DataFrame:
    frame = read_parquet(path)
    names = [name.strip() for name in frame.columns]
    _check_header(path, names)
    frame.columns = names
    nested = [name for name, dtype in frame.schema.items() if dtype.is_nested() or dtype in _NO_SINGLE_VALUE]
    if nested:
        shown = ", ".join(map(shorten, nested[:_SHOWN]))
        raise DataError(f"{path}: cells that are no single value (columns: {shown}). Write them as text.")
    # a NaN in a column of floats is how other tools write an empty cell
    texts = frame.with_columns(pl.selectors.float().fill_nan(None)).cast(pl.String)
    return texts.with_columns(pl.all().str.strip_chars().replace("", None))


def _read_csv(path: Path, encoding: Encoding) -> pl.DataFrame:
    data = _check_text(path, path.read_bytes(), encoding)
    delimiter = _sniff(path, data, encoding)
    reader = csv.reader(_open(data, encoding), delimiter=delimiter, strict=True)
    ragged: list[str] = []
    n_ragged = 0
    try:
        header = [name.strip() for name in next(reader, [])]
        _check_header(path, header)
        blocks = [_frame(header, [])]
        rows: list[list[str]] = []
        for row in reader:
            if len(row) == len(header):
                rows.append(row)
            elif row:
                n_ragged += 1
                if len(ragged) < _SHOWN:
                    ragged.append(
                        f"{path}: line {reader.line_num}: {counted(len(row), 'cell')} under a "
                        f"header of {len(header)}. Quote cells that contain '{delimiter}'."
                    )
            if len(rows) == _BLOCK:  # lists of texts take ten times the memory that a frame does
                blocks.append(_frame(header, rows))
                rows = []
    except csv.Error as error:
        raise DataError(f"{path}: line {reader.line_num}: not CSV ({error}). Check its quotes.") from None
    if ragged:
        n_more = n_ragged - len(ragged)
        raise DataError(ragged + ([f"{path}: and {n_more} more ragged lines."] if n_more else []))
    return pl.concat([*blocks, _frame(header, rows)])


def _frame(header: Sequence[str], rows: Sequence[Sequence[str]]) -> pl.DataFrame:
    columns = zip(*rows, strict=True) if rows else ((),) * len(header)
    return pl.DataFrame(
        [
            pl.Series(name, [cell.strip() or None for cell in cells], dtype=pl.String)
            for name, cells in zip(header, columns, strict=True)
        ]
    )


def _open(data: bytes, encoding: Encoding) -> io.TextIOWrapper:
    """Returns a table's bytes as text that is decoded piece by piece."""
    return io.TextIOWrapper(
        io.BytesIO(data), encoding="utf-8-sig" if encoding == "utf-8" else encoding, newline=""
    )


def _sniff(path: Path, data: bytes, encoding: Encoding) -> str:
    """Returns the delimiter that splits the first line into most cells."""
    try:
        return max(",;\t", key=lambda mark: len(next(csv.reader(_open(data, encoding), delimiter=mark), [])))
    except csv.Error as error:
        raise DataError(f"{path}: line 1: not CSV ({error}). Check its quotes.") from None


def _check_header(path: Path, header: list[str]) -> None:
    if not header:
        raise DataError(f"{path}: the table is empty. Its first line names the columns.")
    problems = [f"{path}: column {i} has no name. Name it." for i, name in enumerate(header, 1) if not name]
    twice = sorted({name for name in header if name and header.count(name) > 1})
    problems += [
        f"{path}: column '{name}' appears {header.count(name)} times. Rename or remove all but one."
        for name in twice
    ]
    if problems:
        raise DataError(problems)


def _check_text(path: Path, data: bytes, encoding: Encoding) -> bytes:
    """Returns the bytes of a table if they are text in its encoding; raises DataError otherwise."""
    if data.startswith(_MARKS):
        raise DataError(f"{path}: UTF-16 or UTF-32 text, by its first bytes. Save the table as UTF-8.")
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise DataError(f"{path}: line {line}: a NUL character, so this is no text. Save the table as UTF-8.")
    try:
        data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}: line {line}: not UTF-8 (byte 0x{data[error.start]:02x}). "
            "Save the table as UTF-8, or say that it is latin-1 (the source's option `encoding`; in predict, "
            "--encoding)."
        ) from None
    return data
