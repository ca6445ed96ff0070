"""A toy plugin with pictures: a stored modality whose encoder counts the rows that it sees."""

from __future__ import annotations

import os
import shutil
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import polars as pl
import torch
import toys
from torch import nn

import fusionkit_tabular
from fusionkit import (
    ColumnSpec,
    ComponentConfig,
    EncoderSpec,
    HeadSpec,
    ImageInput,
    ImageOptions,
    Manifest,
    RaiserSpec,
    SourceContext,
    SourceSpec,
    hookimpl,
)
from fusionkit.data.splits import Fold
from fusionkit.part_factory import PartFactory
from fusionkit.recipe.load import LoadedRecipe, load_text
from fusionkit.registry import Registry
from fusionkit.store import Store
from fusionkit.task import Classification
from fusionkit.training.device import choose_device
from fusionkit.training.experiment import Experiment
from fusionkit.training.stages import Step, plan_steps

SCHEMA = {
    "picture": ColumnSpec(kind="file"),
    "number": ColumnSpec(kind="numeric"),
    "word": ColumnSpec(kind="category", values=("a", "b", "c")),
}
COUNTS: Counter[str] = Counter()
"""How many rows each toy has seen, by the toy's name."""


class PictureSourceConfig(ComponentConfig):
    """Options of toy_pictures."""

    blanks: bool = False
    """Whether subject 0 has no picture, subject 1 no record, and some rows lack one of them."""
    order: Literal["given", "reversed"] = "given"
    """The order of rows."""


def make_pictures(folder: Path) -> None:
    """Writes 36 pictures of 12 x 12 pixels, brighter where the outcome is yes."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for row in range(36):
        level = 90 + 60 * (row // 3 % 2)
        pixels = rng.integers(level - 60, level + 60, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row:02}.png")


def make_manifest(folder: Path, *, blanks: bool = False, order: Sequence[int] = tuple(range(36))) -> Manifest:
    """Returns 36 rows of 12 subjects whose pictures lie in a folder."""
    pictures: list[str | None] = [f"{row:02}.png" for row in range(36)]
    numbers: list[str | None] = [f"{row % 3 * 0.5 + (1 if row // 3 % 2 else -1)}" for row in range(36)]
    words: list[str | None] = ["abc"[row % 2 + row // 3 % 2] for row in range(36)]
    if blanks:
        pictures = [None if row < 3 or row % 7 == 0 else text for row, text in enumerate(pictures)]
        gone = {3, 4, 5, 11}
        numbers = [None if row in gone else text for row, text in enumerate(numbers)]
        words = [None if row in gone | {20} else text for row, text in enumerate(words)]
    columns = {"picture": pictures, "number": numbers, "word": words}
    return Manifest(
        samples=[f"sample{row:02}" for row in order],
        subjects=[f"subject{row // 3:02}" for row in order],
        outcomes=["yes" if row // 3 % 2 else "no" for row in order],
        cells=pl.DataFrame(
            {name: [cells[row] for row in order] for name, cells in columns.items()},
            schema=dict.fromkeys(columns, pl.String),
        ),
        schema=SCHEMA,
        classes=("no", "yes"),
        root=folder,
        is_simulated=True,
    )


class PictureSource:
    """36 rows of 12 subjects, the pictures made from their index."""

    schema = SCHEMA
    classes = ("no", "yes")
    simulated = True

    def __init__(self, config: PictureSourceConfig) -> None:
        self.config = config

    def read(self, context: SourceContext) -> Manifest:
        folder = context.cache / "toy_pictures"
        if not folder.exists():
            own = folder.with_name(f"toy_pictures.{os.getpid()}.tmp")
            make_pictures(own)
            try:
                os.replace(own, folder)  # whole, whatever ends this process before
            except OSError:
                if not folder.exists():  # not another process, which was quicker
                    raise
                shutil.rmtree(own)
        order = range(36) if self.config.order == "given" else range(35, -1, -1)
        return make_manifest(folder, blanks=self.config.blanks, order=list(order))


class ConvConfig(ComponentConfig):
    """Options of toy_conv."""

    width: int = 4
    """Channels, which is the width of the result."""
    input: ImageOptions = ImageOptions(size=8)
    """How a file becomes a tensor."""


class ToyConv(nn.Module):
    """A convolution with batch normalisation and dropout: what a frozen part must not leak."""

    def __init__(self, config: ConvConfig, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.input_spec = ImageInput(config.input, columns)
        self.output_dim = config.width
        self.layers = nn.Sequential(
            nn.Conv2d(3, config.width, 3, padding=1), nn.BatchNorm2d(config.width), nn.ReLU(), nn.Dropout(0.2)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        COUNTS["toy_conv"] += len(images)
        return self.layers(self.input_spec.normalize(images)).mean((2, 3))


class ShiftConfig(ComponentConfig):
    """Options of toy_center."""


class ToyCenter(nn.Module):
    """A raiser that learns in closed form: takes the mean away and repeats."""

    def __init__(self, config: ShiftConfig, input_dim: int) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, 2 * input_dim
        self.register_buffer("mean", torch.zeros(input_dim))

    def fit(self, inputs: torch.Tensor, targets: Any = None, *, seed: int) -> ToyCenter:
        COUNTS["toy_center"] += len(inputs)
        self.mean.copy_(inputs.mean(0))
        return self

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return (features - self.mean).repeat(1, 2)


class NormHead(nn.Module):
    """A head with batch normalisation."""

    def __init__(self, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.names = tuple(input_dims)
        self.norm = nn.BatchNorm1d(sum(input_dims.values()))
        self.linear = nn.Linear(sum(input_dims.values()), output_dim)

    def forward(self, features: Mapping[str, Any], present: Mapping[str, Any]) -> torch.Tensor:
        return self.linear(self.norm(torch.cat([features[name] for name in self.names], 1)))


class SumHead(nn.Module):
    """A head with nothing to learn: the sum of what it gets, one way and the other."""

    def __init__(self, input_dims: Mapping[str, int]) -> None:
        super().__init__()
        self.names = tuple(input_dims)

    def forward(self, features: Mapping[str, Any], present: Mapping[str, Any]) -> torch.Tensor:
        total = torch.cat([features[name] for name in self.names], 1).sum(1, keepdim=True)
        return torch.cat([-total, total], 1)


CARDS = (
    SourceSpec(
        name="toy_pictures",
        summary="36 rows of 12 subjects, with pictures.",
        source="ours",
        config=PictureSourceConfig,
        build=PictureSource,
    ),
    EncoderSpec(
        name="toy_conv",
        summary="One convolution.",
        source="ours",
        config=ConvConfig,
        build=ToyConv,
        reads=("file",),
    ),
    RaiserSpec(
        name="toy_center",
        summary="Takes the mean away.",
        source="ours",
        config=ShiftConfig,
        build=ToyCenter,
        learns="closed_form",
    ),
    HeadSpec(
        name="toy_norm",
        summary="Batch normalisation and a linear layer.",
        source="ours",
        build=lambda config, input_dims, output_dim: NormHead(input_dims, output_dim),
    ),
    HeadSpec(
        name="toy_sum",
        summary="Adds everything up.",
        source="ours",
        learns="nothing",
        build=lambda config, input_dims, output_dim: SumHead(input_dims),
    ),
)

RECIPE = """\
name: pictures
source: {use: toy_pictures}
modalities:
  image:
    encoder: {use: toy_conv, input: {size: 8}}
  record:
    columns: [number, word]
    encoder: {use: toy_mean, width: 3}
    raiser: {use: toy_denoise, width: 5}
head: {use: toy_norm}
stages:
  - name: learn_record
    pretrain: record.encoder
    epochs: 2
    batch_size: 8
  - name: raise_record
    fit: [record.raiser]
    epochs: 2
    batch_size: 4
  - name: learn_image
    pretrain: image.encoder
    epochs: 2
    batch_size: 8
  - name: fuse
    train: [head]
    epochs: 2
    batch_size: 8
split: {scheme: folds, folds: 2}
training: {device: cpu, precision: fp32, threads: 1}
evaluation: {resamples: 100}
"""
"""A recipe with a frozen stored image, a fitted raiser and a head with buffers."""
FOLD = Fold(0, 0, train=tuple(range(24)), validation=(), test=tuple(range(24, 36)))
FOLD_WITH_VALIDATION = Fold(0, 0, tuple(range(18)), tuple(range(18, 24)), tuple(range(24, 36)))


def make_registry() -> Registry:
    registry = Registry()
    registry.add("toys", toys)
    registry.add("toy_images", sys.modules[__name__])
    registry.add("fusionkit_tabular", fusionkit_tabular)
    return registry


def load(*overrides: str, text: str = RECIPE) -> LoadedRecipe:
    return load_text(text, make_registry(), overrides=overrides)


def make_experiment(
    folder: Path,
    *overrides: str,
    text: str = RECIPE,
    manifest: Manifest | None = None,
    tell: Any = lambda name, data: None,
) -> Experiment:
    """Brings the recipe together with rows; pictures and store lie in a folder."""
    if not (folder / "pictures").exists():
        make_pictures(folder / "pictures")
    manifest = manifest or make_manifest(folder / "pictures")
    loaded = load(*overrides, text=text)
    task = Classification(manifest.classes)
    device = choose_device(loaded.recipe.training)
    factory = PartFactory(loaded, task.output_dim, folder)
    return Experiment(factory, manifest, task, Store(folder / "store"), device, tell)


def name_of(step: Step) -> str:
    return f"{step.verb} {' '.join(step.learned)}"


def addresses(experiment: Experiment, fold: Fold = FOLD, member: int = 0) -> dict[str, str]:
    return {name_of(step): step.address for step in plan_steps(experiment, fold, member).steps}


def with_cell(manifest: Manifest, column: str, row: int, text: str | None) -> Manifest:
    cells = manifest.cells[column].to_list()
    cells[row] = text
    return replace(manifest, cells=manifest.cells.with_columns(pl.Series(column, cells, dtype=pl.String)))


def variant(experiment: Experiment, modality: str) -> Experiment:
    factory = type(experiment.factory)(
        experiment.factory.loaded.alone(modality), 2, experiment.factory.data_root
    )
    return replace(experiment, factory=factory)


@hookimpl
def fusionkit_components() -> Sequence[Any]:
    """Returns the cards of this plugin."""
    return CARDS
