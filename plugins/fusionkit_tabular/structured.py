"""The structured encoder: it learns means and deviations; all else follows from the declaration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn

from fusionkit import ColumnSpec, InputSpec, PluginError, TabularInput
from fusionkit_tabular import StructuredOptions


class Structured(nn.Module):
    """Turns parsed records into one vector: values, one-hot values where asked for, then a flag per column.

    Shape:
        inputs (n, input_spec.output_dim) float32, NaN where missing -> (n, output_dim) float32

    Args:
        config: Options.
        columns: The columns that it reads, in order.
    """

    mean: Tensor
    std: Tensor
    least: Tensor
    width: Tensor
    is_fitted: Tensor
    flag_index: Tensor

    def __init__(self, config: StructuredOptions, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.config = config
        record = TabularInput(columns, config.cell_dropout)
        self.input_spec: InputSpec = record
        # how many numbers each parsed number becomes: 1, or one per value
        self._n_values = tuple(
            len(columns[name].values)
            if is_code and config.encoding == "onehot" and len(columns[name].values) > 2
            else 1
            for name, is_code in zip(record.sources, record.is_code, strict=True)
        )
        self.output_dim = sum(self._n_values) + (len(columns) if config.flags else 0)
        # a multi column is missing as a whole, so its first number answers for it
        first = [record.sources.index(name) for name in columns]
        self.register_buffer("flag_index", torch.tensor(first), persistent=False)
        self.register_buffer("mean", torch.zeros(self.output_dim))
        self.register_buffer("std", torch.ones(self.output_dim))
        if config.scale == "range":
            self.register_buffer("least", torch.zeros(self.output_dim))
            self.register_buffer("width", torch.ones(self.output_dim))
        self.register_buffer("is_fitted", torch.tensor(False))

    def fit(self, inputs: Tensor, targets: Any = None, *, seed: int) -> Self:
        """Learns each number's mean and deviation over the rows that have it; forgets an earlier fit."""
        values = self._expand(inputs).double()
        is_present = ~values.isnan()
        count = is_present.sum(0).clamp(min=1)
        mean = values.nansum(0) / count
        deviation = (((values - mean) ** 2).nansum(0) / count).sqrt()
        least, greatest = values.nan_to_num(torch.inf).amin(0), values.nan_to_num(-torch.inf).amax(0)
        # equal values may leave a deviation of rounding errors
        is_constant = least >= greatest
        self.mean.copy_(mean)
        self.std.copy_(deviation.masked_fill(is_constant | (deviation == 0), 1))
        if self.config.scale == "range":
            self.least.copy_(torch.where(least.isinf(), 0, least))  # a column without any value
            self.width.copy_((greatest - least).masked_fill(is_constant, 1))
        self.is_fitted.fill_(True)
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns (n, output_dim); raises PluginError before it was fitted."""
        if not self.is_fitted:
            raise PluginError("structured: not fitted yet. Name this encoder in a fit or train stage.")
        values = self._expand(inputs)
        if self.config.missing == "mean":
            values = torch.where(values.isnan(), self.mean, values)
        if self.config.scale == "standard":
            values = (values - self.mean) / self.std
        elif self.config.scale == "range":
            values = (values - self.least) / self.width
        return values

    def _expand(self, inputs: Tensor) -> Tensor:
        parts = [
            self._one_hot(inputs[:, i], n_values) if n_values > 1 else inputs[:, i : i + 1]
            for i, n_values in enumerate(self._n_values)
        ]
        if self.config.flags:
            parts.append(inputs[:, self.flag_index].isnan().to(inputs.dtype))
        return torch.cat(parts, dim=1)

    def _one_hot(self, codes: Tensor, n_values: int) -> Tensor:
        is_missing = codes.isnan()
        hot = nn.functional.one_hot(codes.nan_to_num(0).long(), n_values).to(codes.dtype)
        return hot.masked_fill(is_missing[:, None], torch.nan)
