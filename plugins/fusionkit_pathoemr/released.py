"""The source `pathoemr`: the released data, records joined to images by patient."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit import ColumnSpec, DataError, SourceContext
from fusionkit_pathoemr.options import PathoemrOptions
from fusionkit_pathoemr.schema import CLASSES, COLUMNS, FIELDS, IMAGE, MISSING

if TYPE_CHECKING:
    import polars as pl

    from fusionkit import Manifest

RELEASED_COUNTS = {
    "patients": 185,
    "benign patients": 82,
    "malignant patients": 103,
    "images": 3764,
    "benign images": 1332,
    "malignant images": 2432,
}
"""What Yan et al. 2021 publish."""

Cell = str | None


class ReleasedSource:
    """The released PathoEMR data."""

    schema: Mapping[str, ColumnSpec] = COLUMNS
    classes: tuple[str, ...] = CLASSES
    simulated = False

    def __init__(self, options: PathoemrOptions) -> None:
        self.options = options

    def read(self, context: SourceContext) -> Manifest:
        """Joins records to images by patient."""
        options = self.options
        index, records = _read_tables(context.data_root, options)
        problems = [*_index_problems(index, options), *_record_problems(records, options)]
        problems += _join_problems(index["patient"], records["patient"], options)
        if problems:
            raise DataError(problems)
        manifest = _join(index, records, context.data_root / options.images, options)
        if options.expect_released_counts:
            _check_counts(manifest, options)
        return manifest


def _index_columns(options: PathoemrOptions) -> dict[str, str]:
    columns = {
        IMAGE: options.image_column,
        "patient": options.index_patient_column,
        "label": options.label_column,
    }
    return columns | ({"magnification": options.magnification_column} if options.magnification_column else {})


def _record_columns(options: PathoemrOptions) -> dict[str, str]:
    fields = {name: options.fields.get(name, name) for name in FIELDS}
    return {"patient": options.record_patient_column, "diagnosis": options.diagnosis_column, **fields}


def _read_tables(root: Path, options: PathoemrOptions) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Returns index and records; raises DataError with the problems of both files."""
    frames: list[pl.DataFrame] = []
    problems: list[str] = []
    for name, columns in (
        (options.index, _index_columns(options)),
        (options.records, _record_columns(options)),
    ):
        try:
            frames.append(_read_csv(root / name, columns, options.encoding))
        except DataError as error:
            problems += error.problems
    if problems:
        raise DataError(problems)
    return frames[0], frames[1]


def _read_csv(path: Path, columns: Mapping[str, str], encoding: str) -> pl.DataFrame:
    """Returns the named columns of a CSV file as text without outer blanks, under our names."""
    import polars as pl

    if not path.is_file():
        raise DataError(
            f"{path}: there is no such file. Set the source's options, --data-root or $FUSIONKIT_DATA."
        )
    try:
        frame = pl.read_csv(path, infer_schema=False, encoding=encoding)
    except (pl.exceptions.PolarsError, ValueError, LookupError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: cannot be read as CSV in {encoding} ({reason}). Set `encoding`.") from None
    lacking = [column for column in columns.values() if column not in frame.columns]
    if lacking:
        known = ", ".join(frame.columns)
        raise DataError([f"{path}: there is no column '{column}'. Known: {known}." for column in lacking])
    return frame.select(pl.col(column).str.strip_chars().alias(name) for name, column in columns.items())


def _index_problems(index: pl.DataFrame, options: PathoemrOptions) -> list[str]:
    where, images = options.index, index[IMAGE].to_list()
    problems = [
        f"{where}: row {row + 2} names no {what}. Fill in column '{column}'."
        for what, column in ((IMAGE, options.image_column), ("patient", options.index_patient_column))
        for row, text in enumerate(index[what].to_list())
        if _is_blank(text)
    ]
    problems += [
        f"{where}: image '{image}' has {count} rows. Keep one."
        for image, count in Counter(images).items()
        if count > 1 and not _is_blank(image)
    ]
    return problems + _class_problems(where, options.label_column, index["label"].to_list(), options)


def _record_problems(records: pl.DataFrame, options: PathoemrOptions) -> list[str]:
    where, patients = options.records, records["patient"].to_list()
    problems = [
        f"{where}: row {row + 2} names no patient. Fill in column '{options.record_patient_column}'."
        for row, patient in enumerate(patients)
        if _is_blank(patient)
    ]
    problems += [
        f"{where}: patient '{patient}' has {count} rows. Keep one."
        for patient, count in Counter(patients).items()
        if count > 1 and not _is_blank(patient)
    ]
    return problems + _class_problems(
        where, options.diagnosis_column, records["diagnosis"].to_list(), options
    )


def _class_problems(where: str, column: str, texts: Sequence[Cell], options: PathoemrOptions) -> list[str]:
    unknown = Counter(text for text in texts if not _is_blank(text) and text not in options.class_texts)
    known = ", ".join(options.class_texts)
    return [
        f"{where}: column '{column}' holds '{text}' in {_count(count, 'row')}. "
        f"Known: {known}. Add it to `class_texts`."
        for text, count in unknown.items()
    ]


def _join_problems(images: pl.Series, records: pl.Series, options: PathoemrOptions) -> list[str]:
    lacking = Counter(images.drop_nulls().to_list())
    for patient in records.to_list():
        lacking.pop(patient, None)
    return [
        f"{options.index}: patient '{patient}' has {_count(count, 'image')} and no record. Add a row to "
        f"{options.records}; blank fields are allowed."
        for patient, count in lacking.items()
        if not _is_blank(patient)
    ]


def _join(index: pl.DataFrame, records: pl.DataFrame, root: Path, options: PathoemrOptions) -> Manifest:
    from fusionkit import Manifest

    rows = index.join(records, on="patient", how="left", maintain_order="left")
    unused = records.join(index, on="patient", how="anti").height
    cells = rows.select(*COLUMNS, *(["magnification"] if options.magnification_column else []))
    return Manifest(
        samples=rows[IMAGE].to_list(),
        subjects=rows["patient"].to_list(),
        outcomes=_outcomes(rows["label"].to_list(), options),
        cells=cells,
        schema=COLUMNS,
        classes=CLASSES,
        root=root,
        subject_outcomes=_outcomes(rows["diagnosis"].to_list(), options),
        dropped={"record without image": unused} if unused else {},
    )


def _outcomes(texts: Sequence[Cell], options: PathoemrOptions) -> list[Cell]:
    return [None if text is None or _is_blank(text) else options.class_texts[text] for text in texts]


def _check_counts(manifest: Manifest, options: PathoemrOptions) -> None:
    """Raises DataError with every count that is not the published one."""
    diagnoses = dict(zip(manifest.subjects, manifest.subject_outcomes or (), strict=True))
    found = {
        "patients": len(diagnoses),
        **{f"{name} patients": list(diagnoses.values()).count(name) for name in CLASSES},
        "images": len(manifest),
        **{f"{name} images": list(manifest.outcomes).count(name) for name in CLASSES},
    }
    deviations = [
        f"{options.index}: there are {found[what]} {what}, and {count} were published. Complete the data, "
        "or set `expect_released_counts: false`."
        for what, count in RELEASED_COUNTS.items()
        if found[what] != count
    ]
    if deviations:
        raise DataError(deviations)


def _is_blank(text: Cell) -> bool:
    return text is None or text in MISSING


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
