"""Which image files are the tiles of a row."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from fusionkit import Cells, ColumnSpec, DataError, RecipeError
from fusionkit_bags import ImageBagConfig

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Files of a folder that are tiles; others are left alone."""


class TileFiles:
    """Finds tiles: a file in each of several columns, or what one text lists under a folder."""

    def __init__(self, config: ImageBagConfig, columns: Mapping[str, ColumnSpec]) -> None:
        kinds = {spec.kind for spec in columns.values()}
        if kinds != {"file"} and (kinds != {"text"} or len(columns) != 1):
            given = ", ".join(f"{name} is {spec.kind}" for name, spec in columns.items()) or "none"
            raise RecipeError(
                f"columns: tiles are files in columns of kind file, or listed in one of kind text "
                f"(given: {given}). Name such columns."
            )
        if kinds == {"text"} and not config.folder:
            raise RecipeError(
                "folder: a text lists paths, and what they are relative to is not said. Set it."
            )
        if kinds == {"file"}:
            for name in ("folder", "separator"):
                if getattr(config, name) != type(config).model_fields[name].default:
                    raise RecipeError(
                        f"{name}: of texts that list tiles, and the columns are of kind file "
                        f"({getattr(config, name)}). Leave it out."
                    )
        self.folder, self.separator = Path(config.folder), config.separator

    def find(self, cells: Cells) -> list[Path]:
        """Returns the tiles of a row; raises DataError that names every path that is none."""
        found: list[Path] = []
        problems: list[str] = []
        for cell in cells.values():
            if isinstance(cell, Path):
                found.append(cell)
            elif cell is not None:
                texts = [part.strip() for part in cell.split(self.separator) if part.strip()]
                for text in texts:
                    try:
                        found += self._resolve(text)
                    except DataError as error:
                        problems += error.problems
        if problems:
            raise DataError(problems)
        return found

    def _resolve(self, text: str) -> list[Path]:
        path = self.folder / text
        try:
            is_inside = path.resolve().is_relative_to(self.folder.resolve())
            is_there = path.exists()
        except (OSError, ValueError, RuntimeError) as error:  # NUL, too long, a loop of links
            raise DataError(
                f"a tile whose path cannot be followed ({text[:80]!r}: {error}). Mend it."
            ) from None
        if not is_inside:
            raise DataError(f"a tile that leaves its folder ({text}). Only files in {self.folder} are read.")
        if not is_there:
            raise DataError(f"there is no such tile ({path}). Check its name and the option `folder`.")
        if path.is_dir():
            return sorted(tile for tile in path.iterdir() if tile.suffix.lower() in SUFFIXES)
        return [path]


def tile_digest(path: Path) -> bytes:
    """Returns the sha256 of a tile's bytes, computed once until it changes; raises DataError."""
    try:
        status = path.stat()
        return _digest(path, (status.st_ino, status.st_mtime_ns, status.st_size))
    except OSError as error:
        raise DataError(
            f"{path}: the tile cannot be read ({error.strerror}). Check it and its rights."
        ) from None


@lru_cache(4096)
def _digest(path: Path, mark: tuple[int, ...]) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
