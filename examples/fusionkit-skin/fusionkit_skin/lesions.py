"""How a folder like HAM10000 becomes rows; polars is imported here, not when cards are read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import polars as pl

from fusionkit import ColumnSpec, DataError, Manifest, SourceContext, read_table
from fusionkit_skin import CLASSES, SITES, SkinConfig

NEEDED = ("lesion_id", "image_id", "dx", "age", "sex", "localization")
SUFFIXES = (".jpg", ".png")


class SkinLesions:
    """Reads one row per image; the subject is the lesion, since HAM10000 names no patients."""

    schema: Mapping[str, ColumnSpec] = {
        "image": ColumnSpec(kind="file"),
        "age": ColumnSpec(kind="numeric", range=(0, 120), unit="years"),
        "sex": ColumnSpec(kind="binary", values=("female", "male"), missing=("", "unknown")),
        "site": ColumnSpec(kind="category", values=SITES, missing=("", "unknown")),
    }
    classes: tuple[str, ...] = tuple(CLASSES)

    def __init__(self, config: SkinConfig) -> None:
        self.folder = config.folder
        self.simulated = config.simulated

    def read(self, context: SourceContext) -> Manifest:
        """Reads every row; rows of other diagnoses are left out and counted."""
        root = context.data_root / self.folder
        table = read_table(root / "metadata.csv")
        lacking = [name for name in NEEDED if name not in table.columns]
        if lacking:
            raise DataError(
                f"{root / 'metadata.csv'}: no column {', '.join(lacking)}. Give HAM10000's columns."
            )
        class_of = {code: name for name, code in CLASSES.items()}
        kept = table.filter(pl.col("dx").is_in(list(class_of)))
        others = table.filter(~pl.col("dx").is_in(list(class_of)))["dx"].value_counts(name="rows", sort=True)
        return Manifest(
            samples=kept["image_id"].to_list(),
            subjects=kept["lesion_id"].to_list(),
            outcomes=[class_of[code] for code in kept["dx"]],
            cells=pl.DataFrame(
                {
                    "image": [_file_of(root, name) for name in kept["image_id"]],
                    "age": kept["age"],
                    "sex": kept["sex"],
                    "site": kept["localization"],
                },
                schema=dict.fromkeys(self.schema, pl.String),
            ),
            schema=self.schema,
            classes=self.classes,
            root=root,
            is_simulated=self.simulated,
            dropped={f"dx={code}": count for code, count in others.iter_rows()},
        )


def _file_of(root: Path, name: str) -> str:
    """Returns the image's file; where there is none, its first possible name, which the audit then misses."""
    found = [name + suffix for suffix in SUFFIXES if (root / (name + suffix)).is_file()]
    return found[0] if found else name + SUFFIXES[0]
