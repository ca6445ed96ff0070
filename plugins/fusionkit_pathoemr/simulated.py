"""The source `simulated_cohort`: simulated subjects with any disease; no patient data.

    z_l     ~ Normal(0, 1), independent               latents
    eta     = sum of weight_l * z_l                   the predictor
    class   : P(class above the k-th) = logistic(eta - cut_k), cuts such that the shares are right
    or time : Weibull of hazard proportional to exp(eta), censored at an even time of follow-up

An image, the vectors and each field of the record show one latent each. `latent_ceilings` says what can be
reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

from fusionkit import ColumnSpec, SourceContext
from fusionkit_pathoemr.simulated_options import (
    IMAGE,
    VECTORS,
    FieldOptions,
    SimulatedOptions,
    SurvivalOptions,
)

if TYPE_CHECKING:
    import numpy as np

    from fusionkit import Manifest
    from fusionkit_pathoemr.design import Design, SimulatedSubject, Truth
    from fusionkit_pathoemr.fields import Array, Field

NAME = "simulated_cohort"


class SimulatedSource:
    """A simulated cohort as its options say."""

    simulated = True

    def __init__(self, options: SimulatedOptions) -> None:
        self.options = options
        self.classes = _classes(options)
        self.schema: Mapping[str, ColumnSpec] = {
            **({IMAGE: ColumnSpec(kind="file", description="simulated")} if options.image else {}),
            **({VECTORS: ColumnSpec(kind="file", description="simulated")} if options.vectors else {}),
            **{name: _column(each) for name, each in options.record.items()},
        }

    def read(self, context: SourceContext) -> Manifest:
        """Draws the cohort, and makes those of its files that are not in the cache yet."""
        from fusionkit_pathoemr.design import make_manifest

        return make_manifest(design_of(self.options), self.schema, context)


def _classes(options: SimulatedOptions) -> tuple[str, ...]:
    if options.survival is not None:
        return ("censored", options.survival.event)
    return tuple(options.classes or ())


def _column(options: FieldOptions) -> ColumnSpec:
    limits = options.range if options.kind == "numeric" else None
    return ColumnSpec(
        kind=options.kind, values=options.values, range=limits, unit=options.unit, description="simulated"
    )


def design_of(options: SimulatedOptions) -> Design:
    """Returns the cohort that the options describe."""
    from fusionkit_pathoemr.design import Design, Shown
    from fusionkit_pathoemr.lesion import LesionStyle
    from fusionkit_pathoemr.profile import ProfileStyle

    shown = {}
    if (image := options.image) is not None:
        shown[IMAGE] = Shown(image.shows, image.jitter, LesionStyle(image.width, image.height))
    if (vectors := options.vectors) is not None:
        style = ProfileStyle(options.seed, vectors.width, vectors.signal, vectors.slope)
        shown[VECTORS] = Shown(vectors.shows, 0.0, style, per_sample=False)
    return Design(
        source=NAME,
        seed=options.seed,
        counts=(options.subjects, options.fresh_subjects),
        per_subject=options.counts,
        classes=_classes(options),
        truth=partial(_draw_truth, options, _outcome_of(options)),
        fields={name: _field(each) for name, each in options.record.items()},
        shown=shown,
        identity={"latents": list(options.weights)},
    )


def _field(options: FieldOptions) -> Field:
    from fusionkit_pathoemr.fields import Field, FieldModel, MeasureModel

    model: FieldModel | MeasureModel = FieldModel(options.shares, options.slope)
    if options.kind == "numeric":
        assert not isinstance(options.slope, tuple)
        model = MeasureModel(options.mean, options.deviation, options.slope, options.range, options.decimals)
    return Field(options.shows, model, options.values, options.missing, options.missing_slope)


Outcome = Callable[[float, "np.random.Generator"], tuple[str, Mapping[str, str]]]
"""Draws class and further cells from the predictor."""


def _draw_truth(
    options: SimulatedOptions, outcome: Outcome, index: int, generator: np.random.Generator
) -> Truth:
    from fusionkit_pathoemr.design import Truth

    drawn = generator.standard_normal(len(options.weights)).tolist()
    latents = dict(zip(options.weights, drawn, strict=True))
    name, cells = outcome(_predictor(options, latents), generator)
    return Truth(name, latents, cells)


def _predictor(
    options: SimulatedOptions, latents: Mapping[str, float], seen: set[str] | None = None
) -> float:
    return sum(
        weight * latents[name] for name, weight in options.weights.items() if seen is None or name in seen
    )


def _outcome_of(options: SimulatedOptions) -> Outcome:
    if options.survival is not None:
        return partial(_draw_time, options.survival)
    return partial(_draw_class, tuple(options.classes or ()), _cuts(options))


def _draw_class(
    classes: tuple[str, ...], cuts: Array, predictor: float, generator: np.random.Generator
) -> tuple[str, Mapping[str, str]]:
    import numpy as np

    liability = predictor + float(generator.logistic())
    return classes[int(np.searchsorted(cuts, liability))], {}


def _cuts(options: SimulatedOptions) -> Array:
    """Returns where the liability, predictor plus logistic noise, is cut so that the shares are right."""
    import numpy as np

    deviation = sum(weight**2 for weight in options.weights.values()) ** 0.5
    nodes, heights = np.polynomial.hermite_e.hermegauss(101)
    grid = np.linspace(-1, 1, 4001) * (8 * deviation + 20)
    below = (
        (1 / (1 + np.exp(np.clip(deviation * nodes - grid[:, None], -700, 700)))) @ heights / heights.sum()
    )
    shares = np.cumsum(list((options.classes or {}).values()))[:-1]
    return np.asarray(np.interp(shares, below, grid))


def _draw_time(
    options: SurvivalOptions, predictor: float, generator: np.random.Generator
) -> tuple[str, Mapping[str, str]]:
    import math

    # -log of an even number is exponential; it is log 2 at the median
    drawn = -math.log(1 - float(generator.random())) / math.log(2)
    time = options.median * (drawn * math.exp(-predictor)) ** (1 / options.shape)
    end = float(generator.uniform(*options.follow_up))
    died = time <= end
    cells = {options.time: f"{max(min(time, end), 0.01):.2f}", options.event: str(int(died))}
    return (options.event if died else "censored"), cells


def latent_ceilings(options: SimulatedOptions) -> dict[str, float]:
    """Returns what the true predictor reaches on the fresh subjects (where there are none, on all).

    `all`: with every latent known; `image`, `vectors`, `record`: with those known that it shows, as if read
    off without error, so that no method does better on average. The figure is the concordance: of two
    subjects whose outcomes can be told apart, how often the one with the higher class, or the earlier event,
    has the higher predictor (a tie counts half). Of two classes that is the AUC.
    """
    from fusionkit_pathoemr.design import draw_subjects

    drawn = draw_subjects(design_of(options))
    subjects = [each for each in drawn if each.split == "test"] or drawn
    seen: dict[str, set[str] | None] = {"all": None, **options.seen}
    return {name: _concordance(options, subjects, latents) for name, latents in seen.items()}


def _concordance(
    options: SimulatedOptions, subjects: list[SimulatedSubject], latents: set[str] | None
) -> float:
    import numpy as np

    score = np.array([_predictor(options, each.truth.latents, latents) for each in subjects])
    if (survival := options.survival) is not None:
        time = np.array([float(each.truth.cells[survival.time]) for each in subjects])
        event = np.array([each.truth.cells[survival.event] == "1" for each in subjects])
        # who is still followed when the other one dies, or is censored then, has lived longer
        later = (time[:, None] > time) | ((time[:, None] == time) & ~event[:, None])
        worse = event & later
    else:
        rank = np.array([_classes(options).index(each.truth.outcome) for each in subjects])
        worse = rank > rank[:, None]
    gap = score - score[:, None]
    return float(((gap > 0) + 0.5 * (gap == 0))[worse].mean())
