"""The encoder for structured records: numbers, codes and multi-valued cells as one vector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from fusionkit import ColumnSpec, ComponentConfig, Encoder, EncoderSpec, hookimpl


class StructuredOptions(ComponentConfig):
    """Options of structured."""

    missing: Literal["keep", "mean"] = "mean"
    """keep: missing numbers stay missing, the next part must accept that; mean: the training rows' mean."""
    flags: bool = False
    """Whether one more number per column says that its cell was missing."""
    encoding: Literal["codes", "onehot"] = "codes"
    """codes: one number per single-valued column; onehot: one per value, where there are three or more."""
    scale: Literal["standard", "range", "none"] = "standard"
    """standard: every number has mean 0 and standard deviation 1 over the training rows; range: the training
    rows' least is 0, their greatest 1; none: as it is."""
    cell_dropout: float = Field(0.0, ge=0, lt=1)
    """Probability with which a training draw blanks a cell."""


def _build(config: StructuredOptions, columns: Mapping[str, ColumnSpec]) -> Encoder:
    from fusionkit_tabular.structured import Structured

    return Structured(config, columns)


@hookimpl
def fusionkit_components() -> Sequence[EncoderSpec]:
    """Returns the card of the encoder."""
    return (
        EncoderSpec(
            name="structured",
            summary="A record as one vector: numbers, codes or one-hot values; missing ones kept or imputed.",
            source="Yan et al. 2021, doi:10.1186/s12911-020-01340-6 (29 codes); the other options are ours",
            config=StructuredOptions,
            examples=(StructuredOptions(), StructuredOptions(missing="keep", flags=True, encoding="onehot")),
            build=_build,
            reads=("numeric", "ordinal", "category", "binary", "multi"),
            learns="closed_form",
            emits_missing=lambda config: config.missing == "keep",
        ),
    )
