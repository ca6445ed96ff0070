"""Vectors that were computed elsewhere, or measured: embeddings of foundation models, omics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from fusionkit import Cells, ColumnSpec, ComponentConfig, DataFile, EncoderSpec, hookimpl

if TYPE_CHECKING:
    from fusionkit import Encoder


class VectorsConfig(ComponentConfig):
    """Options of vectors."""

    not_files: ClassVar[tuple[str, ...]] = ("none",)
    width: int | None = Field(None, ge=1, le=1_000_000)
    """How many numbers a vector has. Needed where each row has a file; null: as the table has it."""
    table: DataFile = "none"
    """none: the column, of kind file, names each row's .npy or .safetensors file; or one table for the whole
    cohort, in which the column, of kind text, holds each row's id: .csv, .parquet, .npy or .safetensors."""
    key: str = "id"
    """The table's column (.csv, .parquet) or field (.npy) of ids; in a .safetensors they are the names."""
    tensor: str = ""
    """The tensor to take of a row's .safetensors file; empty: its only one."""
    unknown: Literal["error", "absent"] = "error"
    """What an id means that is not in the table: a mistake, or a row without this modality."""
    missing: Literal["refuse", "keep"] = "refuse"
    """refuse: a NaN is an error; keep: it stays, the next part must accept it; a vector of nothing else is
    absent."""


def _build(config: VectorsConfig, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_vectors.vectors import Vectors

    return Vectors(config, columns)


def _example_files(config: VectorsConfig, folder: Path) -> tuple[Mapping[str, ColumnSpec], list[Cells]]:
    from fusionkit_vectors.example_files import write_example_files

    return write_example_files(config, folder)


VECTORS = EncoderSpec(
    name="vectors",
    summary="Vectors as they are, from a file per row or a table of the cohort: embeddings, omics.",
    source="ours",
    config=VectorsConfig,
    build=_build,
    reads=("file", "text"),
    learns="nothing",
    emits_missing=lambda config: config.missing == "keep",
    examples=(VectorsConfig(width=8), VectorsConfig(width=4, missing="keep")),
    example_files=_example_files,
)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card of the encoder."""
    return [VECTORS]
