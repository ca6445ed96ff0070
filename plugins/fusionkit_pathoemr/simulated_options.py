"""The options of `simulated_cohort`: what is true of a subject, and what shows how much of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from fusionkit import ComponentConfig

IMAGE, VECTORS, SPLIT = "image", "vectors", "split"
"""Columns that are the simulator's own."""
Pair = tuple[float, float]


class FieldOptions(ComponentConfig):
    """One field of the record."""

    kind: Literal["numeric", "ordinal", "binary", "category"]
    """numeric; ordinal, binary: graded values; category: values without an order."""
    shows: str | None = None
    """The latent that it depends on; null for none."""
    slope: float | tuple[float, ...] = 0.0
    """How strongly: signal over noise, in standard deviations; of a category, log odds of each value."""
    values: tuple[str, ...] = ()
    """Its values, in order; none where it is numeric."""
    shares: tuple[float, ...] = ()
    """How frequent each value is, where the latent is 0."""
    mean: float = 0.0
    """Mean of a number."""
    deviation: float = Field(1.0, gt=0)
    """Standard deviation of a number."""
    range: Pair = (-1e9, 1e9)
    """Least and greatest number; what would lie beyond is drawn back to these."""
    decimals: int = Field(0, ge=0, le=6)
    """Decimals of a number."""
    missing: float = Field(0.0, ge=0, lt=1)
    """Share of its cells that are blank; with a `missing_slope`, where the value is a middling one."""
    missing_slope: float = 0.0
    """Above 0, large values are blank more often; below 0, small ones; 0: blank at random."""
    unit: str = ""
    """The unit of a number, for people."""

    @model_validator(mode="after")
    def _check(self) -> FieldOptions:
        if self.kind == "numeric":
            if self.values or self.shares or isinstance(self.slope, tuple):
                raise ValueError("a numeric field takes no `values` or `shares`, and one `slope`")
            if self.range[0] > self.range[1]:
                raise ValueError("`range` is [least, greatest]")
            return self
        self._check_values()
        return self

    def _check_values(self) -> None:
        if len(self.values) < 2 or len(self.values) != len(self.shares):
            raise ValueError("`values` and `shares` are as many, and at least two")
        if len(set(self.values)) < len(self.values) or not all(self.values):
            raise ValueError("`values` are different, and none is empty: an empty cell is a missing one")
        if self.kind == "binary" and len(self.values) > 2:
            raise ValueError("a binary field has two `values`")
        if min(self.shares) <= 0 or abs(sum(self.shares) - 1) > 1e-6:
            raise ValueError("`shares` are above 0 and add up to 1")
        if (self.kind == "category") != isinstance(self.slope, tuple):
            raise ValueError("a category has one `slope` per value, and other fields have one")
        if isinstance(self.slope, tuple) and len(self.slope) != len(self.values):
            raise ValueError("a category has one `slope` per value, and other fields have one")
        if self.kind == "category" and self.missing_slope:
            raise ValueError("a category has no large values: leave `missing_slope` out")


class LesionOptions(ComponentConfig):
    """Images of a round surface with a lesion, which is larger, whiter and sharper with a higher latent."""

    shows: str
    """The latent that they show."""
    jitter: float = Field(0.25, ge=0)
    """Standard deviation of one image's latent around its subject's."""
    width: int = Field(96, ge=16, le=2048)
    """Width of an image in pixels."""
    height: int = Field(96, ge=16, le=2048)
    """Height of an image in pixels."""


class VectorOptions(ComponentConfig):
    """One vector per subject, as of expression of genes: some numbers follow a latent, all are noisy."""

    shows: str
    """The latent that they show."""
    width: int = Field(200, ge=1, le=100_000)
    """How many numbers a vector has."""
    signal: int = Field(20, ge=0)
    """How many of them follow the latent, half of them against it."""
    slope: float = 0.5
    """How strongly: signal over noise, in standard deviations."""

    @model_validator(mode="after")
    def _check(self) -> VectorOptions:
        if self.signal > self.width:
            raise ValueError("`signal` is at most `width`")
        return self


class SurvivalOptions(ComponentConfig):
    """A time to an event, by a Weibull distribution whose log hazard is the predictor; censored by chance."""

    time: str = "months"
    """The time's column."""
    event: str = "died"
    """The event's column: 1 where it was seen, 0 where the time is censored."""
    median: float = Field(36.0, gt=0)
    """Time at which half of the subjects with a predictor of 0 have had the event."""
    shape: float = Field(1.0, gt=0, le=10)
    """The distribution's shape: 1 is exponential, a hazard that does not change; above 1, it grows."""
    follow_up: Pair = (12.0, 60.0)
    """Least and greatest time until which a subject is followed, drawn evenly."""

    @model_validator(mode="after")
    def _check(self) -> SurvivalOptions:
        if not 0 < self.follow_up[0] <= self.follow_up[1]:
            raise ValueError("`follow_up` is [least, greatest], above 0")
        if self.time == self.event:
            raise ValueError("`time` and `event` are two columns")
        return self


class SimulatedOptions(ComponentConfig):
    """A cohort of a disease of your own invention."""

    subjects: int = Field(200, ge=1, le=100_000)
    """How many subjects with `split` = train."""
    fresh_subjects: int = Field(0, ge=0, le=100_000)
    """How many further subjects with `split` = test."""
    samples_per_subject: int | tuple[int, int] = 1
    """How many samples each subject has: a count, or [least, most]."""
    seed: int = Field(0, ge=0, le=2**53 - 1)
    """Every subject derives from it, each by itself: more subjects change none of those that are there."""
    weights: Mapping[str, float] = Field(min_length=1)
    """Latent -> its weight in the predictor. Latents are independent, of mean 0 and standard deviation 1."""
    classes: Mapping[str, float] | None = None
    """Class -> share, lowest first: a logistic model, proportional odds of more than two; or `survival`."""
    survival: SurvivalOptions | None = None
    """The outcome is a time to an event; or `classes`."""
    record: Mapping[str, FieldOptions] = Field(default_factory=dict)
    """Field -> what it is."""
    image: LesionOptions | None = None
    """The column `image`; null for none."""
    vectors: VectorOptions | None = None
    """The column `vectors`, a file of numbers; null for none."""

    @property
    def counts(self) -> tuple[int, int]:
        """Least and most samples of a subject."""
        n = self.samples_per_subject
        return (n, n) if isinstance(n, int) else n

    @property
    def seen(self) -> dict[str, set[str]]:
        """Image, vectors or record -> the latents that it shows."""
        shown = {IMAGE: self.image, VECTORS: self.vectors}
        found = {name: {each.shows} for name, each in shown.items() if each is not None}
        if self.record:
            found["record"] = {each.shows for each in self.record.values() if each.shows is not None}
        return found

    @model_validator(mode="after")
    def _check(self) -> SimulatedOptions:
        if (self.classes is None) == (self.survival is None):
            raise ValueError("the outcome is either `classes` or `survival`")
        if not 1 <= self.counts[0] <= self.counts[1] <= 99:
            raise ValueError("`samples_per_subject` is a count from 1 to 99, or [least, most] of such")
        if self.classes is not None:
            shares = list(self.classes.values())
            if len(shares) < 2 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
                raise ValueError("`classes` are at least two, with shares above 0 that add up to 1")
        if not self.seen:
            raise ValueError("nothing shows anything: add `record`, `image` or `vectors`")
        self._check_names()
        return self

    def _check_names(self) -> None:
        known = ", ".join(self.weights)
        for name, latents in self.seen.items():
            for latent in sorted(latents - set(self.weights)):
                raise ValueError(f"`{name}` shows {latent}, and the latents of `weights` are: {known}")
        taken = {IMAGE, VECTORS, SPLIT}
        if self.survival is not None:
            taken |= {self.survival.time, self.survival.event}
        for name in self.record:
            if name in taken:
                raise ValueError(f"`record` has a field {name}, which is another column's name")
