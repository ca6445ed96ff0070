"""What both encoders share: one column of text, one view, nothing random."""

from __future__ import annotations

import hashlib
import unicodedata
from collections.abc import Mapping

from fusionkit import Cells, ColumnSpec, RecipeError


class OneText:
    """One column of free text; a row whose text has no letter and no digit lacks the modality."""

    def __init__(self, columns: Mapping[str, ColumnSpec]) -> None:
        if len(columns) != 1:
            given = ", ".join(columns) or "none"
            raise RecipeError(
                f"columns: a text is read from one column (given: {given}). Name one of kind text."
            )
        self.columns = tuple(columns)
        self.draws = 1

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns the one view."""
        return ("whole",)

    def is_random(self, *, training: bool) -> bool:
        """Says that no view is random."""
        return False

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of the normalised text, or None where it says nothing."""
        text = self.text(cells)
        return hashlib.sha256(text.encode()).digest() if any(map(str.isalnum, text)) else None

    def text(self, cells: Cells) -> str:
        """Returns a row's text in Unicode's form NFKC: wide letters, ligatures and the like are plain."""
        # a lone surrogate, which a broken table may hold, has no bytes
        text = str(cells[self.columns[0]] or "").encode("utf-8", "replace").decode()
        return unicodedata.normalize("NFKC", text)
