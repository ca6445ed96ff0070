"""Vectors that were computed elsewhere, or measured: embeddings of foundation models, omics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

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

    @model_validator(mode="after")
    def _check_used(self) -> Self:
        unused: tuple[str, ...]
        if self.table == "none":
            unused, why = ("key", "unknown"), "each row has a file (`table` is none)"
        elif Path(self.table).suffix == ".safetensors":
            unused, why = ("key", "tensor"), "in a .safetensors table each id is the name of its tensor"
        else:
            unused, why = ("tensor",), "a table has its vectors by id"
        fields = type(self).model_fields
        given = [name for name in unused if getattr(self, name) != fields[name].default]
        if given:
            told = " and ".join(f"`{name}`" for name in given)
            raise ValueError(f"{told}: not used, since {why}. Leave {'them' if given[1:] else 'it'} out")
        return self


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
