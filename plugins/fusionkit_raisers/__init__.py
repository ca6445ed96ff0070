"""Dimension raisers: those of Yan et al. 2021, random Fourier features, piecewise linear encoding."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator, Field

from fusionkit import ComponentConfig, RaiserSpec, RecipeError, hookimpl

if TYPE_CHECKING:
    from fusionkit import Raiser

SOURCE = "doi:10.1186/s12911-020-01340-6"


MAX_WIDTH = 1_000_000
"""The widest result; beyond anything real."""
_MULTIPLE = re.compile(r"[1-9][0-9]{0,17}x")


def _check_width(width: int | str) -> int | str:
    if width < 1 if isinstance(width, int) else not _MULTIPLE.fullmatch(width):
        raise ValueError("a width is a number, or a multiple of the input such as 20x")
    if int(str(width).removesuffix("x")) > MAX_WIDTH:
        raise ValueError(f"a width is at most {MAX_WIDTH}")
    return width


Width = Annotated[int | str, AfterValidator(_check_width)]
"""A number of features, or a multiple of the input's: 20x."""


def resolve_width(width: int | str, input_dim: int) -> int:
    """Returns a width as a number; raises RecipeError if no machine could hold it."""
    number = width if isinstance(width, int) else int(width.removesuffix("x")) * input_dim
    if number > MAX_WIDTH:
        raise RecipeError(
            f"raiser: a width is at most {MAX_WIDTH} ({width} of {input_dim} features: {number}). Narrow it."
        )
    return number


class CopyConfig(ComponentConfig):
    """Options of copy."""

    output: Width = "20x"
    """Width of the result; the vector is repeated, the last repeat cut short where it does not fit."""
    factor: float = Field(1.0, gt=0, le=1e6)
    """Multiplies every value; the root of n weighs like n copies (ours, as a control of copying)."""


class PolynomialConfig(ComponentConfig):
    """Options of polynomial."""

    output: Width | None = None
    """Width of the result: filled up by copying (the paper's IP: 580); null for no filling."""


class AutoencoderConfig(ComponentConfig):
    """Options of ae."""

    hidden: tuple[Width, ...] = Field(("10x", "15x", "20x"), min_length=1, max_length=20)
    """Widths up to the code, which is the result; the decoder mirrors them (Yan et al. 2021: 290, 435, 580
    for 29)."""
    activation: Literal["relu", "tanh", "sigmoid"] = "relu"
    """What follows every layer but the reconstruction, which is linear; the paper does not say."""
    reduction: Literal["mean", "sum"] = "mean"
    """Squared error over fields: their mean or their sum; the paper does not say."""


class DenoisingConfig(AutoencoderConfig):
    """Options of dae."""

    corruption: float = Field(0.2, ge=0, lt=1)
    """Share of inputs set to zero while it learns (Yan et al. 2021: 0.2); the target stays clean."""
    rescale: bool = False
    """Whether what is kept is divided by 1 - corruption, as a dropout layer does; the paper does not say."""


class SparseDenoisingConfig(DenoisingConfig):
    """Options of dae_l1."""

    l1: float = Field(1e-6, ge=0, le=1000)
    """Weight of the L1 norm of all learned parameters; the paper does not give it. 1e-6 is ours."""


class RandomFourierConfig(ComponentConfig):
    """Options of random_fourier."""

    output: Width = "20x"
    """Width of the result."""
    bandwidth: Annotated[float, Field(gt=0, le=1e12)] | None = None
    """Of the kernel, in units of the input; null for the median distance of training rows."""


class PiecewiseLinearConfig(ComponentConfig):
    """Options of piecewise_linear."""

    output: Width = "20x"
    """Width of the result: a multiple of the input, 20x for 20 bins per field."""


def _build_copy(config: CopyConfig, input_dim: int) -> Raiser:
    from fusionkit_raisers.fixed import Copy

    return Copy(input_dim, resolve_width(config.output, input_dim), config.factor)


def _build_polynomial(config: PolynomialConfig, input_dim: int) -> Raiser:
    from fusionkit_raisers.fixed import Polynomial

    return Polynomial(input_dim, None if config.output is None else resolve_width(config.output, input_dim))


def _build_autoencoder(config: AutoencoderConfig, input_dim: int) -> Raiser:
    from fusionkit_raisers.autoencoder import Autoencoder

    return Autoencoder(config, input_dim, [resolve_width(width, input_dim) for width in config.hidden])


def _build_random_fourier(config: RandomFourierConfig, input_dim: int) -> Raiser:
    from fusionkit_raisers.fourier import RandomFourier

    return RandomFourier(input_dim, resolve_width(config.output, input_dim), config.bandwidth)


def _build_piecewise_linear(config: PiecewiseLinearConfig, input_dim: int) -> Raiser:
    from fusionkit_raisers.piecewise import PiecewiseLinear

    output_dim = resolve_width(config.output, input_dim)
    if output_dim % input_dim:
        raise RecipeError(
            f"piecewise_linear: output is no multiple of the fields ({output_dim} for {input_dim}). "
            "Say how many bins each has, such as 20x."
        )
    return PiecewiseLinear(input_dim, output_dim // input_dim)


COPY = RaiserSpec(
    name="copy",
    summary="Repeats the vector.",
    source=SOURCE,
    config=CopyConfig,
    build=_build_copy,
    examples=(CopyConfig(), CopyConfig(output=10), CopyConfig(output="1x", factor=4.47)),
)
POLYNOMIAL = RaiserSpec(
    name="polynomial",
    summary="One, all fields, their products in pairs and their squares; then filled up by copying.",
    source=SOURCE,
    config=PolynomialConfig,
    build=_build_polynomial,
    examples=(PolynomialConfig(), PolynomialConfig(output="20x")),
)
AE = RaiserSpec(
    name="ae",
    summary="Autoencoder, neither corrupted nor sparse.",
    source=SOURCE,
    config=AutoencoderConfig,
    build=_build_autoencoder,
    learns="self_supervised",
    accepts_missing=True,
    examples=(AutoencoderConfig(hidden=("2x", "3x")),),
)
DAE = RaiserSpec(
    name="dae",
    summary="Denoising autoencoder: learns to restore inputs that were set to zero.",
    source=SOURCE,
    config=DenoisingConfig,
    build=_build_autoencoder,
    learns="self_supervised",
    accepts_missing=True,
    examples=(DenoisingConfig(hidden=("2x", "3x")),),
)
DAE_L1 = RaiserSpec(
    name="dae_l1",
    summary="Denoising autoencoder with sparse weights, the paper's choice.",
    source=SOURCE,
    config=SparseDenoisingConfig,
    build=_build_autoencoder,
    learns="self_supervised",
    accepts_missing=True,
    examples=(SparseDenoisingConfig(hidden=("2x", "3x")),),
)


RANDOM_FOURIER = RaiserSpec(
    name="random_fourier",
    summary="Random Fourier features: cosines whose inner products approximate a Gaussian kernel.",
    source="Rahimi and Recht 2007, Random features for large-scale kernel machines, NeurIPS",
    config=RandomFourierConfig,
    build=_build_random_fourier,
    learns="closed_form",
    examples=(RandomFourierConfig(), RandomFourierConfig(output=8, bandwidth=2.0)),
)
PIECEWISE_LINEAR = RaiserSpec(
    name="piecewise_linear",
    summary="Each field as how far it has filled each of its bins, between training quantiles.",
    source="Gorishniy et al. 2022, On embeddings for numerical features, arXiv:2203.05556",
    config=PiecewiseLinearConfig,
    build=_build_piecewise_linear,
    learns="closed_form",
    accepts_missing=True,
    examples=(PiecewiseLinearConfig(), PiecewiseLinearConfig(output="3x")),
)


@hookimpl
def fusionkit_components() -> Sequence[RaiserSpec]:
    """Returns the cards of this plugin."""
    return [COPY, POLYNOMIAL, AE, DAE, DAE_L1, RANDOM_FOURIER, PIECEWISE_LINEAR]
