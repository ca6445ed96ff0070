"""The source for a table of samples: one row per sample, images in files beside it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, WithJsonSchema, model_validator

from fusionkit import ColumnSpec, ComponentConfig, DataFile, Source, SourceSpec, hookimpl


def _as_texts(value: Any) -> Any:
    """Lets a recipe write one text for a list of one, and a bare number for the text of a cell."""
    if isinstance(value, list | tuple):
        return tuple(
            str(text) if isinstance(text, int) and not isinstance(text, bool) else text for text in value
        )
    return _as_texts([value])


_TEXT_SCHEMAS = [{"type": "string"}, {"type": "integer"}]
_TEXTS_SCHEMA = {"anyOf": [*_TEXT_SCHEMAS, {"type": "array", "items": {"anyOf": _TEXT_SCHEMAS}}]}
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_texts), WithJsonSchema(_TEXTS_SCHEMA)]


class ManifestOptions(ComponentConfig):
    """Options of manifest."""

    table: DataFile
    """The table: .csv, .tsv, .txt or .parquet, one row per sample."""
    images: DataFile = ""
    """Folder that the paths in file columns are relative to; by default the table's."""
    subject: str
    """Column of the subject (patient)."""
    sample: str | None = None
    """Column of the sample's id; null for row1, row2, ... in the table's order."""
    outcome: str | None = None
    """Column of the sample's class; null where the recipe's task names the outcome's columns."""
    subject_outcome: str | None = None
    """Column of the subject's own outcome, where it may differ from its samples'."""
    classes: Mapping[str, Texts] = {}
    """Class -> the cell text, or texts, that mean it; the last class is the positive one. Needed with an
    outcome."""
    drop: Mapping[str, Texts] = {}
    """Column -> the texts whose rows are left out, and counted."""
    sha256: Mapping[str, str] = {}
    """File column -> column with the sha256 of its files; a file with another one is an error."""
    columns: Mapping[str, ColumnSpec] = {}
    """What each column may hold."""
    schema_file: DataFile = ""
    """A YAML file that says it instead of `columns`."""
    subject_pattern: str | None = None
    """Regular expression that finds the subject in its cell (its first group, if it has one)."""
    encoding: Literal["utf-8", "latin-1"] = "utf-8"
    """How the bytes of a CSV table spell its text."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = []
        if bool(self.columns) == bool(self.schema_file):
            problems.append("exactly one of `columns` and `schema_file` says what the columns hold")
        is_needed = bool(self.classes) or self.outcome is not None or self.subject_outcome is not None
        if is_needed and len(self.classes) < 2:
            problems.append("`classes` names at least two classes")
        counts = Counter(text for members in self.classes.values() for text in members)
        twice = sorted(text for text, count in counts.items() if count > 1)
        if twice:
            more = f" and {len(twice) - 5} more" if len(twice) > 5 else ""
            named = ", ".join(map(repr, twice[:5])) + more
            problems.append(f"`classes` gives {named} to more than one class")
        try:
            re.compile(self.subject_pattern or "")
        except (re.error, OverflowError, RecursionError) as error:
            problems.append(f"`subject_pattern` is no regular expression ({error})")
        if problems:
            raise ValueError("; ".join(problems))
        return self


def _build(config: ManifestOptions) -> Source:
    from fusionkit_manifest.source import ManifestSource

    return ManifestSource(config)


def _example_files(config: ManifestOptions, data_root: Path) -> None:
    """Writes the table of the example, for the conformance kit."""
    rows = ["patient,image,age,diagnosis"]
    rows += [f"p{row // 2},{row}.png,{40 + row},{('benign', 'malignant')[row % 2]}" for row in range(6)]
    (data_root / config.table).write_text("\n".join(rows) + "\n", encoding="utf-8")


@hookimpl
def fusionkit_components() -> Sequence[SourceSpec]:
    """Returns the card of the source."""
    return (
        SourceSpec(
            name="manifest",
            summary="A table with one row per sample (CSV or Parquet), and image files beside it.",
            source="ours",
            config=ManifestOptions,
            examples=(
                ManifestOptions(
                    table="rows.csv",
                    subject="patient",
                    outcome="diagnosis",
                    classes={"benign": ("benign",), "malignant": ("malignant",)},
                    columns={"image": ColumnSpec(kind="file"), "age": ColumnSpec(kind="numeric")},
                ),
            ),
            build=_build,
            example_files=_example_files,
        ),
    )
