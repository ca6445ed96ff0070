"""A toy plugin: the smallest component of every kind, on 24 rows of 8 subjects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from fusionkit import (
    ColumnSpec,
    ComponentConfig,
    EncoderSpec,
    HeadSpec,
    RaiserSpec,
    SourceContext,
    SourceSpec,
    hookimpl,
)

SCHEMA = {
    "number": ColumnSpec(kind="numeric", range=(-10, 10), description="Follows the outcome."),
    "word": ColumnSpec(kind="category", values=("a", "b", "c"), description="Follows the outcome, less."),
}


class ToySourceConfig(ComponentConfig):
    """Options of toy."""

    blanks: bool = False
    """Whether every fifth number and every seventh word is missing."""


class ToySource:
    """24 rows of 8 subjects, made from their index."""

    schema = SCHEMA
    classes = ("no", "yes")
    simulated = True

    def __init__(self, config: ToySourceConfig) -> None:
        self.config = config

    def read(self, context: SourceContext) -> Any:
        import polars as pl

        from fusionkit import Manifest

        rows = range(24)
        subjects = [row // 3 for row in rows]
        is_yes = [subject % 2 == 1 for subject in subjects]
        numbers: list[str | None] = [
            f"{row % 3 * 0.5 + (2 if yes else -2)}" for row, yes in zip(rows, is_yes, strict=True)
        ]
        words: list[str | None] = ["abc"[(row % 2) + yes] for row, yes in zip(rows, is_yes, strict=True)]
        if self.config.blanks:
            numbers = [None if row % 5 == 0 else text for row, text in enumerate(numbers)]
            words = [None if row % 7 == 0 else text for row, text in enumerate(words)]
        return Manifest(
            samples=[f"sample{row:02}" for row in rows],
            subjects=[f"subject{subject}" for subject in subjects],
            outcomes=["yes" if yes else "no" for yes in is_yes],
            cells=pl.DataFrame(
                {"number": numbers, "word": words}, schema={"number": pl.String, "word": pl.String}
            ),
            schema=SCHEMA,
            classes=self.classes,
            root=context.data_root,
            is_simulated=True,
        )


class ToyMeanConfig(ComponentConfig):
    """Options of toy_mean."""

    width: int = Field(4, ge=1)
    """Width of the result."""
    missing: Literal["zero", "keep"] = "zero"
    """zero: a missing cell counts as 0; keep: it makes the whole vector missing."""


class ToyRepeatConfig(ComponentConfig):
    """Options of toy_repeat."""

    times: int = Field(2, ge=1)
    """How often the vector is repeated."""


class ToyDenoiseConfig(ComponentConfig):
    """Options of toy_denoise."""

    width: int = Field(6, ge=1)
    """Width of the code, which is the result."""


class ToyLinearConfig(ComponentConfig):
    """Options of toy_linear."""

    bias: bool = True
    """Whether an offset is learned."""


def build_toy_mean(config: ToyMeanConfig, columns: Mapping[str, ColumnSpec]) -> Any:
    from torch import nn

    from fusionkit import TabularInput

    class ToyMean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_spec = TabularInput(columns)
            self.output_dim = config.width
            self.linear = nn.Linear(self.input_spec.output_dim, config.width)

        def forward(self, inputs: Any) -> Any:
            return self.linear(inputs.nan_to_num(0.0) if config.missing == "zero" else inputs)

    return ToyMean()


def build_toy_repeat(config: ToyRepeatConfig, input_dim: int) -> Any:
    from torch import nn

    class ToyRepeat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_dim, self.output_dim = input_dim, config.times * input_dim

        def forward(self, features: Any) -> Any:
            return features.repeat(1, config.times)

    return ToyRepeat()


def build_toy_denoise(config: ToyDenoiseConfig, input_dim: int) -> Any:
    import torch
    from torch import nn

    class ToyDenoise(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_dim, self.output_dim = input_dim, config.width
            self.up, self.down = nn.Linear(input_dim, config.width), nn.Linear(config.width, input_dim)

        def forward(self, features: Any) -> Any:
            return self.up(features.nan_to_num(0.0)).tanh()

        def loss(self, inputs: Any, generator: Any) -> Any:
            kept = (
                torch.rand(inputs.shape, generator=generator, device=generator.device).to(inputs.device) > 0.2
            )
            error = self.down(self(inputs * kept)) - inputs
            return error[~error.isnan()].square().mean()

    return ToyDenoise()


def build_toy_linear(config: ToyLinearConfig, input_dims: Mapping[str, int], output_dim: int) -> Any:
    import torch
    from torch import nn

    class ToyLinear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(sum(input_dims.values()), output_dim, bias=config.bias)

        def forward(self, features: Mapping[str, Any], present: Mapping[str, Any]) -> Any:
            return self.linear(torch.cat([features[name] for name in input_dims], dim=1))

    return ToyLinear()


def emits_missing(config: ToyMeanConfig) -> bool:
    return config.missing == "keep"


TOY_PATH = Path(__file__)
CARDS = (
    SourceSpec(
        name="toy", summary="24 rows of 8 subjects.", source="ours", config=ToySourceConfig, build=ToySource
    ),
    EncoderSpec(
        name="toy_mean",
        summary="One linear layer over the columns.",
        source="ours",
        config=ToyMeanConfig,
        build=build_toy_mean,
        reads=("numeric", "category"),
        emits_missing=emits_missing,
        examples=(ToyMeanConfig(),),
    ),
    RaiserSpec(
        name="toy_repeat",
        summary="Repeats the vector.",
        source="ours",
        config=ToyRepeatConfig,
        build=build_toy_repeat,
        examples=(ToyRepeatConfig(),),
    ),
    RaiserSpec(
        name="toy_denoise",
        summary="Learns to restore what was set to zero.",
        source="ours",
        config=ToyDenoiseConfig,
        build=build_toy_denoise,
        learns="self_supervised",
        accepts_missing=True,
        examples=(ToyDenoiseConfig(),),
    ),
    HeadSpec(
        name="toy_linear",
        summary="One linear layer.",
        source="ours",
        config=ToyLinearConfig,
        build=build_toy_linear,
        examples=(ToyLinearConfig(),),
    ),
)

RECIPE = """\
name: toy
source: {use: toy}
modalities:
  numbers:
    columns: [number]
    encoder: {use: toy_mean}
  words:
    columns: [word]
    encoder: {use: toy_mean, width: 3}
    raiser: {use: toy_denoise, width: 5}
head: {use: toy_linear}
stages:
  - name: learn_words
    pretrain: words.encoder
    epochs: 2
  - name: raise_words
    fit: [words.raiser]
    epochs: 2
  - name: fuse
    train: [head, numbers.encoder]
    epochs: 2
split: {scheme: folds, folds: 2}
"""
"""A recipe that uses every toy but toy_repeat."""


@hookimpl
def fusionkit_components() -> Sequence[Any]:
    """Returns the cards of this plugin."""
    return CARDS
