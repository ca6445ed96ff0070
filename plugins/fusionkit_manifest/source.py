"""The source `manifest`: what it knows before any row is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit import ColumnSpec, RecipeError, SourceContext, suggest
from fusionkit_manifest import ManifestOptions
from fusionkit_manifest.schema_file import read_schema

if TYPE_CHECKING:
    from fusionkit import Manifest


class ManifestSource:
    """One row per sample, from one table.

    Raises:
        RecipeError: The outcome is among the encoders' columns, or `sha256` names no file column.
        DataError: The schema file is not there, or is wrong.
    """

    simulated = False

    def __init__(self, config: ManifestOptions) -> None:
        self.config = config
        self.classes = tuple(config.classes)
        self.schema: Mapping[str, ColumnSpec] = config.columns or read_schema(Path(config.schema_file))
        files = [name for name, spec in self.schema.items() if spec.kind == "file"]
        problems = [
            f"sha256: there is no file column '{name}'. {suggest(name, files)}"
            for name in config.sha256
            if name not in files
        ]
        answers = [name for name in (config.outcome, config.subject_outcome) if name in self.schema]
        if answers:
            problems.append(
                f"columns: an outcome cannot be an input ({', '.join(map(str, answers))}). "
                "Take it out of `columns`, or of the schema file."
            )
        if problems:
            raise RecipeError(problems)

    def read(self, context: SourceContext) -> Manifest:
        """Returns every row that is not dropped, and all that is wrong with them."""
        from fusionkit_manifest.rows import read_rows

        return read_rows(self.config, self.schema, context.data_root)
