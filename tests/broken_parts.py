"""Toys that keep the contract, and children of theirs with one mistake each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import torch
from PIL import Image
from torch import Tensor, nn

from fusionkit import ColumnSpec, ImageInput, Manifest, PluginError, TabularInput

COUNTER = itertools.count()


class Fixed(nn.Module):
    """Repeats the vector."""

    def __init__(self, config: Any, input_dim: int) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, 2 * input_dim

    def forward(self, features: Tensor) -> Tensor:
        return features.repeat(1, 2)


class Fits(Fixed):
    def fit(self, inputs, targets=None, *, seed):
        return self


class Doubles(Fixed):
    def forward(self, features):
        return super().forward(features).double()


class Squeezes(Fixed):
    def forward(self, features):
        return super().forward(features).squeeze(0)


class Flattens(Fixed):
    def forward(self, features):
        return super().forward(features).reshape(len(features), -1)


class NotSaved(Fixed):
    def __init__(self, config, input_dim):
        super().__init__(config, input_dim)
        self.register_buffer("directions", torch.randn(2 * input_dim), persistent=False)

    def forward(self, features):
        return super().forward(features) * self.directions


class Counts(Fixed):
    def __init__(self, config, input_dim):
        super().__init__(config, input_dim)
        self.register_buffer("n_calls", torch.tensor(0))

    def forward(self, features):
        self.n_calls += 1
        return super().forward(features)


class Draws(Fixed):
    def forward(self, features):
        torch.rand(1)
        return super().forward(features)


class PlainTensor(Fixed):
    def __init__(self, config, input_dim):
        super().__init__(config, input_dim)
        self.factor = torch.full((2 * input_dim,), 2.0)

    def forward(self, features):
        return super().forward(features) * self.factor


class Widen(nn.Module):
    """One layer; a missing value counts as zero."""

    def __init__(self, config: Any, input_dim: int) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, config.width
        self.layer = nn.Linear(input_dim, config.width)

    def forward(self, features: Tensor) -> Tensor:
        return self.layer(features.nan_to_num(0.0))


class OwnGenerator(Widen):
    def __init__(self, config, input_dim):
        super().__init__(config, input_dim)
        own = torch.Generator()
        own.seed()
        nn.init.normal_(self.layer.weight, generator=own)


class BatchMean(Widen):
    def forward(self, features):
        out = super().forward(features)
        return out - (out.mean(0) if len(out) > 1 else 0)


class PassesNan(Widen):
    def forward(self, features):
        return self.layer(features)


class DeadLayer(Widen):
    def __init__(self, config, input_dim):
        super().__init__(config, input_dim)
        self.unused = nn.Linear(2, 2)


class Centre(nn.Module):
    """Subtracts the mean of the training rows."""

    def __init__(self, config: Any, input_dim: int) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, input_dim
        self.register_buffer("mean", torch.zeros(input_dim))
        self.register_buffer("is_fitted", torch.tensor(0.0))

    def fit(self, inputs, targets=None, *, seed):
        self.mean.copy_(inputs.mean(0))
        self.is_fitted.fill_(1)
        return self

    def forward(self, features: Tensor) -> Tensor:
        if not self.is_fitted:
            raise PluginError("toy: not fitted yet. Name it in a fit stage.")
        return features - self.mean


class Answers(Centre):
    def forward(self, features):
        return features - self.mean


class FitsNoise(Centre):
    def fit(self, inputs, targets=None, *, seed):
        super().fit(inputs, targets, seed=seed)
        self.mean += torch.randn(len(self.mean))
        return self


class FitsSilently(Centre):
    def fit(self, inputs, targets=None, *, seed):
        super().fit(inputs, targets, seed=seed)


class Remembers(Centre):
    def fit(self, inputs, targets=None, *, seed):
        before, was_fitted = self.mean.clone(), bool(self.is_fitted)
        super().fit(inputs, targets, seed=seed)
        if was_fitted:
            self.mean.copy_((self.mean + before) / 2)
        return self


class Grows(nn.Module):
    """Its width hangs on a buffer, so that it is right at all times but changes."""

    def __init__(self, config: Any, input_dim: int) -> None:
        super().__init__()
        self.input_dim = input_dim
        self.register_buffer("is_fitted", torch.tensor(0.0))

    @property
    def output_dim(self):
        return self.input_dim + int(self.is_fitted)

    def fit(self, inputs, targets=None, *, seed):
        self.is_fitted.fill_(1)
        return self

    def forward(self, features: Tensor) -> Tensor:
        if not self.is_fitted:
            raise PluginError("toy: not fitted yet. Name it in a fit stage.")
        return torch.cat([features, features[:, :1]], 1)


class Denoise(nn.Module):
    """An autoencoder of two layers."""

    def __init__(self, config: Any, input_dim: int) -> None:
        super().__init__()
        self.input_dim, self.output_dim = input_dim, config.width
        self.up, self.down = nn.Linear(input_dim, config.width), nn.Linear(config.width, input_dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.up(features.nan_to_num(0.0)).tanh()

    def noise(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return torch.rand(inputs.shape, generator=generator)

    def errors(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return self.down(self(inputs * (self.noise(inputs, generator) > 0.2))) - inputs

    def loss(self, inputs: Tensor, generator: torch.Generator) -> Tensor:
        return self.errors(inputs, generator).nan_to_num(0.0).square().mean()


class LossPerRow(Denoise):
    def loss(self, inputs, generator):
        return self.errors(inputs, generator).nan_to_num(0.0).square().mean(1)


class LossOfNan(Denoise):
    def loss(self, inputs, generator):
        return self.errors(inputs, generator).square().mean()


class LossDraws(Denoise):
    def noise(self, inputs, generator):
        return torch.rand(inputs.shape)


class Record(nn.Module):
    """One layer over the columns."""

    def __init__(self, config: Any, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.input_spec = TabularInput(columns)
        self.output_dim = config.width
        self.layer = nn.Linear(self.input_spec.output_dim, config.width)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs.nan_to_num(0.0))


class RecordPassesNan(Record):
    def forward(self, inputs):
        return self.layer(inputs)


class Picture(nn.Module):
    """One convolution, averaged and repeated."""

    spec: Any = ImageInput

    def __init__(self, config: Any, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__()
        self.input_spec = self.spec(config.input, columns)
        self.output_dim, self.pretraining_dim = config.width, 4
        self.layer = nn.Conv2d(3, 4, 3)

    def pretraining_features(self, images: Tensor) -> Tensor:
        return self.layer(self.input_spec.normalize(images))

    def pool(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.pool(self.pretraining_features(images)).repeat(1, 2)[:, : self.output_dim]


class Places(Picture):
    """Two places of a picture, left and right, are tokens."""

    def __init__(self, config: Any, columns: Mapping[str, ColumnSpec]) -> None:
        super().__init__(config, columns)
        self.n_tokens, self.token_dim = 2, 4

    def tokens(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.pretraining_features(images)
        values = torch.stack([half.mean((2, 3)) for half in maps.chunk(2, 3)], 1)
        return values, torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


class MorePlaces(Places):
    def __init__(self, config, columns):
        super().__init__(config, columns)
        self.n_tokens = 1


class NoPlace(Places):
    def tokens(self, images):
        values, mask = super().tokens(images)
        return values, ~mask


class CountedPlaces(Places):
    def __init__(self, config, columns):
        super().__init__(config, columns)
        self.register_buffer("n_calls", torch.zeros(()))

    def tokens(self, images):
        self.n_calls += 1
        return super().tokens(images)


class PlacesAtHome(Places):
    def tokens(self, images):
        values, mask = super().tokens(images)
        return values + torch.arange(4.0), mask


class UnreadPlaces(Places):
    def __init__(self, config, columns):
        super().__init__(config, columns)
        self.extra = nn.Linear(4, 4)

    def tokens(self, images):
        values, mask = super().tokens(images)
        return values + 0 * self.extra(values), mask


class LouderPlaces(Places):
    """One value is large, and who is there depends on who else is in the batch."""

    def tokens(self, images):
        values, mask = super().tokens(images)
        mask = mask & (torch.arange(2, device=mask.device) < 1 + (len(values) > 2))
        return values + 10_000 * (torch.arange(4, device=values.device) == 0), mask


class ShiftedPlaces(Places):
    def tokens(self, images):
        values, mask = super().tokens(images)
        return values - values.mean(0), mask


class Cancels(Picture):
    def pool(self, maps):
        maps = super().pool(maps)
        ones = torch.eye(4, device=maps.device)
        return nn.functional.linear(maps + 1000, ones) - 1000


class Views(Picture):
    def pool(self, maps):
        return maps.view(len(maps), 4 * 14 * 14).view(len(maps), 4, 14 * 14).mean(2)


class WrongPretrainingDim(Picture):
    def __init__(self, config, columns):
        super().__init__(config, columns)
        self.pretraining_dim = 5


class WidthInState(Picture):
    def __init__(self, config, columns):
        super().__init__(config, columns)
        self.register_buffer("width", torch.tensor(config.width))


def picture(spec: Any) -> Any:
    """Returns a Picture with another input spec."""
    return type("Picture", (Picture,), {"spec": spec})


class _NoDraws(ImageInput):
    def __init__(self, options, columns):
        super().__init__(options, columns)
        self.draws = 0


class _SeesAll(ImageInput):
    def collate(self, items):
        batch = super().collate(items).float()
        return (batch - batch.mean()).clamp(0, 255).to(torch.uint8)


class _TakesNothing(ImageInput):
    def load(self, cells, cuts):
        if Path(cells[self.columns[0]]).stat().st_size:
            return super().load(cells, cuts)
        return [torch.full((3, self.options.size, self.options.size), 128, dtype=torch.uint8) for _ in cuts]


class _TwiceAView(ImageInput):
    def views(self, *, training):
        return ("whole", "whole")


class _NewIdentity(ImageInput):
    def identity(self):
        return {**super().identity(), "copy": next(COUNTER)}


class _SetIdentity(ImageInput):
    def identity(self):
        return {**super().identity(), "columns": set(self.columns)}


class _KeyOfName(ImageInput):
    def content_key(self, cells):
        key = super().content_key(cells)
        name = Path(cells[self.columns[0]] or "").name.encode()
        return None if key is None else name.ljust(32, b".")[:32]


class _KeyInDigits(ImageInput):
    def content_key(self, cells):
        key = super().content_key(cells)
        return None if key is None else key.hex().encode()


class _LoadsByPlace(ImageInput):
    def load(self, cells, cuts):
        return [item // (1 + (index == 1)) for index, item in enumerate(super().load(cells, cuts))]


class _LoadsByChance(ImageInput):
    def is_random(self, *, training):
        return training

    def load(self, cells, cuts):
        items = super().load(cells, cuts)
        return [
            item if cut.seed is None else (item * torch.rand(1)).to(torch.uint8)
            for item, cut in zip(items, cuts, strict=True)
        ]


class _LoadsCarelessly(ImageInput):
    def load(self, cells, cuts):
        Image.open(cells[self.columns[0]]).load()
        return super().load(cells, cuts)


SeesAll, TakesNothing = picture(_SeesAll), picture(_TakesNothing)
NoDraws, TwiceAView, NewIdentity = picture(_NoDraws), picture(_TwiceAView), picture(_NewIdentity)
SetIdentity, KeyOfName, KeyInDigits = picture(_SetIdentity), picture(_KeyOfName), picture(_KeyInDigits)
LoadsByPlace, LoadsByChance = picture(_LoadsByPlace), picture(_LoadsByChance)
LoadsCarelessly = picture(_LoadsCarelessly)


class Join(nn.Module):
    """One layer over all features."""

    def __init__(self, config: Any, input_dims: Mapping[str, int], output_dim: int) -> None:
        super().__init__()
        self.modalities = tuple(input_dims)
        self.layer = nn.Linear(sum(input_dims.values()), output_dim)

    def joined(self, features, present):
        return [features[name] * present[name][:, None] for name in self.modalities]

    def forward(self, features, present):
        return self.layer(torch.cat(self.joined(features, present), 1))


class JoinAll(Join):
    def joined(self, features, present):
        return [features[name] for name in self.modalities]


class JoinAsTheyCome(Join):
    def joined(self, features, present):
        return [values * present[name][:, None] for name, values in features.items()]


class JoinTokens(Join):
    """Tokens are added up."""

    def joined(self, features, present):
        parts = [features[name] * present[name][..., None] for name in self.modalities]
        return [part if part.ndim == 2 else part.sum(1) for part in parts]


class JoinFilling(JoinTokens):
    def joined(self, features, present):
        here = {name: mask if mask.ndim == 1 else mask.any(1)[:, None] for name, mask in present.items()}
        return super().joined(features, here)


class JoinTokensAlone(JoinTokens):
    def joined(self, features, present):
        image, *others = super().joined(features, present)
        assert features["image"].ndim == 3, "no tokens"
        return [image, *others]


class Rows:
    """Four rows."""

    schema: Any = {"age": ColumnSpec(kind="numeric")}  # noqa: RUF012
    classes = ("no", "yes")
    simulated = True
    outcomes = ("no", "yes", None, "yes")

    def __init__(self, config: Any) -> None:
        self.config = config

    def name(self, row: int) -> str:
        return f"sample{row}"

    def read(self, context: Any) -> Manifest:
        return Manifest(
            samples=[self.name(row) for row in range(4)],
            subjects=["a", "a", "b", "c"],
            outcomes=list(self.outcomes),
            cells=pl.DataFrame({"age": ["1", "2", None, "4"]}),
            schema=self.schema,
            classes=self.classes,
            root=context.data_root,
            is_simulated=True,
        )


class LateSchema(Rows):
    schema: Any = {}  # noqa: RUF012

    def read(self, context):
        self.schema = Rows.schema
        return super().read(context)


class StrangeOutcome(Rows):
    outcomes = ("no", "yes", "perhaps", "yes")


class NewNames(Rows):
    def name(self, row):
        return f"sample{next(COUNTER)}"
