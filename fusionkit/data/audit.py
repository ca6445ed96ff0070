"""The audit: everything that is wrong or doubtful with a recipe's data, found at once and before training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusionkit.alike import tell_once
from fusionkit.data.audit_columns import (
    GIVES_AWAY,
    Column,
    Subjects,
    alone,
    differing_subjects,
    index_subjects,
    lonely_class,
    read_column,
    settling_values,
    similar_subjects,
    undisputed,
)
from fusionkit.data.audit_files import (
    Files,
    Finding,
    Whole,
    absent_files,
    decode_files,
    duplicates,
    find_files,
    n_distinct,
)
from fusionkit.data.audit_outcomes import outcome_warnings
from fusionkit.data.batches import ModalityReader
from fusionkit.data.manifest import Manifest
from fusionkit.data.splits import Fold
from fusionkit.data.tables import bad_cells
from fusionkit.errors import DataError, counted, tidy
from fusionkit.recipe.load import LoadedRecipe
from fusionkit.specs import ColumnSpec
from fusionkit.store import Store, address_of
from fusionkit.task import Task

BoolArray = NDArray[np.bool_]

_SHOWN = 20
_LISTED = 1000
_SHOWN_VALUES = 2
_NOUNS = {
    "value": ("cell", ""),
    "file": ("file", ""),
    "checksum": ("file", " with another checksum"),
    "duplicate": ("file", " given twice"),
}


@dataclass(frozen=True)
class ColumnFacts:
    """What is known of a column that the recipe reads.

    Args:
        name: The column.
        kind: Its kind.
        modalities: Which read it.
        missing: How many rows are blank, or say that it is missing.
        illegal: How many rows hold what the column's declaration forbids.
        distinct: How many different values, or files, there are.
        auc: What it reaches by itself, cross-validated by subject; null where that was not computed.
    """

    name: str
    kind: str
    modalities: tuple[str, ...]
    missing: int
    illegal: int
    distinct: int
    auc: float | None


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        samples: How many rows.
        subjects: How many subjects.
        classes: Class -> how many samples and subjects.
        modalities: Modality -> how many samples have it.
        columns: The columns that the recipe reads.
        files: How many different files were decoded now, and how many an earlier audit had found whole.
        errors: What stops a run; of cells outside their declaration, the first 1000.
        warnings: What may be as it should, but is worth a look.
        n_bad_cells: How many cells are outside their declaration.
    """

    samples: int = 0
    subjects: int = 0
    classes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    modalities: Mapping[str, int] = field(default_factory=dict)
    columns: Sequence[ColumnFacts] = ()
    files: Mapping[str, int] = field(default_factory=dict)
    errors: Sequence[Finding] = ()
    warnings: Sequence[Finding] = ()
    n_bad_cells: int = 0

    def problems(self) -> list[str]:
        """Returns the errors as sentences, rows with one mistake in one; at most 20 of each check."""
        sentences: list[str] = []
        for check in dict.fromkeys(finding.check for finding in self.errors):
            found = [finding.message for finding in self.errors if finding.check == check]
            n_found = self.n_bad_cells if check == "value" else len(found)
            if check == "source":  # which says for itself how many more there are
                sentences += found
                continue
            told = tell_once(found)[:_SHOWN]
            sentences += [sentence for sentence, _ in told]
            n_more = n_found - sum(n_rows for _, n_rows in told)
            if n_more:
                noun, which = _NOUNS.get(check, ("problem", ""))
                sentences.append(f"and {counted(n_more, f'more {noun}')}{which}.")
        return [tidy(sentence) for sentence in sentences]

    def raise_errors(self) -> None:
        """Raises DataError with every error, if there is one."""
        if self.errors:
            raise DataError(self.problems())

    def to_json(self) -> dict[str, Any]:
        """Returns everything as JSON values, every row named."""
        return asdict(self)


def audit_data(
    loaded: LoadedRecipe,
    manifest: Manifest,
    readers: Mapping[str, ModalityReader],
    outcomes: Mapping[str, int],
    folds: Sequence[Fold],
    store: Store,
    *,
    task: Task | None = None,
    threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Audit:
    """Looks at every cell and file that the recipe reads.

    Args:
        loaded: The recipe.
        manifest: The rows; they have every column that the recipe reads.
        readers: Who reads each modality's cells.
        outcomes: Class index of each subject, -1 where unknown; empty where some contradict each other.
        folds: The splits; empty where there are none.
        store: Remembers which files were found whole.
        task: Whose outcomes are looked at, where they are numbers.
        threads: How many images are decoded side by side.
        progress: Is told how many files of how many are decoded.
    """
    schema = {name: manifest.schema[name] for name in loaded.used_columns}
    files = Files()
    stored = [reader for reader in readers.values() if reader.is_stored]
    find_files(manifest, _file_columns(schema), stored, files)
    for reader in stored:
        decode_files(reader, Whole(store, _reading(loaded, reader)), files, threads, progress)
    errors, n_bad = _errors(manifest, schema, files.problems)
    errors += duplicates(manifest, files, folds)
    subjects = index_subjects(manifest, outcomes or undisputed(manifest))
    columns = [read_column(name, spec, manifest.cells[name]) for name, spec in schema.items()]
    present = {
        modality: files.present.get(modality, _any_cell(columns, loaded.columns[modality]))
        for modality in loaded.columns
    }
    facts = [_facts(column, loaded, subjects, files) for column in columns]
    warnings = _warnings(loaded, manifest, subjects, columns, facts, present)
    if task is not None:
        read_by = {fact.name: fact.modalities for fact in facts}
        warnings += outcome_warnings(task, manifest, subjects, columns, read_by)
    return Audit(
        samples=len(manifest),
        subjects=len(subjects.names),
        classes=_classes(manifest, subjects),
        modalities={modality: int(rows.sum()) for modality, rows in present.items()},
        columns=facts,
        files={"decoded": files.decoded, "remembered": files.remembered},
        errors=errors,
        warnings=warnings,
        n_bad_cells=n_bad,
    )


def check_rows(manifest: Manifest, columns: Sequence[str]) -> Audit:
    """Looks at every cell of some columns and finds their files, but decodes none: for rows to predict."""
    schema = {name: manifest.schema[name] for name in columns}
    errors, n_bad = _errors(manifest, schema, absent_files(manifest, _file_columns(schema)))
    return Audit(samples=len(manifest), errors=errors, n_bad_cells=n_bad)


def _file_columns(schema: Mapping[str, ColumnSpec]) -> list[str]:
    return [name for name, spec in schema.items() if spec.kind == "file"]


def _errors(
    manifest: Manifest, schema: Mapping[str, ColumnSpec], of_files: Sequence[Finding]
) -> tuple[list[Finding], int]:
    """Returns what is wrong with rows, cells and files, and how many cells are outside their declaration."""
    bad, n_bad = bad_cells(manifest, schema, _LISTED)
    errors = [Finding("source", sentence) for sentence in manifest.problems]
    errors += [Finding("value", sentence, (manifest.samples[row],)) for row, sentence in bad]
    return [*errors, *of_files], n_bad


def _warnings(
    loaded: LoadedRecipe,
    manifest: Manifest,
    subjects: Subjects,
    columns: Sequence[Column],
    facts: Sequence[ColumnFacts],
    present: Mapping[str, BoolArray],
) -> list[Finding]:
    warnings = _similar(manifest)
    telling = set()
    for modality, rows in present.items():
        found = _modality(modality, rows, subjects)
        warnings += found
        telling |= {modality} if found else set()
    for column, fact in zip(columns, facts, strict=True):
        warnings += _column(column, fact, subjects, is_absence_known=bool(telling & set(fact.modalities)))
    warnings += _constant(columns, facts)
    for modality, read in loaded.columns.items():
        of_record = [column for column in columns if column.name in read and column.is_number]
        warnings += _differing(modality, of_record, subjects, manifest)
    return warnings


def _similar(manifest: Manifest) -> list[Finding]:
    """Returns one warning for all subjects whose ids may be two spellings of one."""
    groups = similar_subjects(manifest.subjects)
    if not groups:
        return []
    shown = "; ".join(" and ".join(map(_spell, group)) for group in groups[:_SHOWN])
    more = f"; and {len(groups) - _SHOWN} more" if len(groups) > _SHOWN else ""
    message = (
        f"subjects: ids that differ only by case, blanks or Unicode form ({shown}{more}). If they are one "
        "patient, mend them: a split may put them on both sides."
    )
    named = {subject for group in groups for subject in group}
    rows = [row for row, subject in enumerate(manifest.subjects) if subject in named]
    return [Finding("subject", message, tuple(manifest.samples[row] for row in rows))]


def _spell(subject: str) -> str:
    """Returns an id such that two that look alike can be told apart."""
    shown, exact = repr(subject), ascii(subject)
    return shown if shown == exact else f"{shown} ({exact})"


def _reading(loaded: LoadedRecipe, reader: ModalityReader) -> str:
    """Returns the address of how a modality's cells are read: all that decides what is accepted."""
    plan = loaded.parts[f"{reader.name}.encoder"]
    return address_of(
        {
            "use": plan.use,
            "version": plan.plugin.version,
            "options": plan.options,
            "input": reader.spec.identity(),
        }
    )


def _any_cell(columns: Sequence[Column], names: Sequence[str]) -> BoolArray:
    rows: BoolArray = np.logical_or.reduce([column.present for column in columns if column.name in names])
    return rows


def _classes(manifest: Manifest, subjects: Subjects) -> dict[str, dict[str, int]]:
    everyone = subjects.counts(np.ones(len(manifest), dtype=bool)).tolist()
    counts = {
        name: {"samples": sum(outcome == name for outcome in manifest.outcomes), "subjects": n_subjects}
        for name, n_subjects in zip(manifest.classes, everyone, strict=True)
    }
    unknown = sum(outcome is None for outcome in manifest.outcomes)
    if unknown or (subjects.labels < 0).any():
        counts["unknown"] = {"samples": unknown, "subjects": int((subjects.labels < 0).sum())}
    return counts


def _facts(column: Column, loaded: LoadedRecipe, subjects: Subjects, files: Files) -> ColumnFacts:
    digests = files.digests.get(column.name)
    auc = alone(column, subjects) if column.is_number else None
    return ColumnFacts(
        name=column.name,
        kind=column.spec.kind,
        modalities=tuple(name for name, names in loaded.columns.items() if column.name in names),
        missing=int((~column.present).sum()) - column.n_illegal,
        illegal=column.n_illegal,
        distinct=len(column.values) if digests is None else n_distinct(digests),
        auc=None if auc is None else round(auc, 3),
    )


def _modality(name: str, present: BoolArray, subjects: Subjects) -> list[Finding]:
    """Returns a warning where having a modality, or lacking it, tells the outcome."""
    lonely = lonely_class(present, subjects)
    reason = f"only {lonely} have it" if lonely is not None else ""
    having = Column(name, ColumnSpec(kind="text"), present.astype(np.int64), [name], [name])
    for text, label, count in () if reason else settling_values(having, subjects):
        which = "that have" if text is not None else "that lack"
        reason = f"all {count} subjects {which} it are {label}"
    if not reason:
        return []
    cure = "Look at how the data were gathered."
    return [Finding("presence", f"{name}: {reason}, so that its presence gives the outcome away. {cure}")]


def _column(
    column: Column, fact: ColumnFacts, subjects: Subjects, *, is_absence_known: bool
) -> list[Finding]:
    where = f"{' and '.join(fact.modalities)}: {column.name}"
    found = []
    if not len(column.values) and not column.n_illegal:
        found.append(Finding("missing", f"{where}: no row has a value. Leave the column out."))
    elif column.is_number:
        found += _given_away(column, fact, where, subjects, is_absence_known=is_absence_known)
    return found


def _constant(columns: Sequence[Column], facts: Sequence[ColumnFacts]) -> Iterator[Finding]:
    """Yields one warning for all columns of the same modalities that have one value each."""
    same: dict[str, list[Column]] = {}
    for column, fact in zip(columns, facts, strict=True):
        if column.is_number and len(column.values) == 1:
            same.setdefault(" and ".join(fact.modalities), []).append(column)
    for where, found in same.items():
        told = [f"{column.name} ('{column.texts[0]}')" for column in found]
        more = f" and {len(told) - _SHOWN} more" if len(told) > _SHOWN else ""
        which, cure = ("a column", "it") if len(told) == 1 else (f"{len(told)} columns", "them")
        yield Finding(
            "constant",
            f"{where}: {which} with one value, which tells nothing: {', '.join(told[:_SHOWN])}{more}. "
            f"Leave {cure} out, unless missing cells tell.",
        )


def _given_away(
    column: Column, fact: ColumnFacts, where: str, subjects: Subjects, *, is_absence_known: bool
) -> list[Finding]:
    """Returns a warning where a column alone, or one of its values, tells the outcome."""
    lonely = None if is_absence_known else lonely_class(column.present, subjects)
    reasons = [f"only {lonely} have a value"] if lonely is not None else []
    settling = [] if reasons else list(settling_values(column, subjects))
    if is_absence_known:  # said of the modality already
        settling = [entry for entry in settling if entry[0] is not None]
    for text, name, count in settling[:_SHOWN_VALUES]:
        which = f"with '{text}'" if text is not None else "without a value"
        reasons.append(f"all {count} subjects {which} are {name}")
    if len(settling) > _SHOWN_VALUES:
        n_more = len(settling) - _SHOWN_VALUES
        reasons.append(f"and so for {counted(n_more, 'more value')}")
    if fact.auc is not None and fact.auc >= GIVES_AWAY:
        reasons.append(f"alone it reaches an AUC of {fact.auc:.3f}, cross-validated by subject")
    if not reasons:
        return []
    message = f"{where} gives the outcome away: {'; '.join(reasons)}. "
    return [Finding("giveaway", message + "Leave it out if it is not known before the outcome is.")]


def _differing(
    modality: str, columns: Sequence[Column], subjects: Subjects, manifest: Manifest
) -> list[Finding]:
    """Returns one warning for all columns of a modality in which samples of one subject differ."""
    found = {column.name: differing_subjects(column, subjects) for column in columns}
    differing = [column for column in columns if found[column.name].any()]
    if not differing:
        return []
    shown = ", ".join(_example(column, found[column.name], subjects) for column in differing[:_SHOWN_VALUES])
    n_more = len(differing) - _SHOWN_VALUES
    more = f" and {counted(n_more, 'more column')}" if n_more > 0 else ""
    message = (
        f"{modality}: samples of one subject have different values: {shown}{more}. "
        "Mend them, unless they change from sample to sample."
    )
    is_named = np.logical_or.reduce([found[column.name] for column in differing])[subjects.of_row]
    return [
        Finding("record", message, tuple(manifest.samples[row] for row in np.flatnonzero(is_named).tolist()))
    ]


def _example(column: Column, differing: BoolArray, subjects: Subjects) -> str:
    subject = int(differing.argmax())
    codes = column.codes[(subjects.of_row == subject) & column.present]
    texts = [column.texts[code - 1] for code in dict.fromkeys(codes.tolist())]
    count = int(differing.sum())
    who = f"{count} subjects, such as" if count > 1 else "subject"
    return f"{column.name} ({who} {subjects.names[subject]}: {' and '.join(texts[:_SHOWN_VALUES])})"
