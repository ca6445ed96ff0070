"""The manifest: one row per sample, with subject, outcome and the cells of every column."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import polars as pl

from fusionkit.errors import DataError, suggest
from fusionkit.interfaces import Cells
from fusionkit.specs import ColumnSpec

_PLAIN_NAME = re.compile(r"\w[\w .,()+=-]*")


@dataclass(frozen=True)
class Manifest:
    """What a source yields.

    Args:
        samples: Unique id of each row, in the source's order.
        subjects: The patient of each row.
        outcomes: Class name of each row; None where unknown (rows to predict).
        cells: One text column per entry of `schema`, null where the cell is blank. Extra columns are kept for
            splits and reports.
        schema: What each column may hold.
        classes: Class names, in the order of the model's outputs; the last one is the positive class. None
            where the outcome is in columns that a recipe's task names.
        root: Folder that the paths in `file` columns resolve under.
        is_simulated: Whether any of it was simulated; then everything that comes out says so.
        subject_outcomes: The patient's own outcome, row by row, where the data give it.
        dropped: Why rows were left out -> how many.
        checksums: File column -> the sha256 that the data give for each row's file, in hexadecimal digits, or
            None.
        problems: What is wrong with the rows, as sentences; the audit reports them with all else, and nothing
            runs.
        table: Name of a table of rows to predict; messages name it, where others name a subject.
    """

    samples: Sequence[str]
    subjects: Sequence[str]
    outcomes: Sequence[str | None]
    cells: pl.DataFrame
    schema: Mapping[str, ColumnSpec]
    classes: tuple[str, ...]
    root: Path
    is_simulated: bool = False
    subject_outcomes: Sequence[str | None] | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    checksums: Mapping[str, Sequence[str | None]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    table: str = ""
    _folders: set[str] = field(default_factory=set, init=False, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.samples)

    def require_columns(self, columns: Iterable[str], where: str) -> None:
        """Raises DataError that names every column which the data lack."""
        problems = [
            f"{where}: the data have no column '{name}'. {suggest(name, self.cells.columns)}"
            for name in columns
            if name not in self.cells.columns
        ]
        if problems:
            raise DataError(problems)

    def cells_of(self, row: int, columns: Sequence[str]) -> Cells:
        """Returns one row's cells: None where blank or written as missing, a path for `file` columns.

        Raises:
            DataError: A path leaves `root`.
        """
        cells: dict[str, str | Path | None] = {}
        for name in columns:
            text = self.cells[name][row]
            spec = self.schema.get(name)
            if text is None or (spec is not None and text in spec.missing):
                cells[name] = None
            elif spec is not None and spec.kind == "file":
                cells[name] = self._file(row, name, text)
            else:
                cells[name] = text
        return cells

    def _file(self, row: int, name: str, text: str) -> Path:
        try:
            return self._plain_file(text) or resolve_file(self.root, text)
        except DataError as error:
            raise DataError([f"{self.where(row)}: {name}: {problem}" for problem in error.problems]) from None

    def _plain_file(self, text: str) -> Path | None:
        """Returns the path of a file that is no link, in a folder that does not leave `root`; else None.

        Following links takes longer than all else about a row, so those of a folder are followed once. Paths
        are not kept: of a large cohort they would fill the memory.
        """
        folder, slash, name = text.rpartition("/")
        if not _PLAIN_NAME.fullmatch(name) or (slash and not folder):
            return None
        path = self.root / text
        try:
            if folder not in self._folders:
                resolve_file(self.root, folder or ".")
                self._folders.add(folder)
            return None if path.is_symlink() else path
        except (OSError, DataError):  # what is wrong is said of the whole path
            return None

    def where(self, row: int) -> str:
        """Names a row for a message."""
        sample, subject = self.samples[row], self.subjects[row]
        if not self.table:
            return f"sample {sample} (subject {subject})"
        return f"{self.table}: {sample}" + (f" ({subject})" if subject not in ("", sample) else "")


def resolve_file(root: Path, text: str) -> Path:
    """Returns the path of a cell's file; data from elsewhere must not make us read what lies outside `root`.

    Raises:
        DataError: The text is no path, or leads out of `root`, through `..` or through a link.
    """
    if "\0" in text:
        raise DataError(
            f"not a path, it contains a NUL character ({text!r}). Give a path relative to {root}."
        )
    if "://" in text:
        raise DataError(f"a URL, not a path ({text}). Fetch the file and give a path relative to {root}.")
    if Path(text).is_absolute() or PureWindowsPath(text).is_absolute():
        raise DataError(f"an absolute path ({text}). Give a path relative to {root}.")
    path = root / text
    try:
        is_inside = path.resolve().is_relative_to(root.resolve())
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.stat()  # raises for a name that is too long
    except (OSError, RuntimeError) as error:  # a loop of links is a RuntimeError before Python 3.13
        raise DataError(
            f"a path that cannot be followed ({text[:80]}: {error}). Mend the cell or the file."
        ) from None
    if not is_inside:
        raise DataError(f"a path that leaves its folder ({text}). Only files in {root} are read.")
    return path
