"""Reads a table of samples into the manifest; every problem of the table is reported at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from fusionkit import ColumnSpec, DataError, Manifest, read_table, suggest
from fusionkit_manifest import ManifestOptions

_SHOWN = 20


def read_rows(config: ManifestOptions, schema: Mapping[str, ColumnSpec], data_root: Path) -> Manifest:
    """Returns every row that is not dropped, and what is wrong with them: the audit reports it with the rest.

    Raises:
        DataError: There can be no rows: no table, absent columns, or everything is dropped.
    """
    path = data_root / config.table
    table = read_table(path, config.encoding)
    where = path.name
    _require_columns(config, schema, table, where)
    samples = (
        table[config.sample]
        if config.sample
        else pl.Series("", [f"row{i}" for i in range(1, len(table) + 1)], dtype=pl.String)
    )
    table, kept, dropped = _drop(config, table)
    samples = samples.filter(kept)
    if table.is_empty():
        raise DataError(
            f"{where}: no row is left ({sum(dropped.values())} dropped). Check the table and `drop`."
        )
    problems = _check_samples(samples, where, config.sample)
    subjects, subject_problems = _subjects(config, table, samples, where)
    problems += subject_problems
    outcomes = _outcomes(config, table, samples, config.outcome, where, problems)
    subject_outcomes = None
    if config.subject_outcome is not None:
        subject_outcomes = _outcomes(config, table, samples, config.subject_outcome, where, problems)
    checksums = {
        name: _checksums(table[column], samples, where, problems) for name, column in config.sha256.items()
    }
    return Manifest(
        samples=_named(samples.to_list(), kept, "row{}"),
        subjects=_named(subjects, kept, "(none, row{})"),
        outcomes=outcomes,
        cells=table,
        schema=schema,
        classes=tuple(config.classes),
        root=data_root / config.images if config.images else path.parent,
        subject_outcomes=subject_outcomes,
        dropped=dropped,
        checksums=checksums,
        problems=problems,
    )


def _named(texts: Sequence[str | None], kept: pl.Series, name: str) -> list[str]:
    """Returns the ids; rows that have none get one each, so that no two are taken for one."""
    rows = (kept.arg_true() + 1).to_list() if not all(texts) else texts
    return [text or name.format(row) for text, row in zip(texts, rows, strict=True)]


def _require_columns(
    config: ManifestOptions, schema: Mapping[str, ColumnSpec], table: pl.DataFrame, where: str
) -> None:
    wanted = [
        *(("subject", config.subject), ("sample", config.sample), ("outcome", config.outcome)),
        ("subject_outcome", config.subject_outcome),
        *(("drop", name) for name in config.drop),
        *(("sha256", name) for name in config.sha256.values()),
        *(("columns", name) for name in schema),
    ]
    problems = [
        f"{where}: {option}: there is no column '{name}'. {suggest(name, table.columns)}"
        for option, name in wanted
        if name is not None and name not in table.columns
    ]
    if problems:
        raise DataError(problems)


def _drop(config: ManifestOptions, table: pl.DataFrame) -> tuple[pl.DataFrame, pl.Series, dict[str, int]]:
    """Returns the rows that stay, which those are, and how many went for each reason (the first)."""
    kept = pl.repeat(True, len(table), eager=True)
    dropped = {}
    for column, texts in config.drop.items():
        for text in texts:
            hit = table[column].eq_missing(text or None) & kept
            dropped[f"{column}={text}"] = int(hit.sum())
            kept = kept & ~hit
    return table.filter(kept), kept, dropped


def _subjects(
    config: ManifestOptions, table: pl.DataFrame, samples: pl.Series, where: str
) -> tuple[list[str], list[str]]:
    cells = table[config.subject]
    problems = []
    if cells.null_count():
        rows = _name_rows(samples.filter(cells.is_null()))
        problems.append(f"{where}: {config.subject}: the subject is missing ({rows}). Fill it in.")
    if config.subject_pattern is None:
        return [text or "" for text in cells.to_list()], problems
    pattern = re.compile(config.subject_pattern)
    found = {text: _extract(pattern, text) for text in cells.drop_nulls().unique().to_list()}
    lost = [text for text, subject in found.items() if not subject]
    if lost:
        rows = _name_rows(samples.filter(cells.is_in(lost)))
        problems.append(
            f"{where}: {config.subject}: `subject_pattern` finds no subject "
            f"({_name_texts(lost)}; {rows}). Mend the pattern or the cells."
        )
    return [found.get(text, "") for text in cells.to_list()], problems


def _outcomes(
    config: ManifestOptions,
    table: pl.DataFrame,
    samples: pl.Series,
    column: str | None,
    where: str,
    problems: list[str],
) -> list[str | None]:
    if column is None:
        return [None] * len(table)
    class_of = {text: name for name, texts in config.classes.items() for text in texts}
    cells = table[column]
    unknown = sorted(set(cells.drop_nulls().unique().to_list()) - set(class_of))
    for text in unknown[:_SHOWN]:
        rows = _name_rows(samples.filter(cells.eq_missing(text)))
        problems.append(
            f"{where}: {column}: '{text}' is no class ({rows}). "
            f"Name it under `classes`, or leave its rows out with `drop`. {suggest(text, class_of)}"
        )
    if len(unknown) > _SHOWN:
        problems.append(f"{where}: {column}: and {len(unknown) - _SHOWN} more texts that are no class.")
    return [None if text is None else class_of.get(text) for text in cells.to_list()]


def _checksums(cells: pl.Series, samples: pl.Series, where: str, problems: list[str]) -> list[str | None]:
    wrong = cells.is_not_null() & ~cells.fill_null("").str.contains("^[0-9a-fA-F]{64}$")
    if wrong.any():
        problems.append(
            f"{where}: {cells.name}: not a sha256 ({_name_rows(samples.filter(wrong))}). "
            "A sha256 has 64 hexadecimal digits, as `sha256sum` prints them."
        )
    kept = cells.set(wrong, None).to_list()
    return [None if text is None else str(text) for text in kept]


def _extract(pattern: re.Pattern[str], text: str) -> str:
    match = pattern.search(text)
    if match is None:
        return ""
    return (match[1] if pattern.groups else match[0]) or ""


def _check_samples(samples: pl.Series, where: str, column: str | None) -> list[str]:
    problems = []
    if n_blank := samples.null_count():
        rows = f"{n_blank} row{'s' * (n_blank > 1)}"
        problems.append(f"{where}: {column}: the sample's id is missing in {rows}. Fill it in.")
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
