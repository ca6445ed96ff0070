"""A few small files, for the conformance kit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from fusionkit import Cells, ColumnSpec
from fusionkit_vectors import VectorsConfig


def write_example_files(config: VectorsConfig, folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    """Writes six vectors; returns columns and rows."""
    rows: list[Cells] = []
    for number in range(6):
        path = folder / f"{number}.npy"
        np.save(path, np.sin(np.arange(config.width or 1) + number).astype(np.float32))
        rows.append({"vector": path})
    return {"vector": ColumnSpec(kind="file")}, rows
