"""Reads a table of samples into the manifest; every problem of the table is reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from fusionkit import ColumnSpec, DataError, Manifest, RecipeError, SourceContext, read_table, suggest
from fusionkit_manifest import ManifestOptions
from fusionkit_manifest.schema_file import read_schema

_SHOWN = 20


class ManifestSource:
    """One row per sample, from one table.

    Raises:
        RecipeError: The outcome stands among the columns that encoders may read.
        DataError: The schema file is not there, or is wrong.
    """

    simulated = False

    def __init__(self, config: ManifestOptions) -> None:
        self.config = config
        self.classes = tuple(config.classes)
        self.schema: Mapping[str, ColumnSpec] = config.columns or read_schema(Path(config.schema_file))
        answers = [name for name in (config.outcome, config.subject_outcome) if name in self.schema]
        if answers:
            raise RecipeError(
                f"columns: an outcome cannot be an input ({', '.join(map(str, answers))}). "
                "Take it out of `columns`, or of the schema file."
            )

    def read(self, context: SourceContext) -> Manifest:
        """Returns every row that is not dropped; raises DataError with all problems at once."""
        path = context.data_root / self.config.table
        table = read_table(path, self.config.encoding)
        where = path.name
        self._require_columns(table, where)
        samples = (
            table[self.config.sample]
            if self.config.sample
            else pl.Series("", [f"row{i}" for i in range(1, len(table) + 1)], dtype=pl.String)
        )
        table, kept, dropped = self._drop(table)
        samples = samples.filter(kept)
        if table.is_empty():
            raise DataError(
                f"{where}: no row is left ({sum(dropped.values())} dropped). Check the table and `drop`."
            )
        problems = _check_samples(samples, where, self.config.sample)
        subjects, subject_problems = self._subjects(table, samples, where)
        problems += subject_problems
        outcomes = self._outcomes(table, samples, self.config.outcome, where, problems)
        subject_outcome = self.config.subject_outcome
        subject_outcomes = (
            self._outcomes(table, samples, subject_outcome, where, problems) if subject_outcome else None
        )
        if problems:
            raise DataError(problems)
        return Manifest(
            samples=samples.to_list(),
            subjects=subjects,
            outcomes=outcomes,
            cells=table,
            schema=self.schema,
            classes=self.classes,
            root=context.data_root / self.config.images if self.config.images else path.parent,
            subject_outcomes=subject_outcomes,
            dropped=dropped,
        )

    def _require_columns(self, table: pl.DataFrame, where: str) -> None:
        config = self.config
        wanted = [
            *(("subject", config.subject), ("sample", config.sample), ("outcome", config.outcome)),
            ("subject_outcome", config.subject_outcome),
            *(("drop", name) for name in config.drop),
            *(("columns", name) for name in self.schema),
        ]
        problems = [
            f"{where}: {option}: there is no column '{name}'. {suggest(name, table.columns)}"
            for option, name in wanted
            if name is not None and name not in table.columns
        ]
        if problems:
            raise DataError(problems)

    def _drop(self, table: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, dict[str, int]]:
        """Returns the rows that stay, which those are, and how many went for each reason (the first)."""
        kept = pl.repeat(True, len(table), eager=True)
        dropped = {}
        for column, texts in self.config.drop.items():
            for text in texts:
                hit = table[column].eq_missing(text or None) & kept
                dropped[f"{column}={text}"] = int(hit.sum())
                kept = kept & ~hit
        return table.filter(kept), kept, dropped

    def _subjects(self, table: pl.DataFrame, samples: pl.Series, where: str) -> tuple[list[str], list[str]]:
        cells = table[self.config.subject]
        problems = []
        if cells.null_count():
            rows = _name_rows(samples.filter(cells.is_null()))
            problems.append(f"{where}: {self.config.subject}: the subject is missing ({rows}). Fill it in.")
        if self.config.subject_pattern is None:
            return [text or "" for text in cells.to_list()], problems
        pattern = re.compile(self.config.subject_pattern)
        found = {text: _extract(pattern, text) for text in cells.drop_nulls().unique().to_list()}
        lost = [text for text, subject in found.items() if not subject]
        if lost:
            rows = _name_rows(samples.filter(cells.is_in(lost)))
            problems.append(
                f"{where}: {self.config.subject}: `subject_pattern` finds no subject "
                f"({_name_texts(lost)}; {rows}). Mend the pattern or the cells."
            )
        return [found.get(text, "") for text in cells.to_list()], problems

    def _outcomes(
        self, table: pl.DataFrame, samples: pl.Series, column: str | None, where: str, problems: list[str]
    ) -> list[str | None]:
        if column is None:
            return [None] * len(table)
        class_of = {text: name for name, texts in self.config.classes.items() for text in texts}
        cells = table[column]
        for text in sorted(set(cells.drop_nulls().unique().to_list()) - set(class_of)):
            rows = _name_rows(samples.filter(cells.eq_missing(text)))
            problems.append(
                f"{where}: {column}: '{text}' is no class ({rows}). "
                f"Name it under `classes`, or leave its rows out with `drop`. {suggest(text, class_of)}"
            )
        return [None if text is None else class_of.get(text) for text in cells.to_list()]


def _extract(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    if match is None:
        return ""
    return (match[1] if pattern.groups else match[0]) or ""


def _check_samples(samples: pl.Series, where: str, column: str | None) -> list[str]:
    problems = []
    if samples.null_count():
        problems.append(
            f"{where}: {column}: the sample's id is missing in {samples.null_count()} rows. Fill it in."
        )
    twice = samples.filter(samples.is_duplicated() & samples.is_not_null()).unique().sort().to_list()
    if twice:
        problems.append(
            f"{where}: {column}: a sample's id is used twice ({_name_texts(twice)}). Make ids unique."
        )
    return problems


def _name_rows(samples: pl.Series) -> str:
    noun = "sample" if len(samples) == 1 else "samples"
    return f"{len(samples)} {noun}: {_name_texts([text or '(no id)' for text in samples.to_list()])}"


def _name_texts(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - _SHOWN} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
