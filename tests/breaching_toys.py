"""Cards that keep the contract, and for every check cards that break exactly its clause; no torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import Field, field_serializer

from fusionkit import (
    ComponentConfig,
    EncoderSpec,
    HeadSpec,
    ImageOptions,
    RaiserSpec,
    SourceSpec,
    ViewOptions,
    hookimpl,
)
from fusionkit.specs import Spec


class Options(ComponentConfig):
    """Options of every toy here."""

    width: int = Field(6, ge=1)
    """Width of the result."""
    input: ImageOptions = ImageOptions(size=16, views=ViewOptions(patches={8: 2}))
    """How an image file becomes a tensor."""


class Rounded(Options):
    """Options that are written as JSON less exactly than they are."""

    rate: float = 0.25
    """A number."""

    @field_serializer("rate")
    def _round(self, rate: float) -> float:
        return round(rate, 1)


def builder(part: str, module: str = __name__) -> Any:
    """Returns a `build` that makes a class of broken_parts, as if it stood in a module."""

    def build(*given: Any) -> Any:
        import broken_parts

        return getattr(broken_parts, part)(*given)

    build.__module__ = module
    return build


SAID = {"summary": "A toy.", "source": "ours", "config": Options, "examples": (Options(),)}
CARDS = {"source": SourceSpec, "encoder": EncoderSpec, "raiser": RaiserSpec, "head": HeadSpec}


def card(kind: str, part: str, **fields: Any) -> Any:
    return CARDS[kind](**{"name": "toy", **SAID, "build": builder(part), **fields})


GOOD = {
    "source": card("source", "Rows"),
    "record": card("encoder", "Record", reads=("numeric", "multi")),
    "picture": card(
        "encoder",
        "Picture",
        reads=("file",),
        readout=("width",),
        examples=(Options(), Options(width=4)),
    ),
    "widen": card("raiser", "Widen", learns="gradient", accepts_missing=True),
    "fixed": card("raiser", "Fixed"),
    "centre": card("raiser", "Centre", learns="closed_form"),
    "denoise": card("raiser", "Denoise", learns="self_supervised", accepts_missing=True),
    "places": card("encoder", "Places", reads=("file",), gives_tokens=lambda config: True),
    "join": card("head", "Join"),
    "join_tokens": card("head", "JoinTokens", takes_tokens=lambda config: True),
}


@dataclass(frozen=True)
class Fault:
    """A card with one mistake.

    Args:
        check: The check that must catch it.
        what: The mistake.
        card: The card.
        sentence: What the check must say, after the case's name.
        also: Other checks that the same mistake necessarily fails, with the reason.
    """

    check: str
    what: str
    card: Spec
    sentence: str
    also: dict[str, str] = field(default_factory=dict)


def fault(check: str, what: str, good: str, part: Any, sentence: str, **also: str) -> Fault:
    """Returns a good card with another class of broken_parts, or other fields."""
    changes = {"build": builder(part)} if isinstance(part, str) else part
    return Fault(check, what, replace(GOOD[good], **changes), sentence, also)


FAULTS: Sequence[Fault] = (
    fault("check_card", "no summary", "fixed", {"summary": ""}, "its `summary` is not one line."),
    fault(
        "check_card_is_light",
        "its module imports numpy",
        "fixed",
        {"build": builder("Fixed", "broken_heavy")},
        "importing broken_heavy imports numpy. Import inside `build`.",
    ),
    fault(
        "check_options_round_trip",
        "an option is rounded where it is written",
        "fixed",
        {"config": Rounded, "examples": (Rounded(),)},
        "options come back from JSON changed",
    ),
    fault("check_learns", "a `fit` that the card is silent about", "fixed", "Fits", "it has a method `fit`"),
    fault(
        "check_build_is_repeatable",
        "weights from a generator of its own",
        "widen",
        "OwnGenerator",
        "two builds from one seed differ.",
    ),
    fault(
        "check_output", "float64", "fixed", "Doubles", "gives (24, 10) float64, and (24, 10) float32 is due"
    ),
    fault("check_output", "one row is no batch", "fixed", "Squeezes", "gives (10,) float32, and (1, 10)"),
    fault(
        "check_output",
        "no row is no batch",
        "fixed",
        "Flattens",
        "`forward` fails (RuntimeError: cannot reshape tensor of 0 elements",
    ),
    fault(
        "check_rows_are_independent",
        "less the mean of the batch",
        "widen",
        "BatchMean",
        "gives other values for the same rows in another batch.",
    ),
    fault(
        "check_rows_are_independent",
        "`collate` takes off the mean of the batch",
        "picture",
        "SeesAll",
        "gives other values for the same rows in another batch.",
    ),
    fault(
        "check_state_is_complete",
        "random directions in a buffer that is not saved",
        "fixed",
        "NotSaved",
        "another copy with its state answers otherwise.",
    ),
    fault(
        "check_frozen_stays_frozen",
        "counts its calls",
        "fixed",
        "Counts",
        "its state changes in `forward` although it is frozen.",
    ),
    fault(
        "check_frozen_stays_frozen",
        "draws a number that it does not use",
        "fixed",
        "Draws",
        "draws random numbers although it is frozen.",
    ),
    fault(
        "check_missing_values",
        "a raiser passes NaN on",
        "widen",
        "PassesNan",
        "gives values that are not finite for NaN (accepts_missing).",
    ),
    fault(
        "check_missing_values",
        "an encoder passes NaN on",
        "record",
        "RecordPassesNan",
        "gives values that are not finite where cells are missing (emits_missing: False).",
    ),
    fault(
        "check_device",
        "a tensor that is no buffer",
        "fixed",
        "PlainTensor",
        "cannot move to another device (",
    ),
    fault(
        "check_refuses_before_fit",
        "answers with what it was built with",
        "centre",
        "Answers",
        "answers before it was fitted. Raise PluginError.",
    ),
    fault(
        "check_fit_is_repeatable",
        "adds noise of torch's generator",
        "centre",
        "FitsNoise",
        "two fits with one seed differ. Draw from `seed` only.",
        check_fit_forgets="two fits that always differ look like one that remembers",
    ),
    fault(
        "check_fit_is_repeatable",
        "`fit` returns nothing",
        "centre",
        "FitsSilently",
        "`fit` returns NoneType, and `self` is due.",
    ),
    fault(
        "check_fit_forgets",
        "averages with the fit before",
        "centre",
        "Remembers",
        "a second `fit` remembers the first.",
    ),
    fault(
        "check_fit_keeps_widths",
        "one column more once it is fitted",
        "centre",
        "Grows",
        "`fit` changes the width of output_dim. Know it when built.",
    ),
    fault(
        "check_loss",
        "a loss per row",
        "denoise",
        "LossPerRow",
        "`loss` gives no scalar tensor that can be differentiated.",
    ),
    fault(
        "check_loss",
        "a loss of NaN for NaN",
        "denoise",
        "LossOfNan",
        "`loss` is not finite for NaN (accepts_missing).",
    ),
    fault(
        "check_loss_is_repeatable",
        "noise of torch's generator",
        "denoise",
        "LossDraws",
        "`loss` differs although its generator is the same. Draw from it only.",
    ),
    fault(
        "check_every_parameter_learns",
        "a layer that nothing uses",
        "widen",
        "DeadLayer",
        "parameters that no loss changes: unused.bias, unused.weight.",
    ),
    fault("check_input_spec", "no draw", "picture", "NoDraws", "its `draws` are no number from 1 on (0)."),
    fault(
        "check_views", "one view twice", "picture", "TwiceAView", "its `views` name one twice (whole, whole)."
    ),
    fault(
        "check_identity",
        "a name of its own for every copy",
        "picture",
        "NewIdentity",
        "its `identity()` differs from copy to copy.",
    ),
    fault("check_identity", "a set", "picture", "SetIdentity", "its `identity()` is no JSON (TypeError:"),
    fault(
        "check_content_key",
        "the hash of the file's name",
        "picture",
        "KeyOfName",
        "its `content_key` differs for a copy of the same contents.",
    ),
    fault(
        "check_content_key",
        "hexadecimal digits",
        "picture",
        "KeyInDigits",
        "its `content_key` is not 32 bytes (b'",
    ),
    fault(
        "check_load",
        "the second cut is brighter",
        "picture",
        "LoadsByPlace",
        "`load` gives another item for the same cut (Cut(view='patch8.0', seed=None)).",
    ),
    fault(
        "check_load",
        "training views draw from torch's generator",
        "picture",
        "LoadsByChance",
        "`load` gives another item for the same cut (Cut(view='whole', seed=1)).",
    ),
    fault(
        "check_broken_files",
        "Pillow's own error",
        "picture",
        "LoadsCarelessly",
        "`load` raises UnidentifiedImageError: cannot identify image file",
    ),
    fault(
        "check_broken_files",
        "an empty file is a grey picture",
        "picture",
        "TakesNothing",
        "`load` takes an empty file, and DataError is due.",
    ),
    fault(
        "check_bf16",
        "a small difference of large numbers",
        "picture",
        "Cancels",
        "gives other values in bf16. Compute what is delicate in fp32.",
    ),
    fault(
        "check_channels_last",
        "`view` of a convolution's output",
        "picture",
        "Views",
        "`forward` fails (RuntimeError: view size is not compatible",
    ),
    fault(
        "check_pretraining",
        "another width than `pretraining_dim`",
        "picture",
        "WrongPretrainingDim",
        "`pretraining_features` gives (8, 4, 14, 14) float32, and (n, 5)",
        check_readout="it compares these features, and no stage can do with them",
    ),
    fault(
        "check_readout",
        "a layer as wide as an option of `readout`",
        "picture",
        "WidthInState",
        "its state depends on `readout`.",
    ),
    fault(
        "check_tokens",
        "the card is silent about `tokens`",
        "picture",
        "Places",
        "it has `tokens`, and its card never says so (gives_tokens).",
    ),
    fault(
        "check_tokens",
        "more tokens than `n_tokens`",
        "places",
        "MorePlaces",
        "`tokens` gives ((8, 2, 4) float32, (8, 2) bool), and (8, at most 1, 4) floats with a bool mask are",
    ),
    fault(
        "check_tokens",
        "a row without a token",
        "places",
        "NoPlace",
        "`tokens` gives a row without any token.",
    ),
    fault(
        "check_tokens",
        "tokens minus their mean over the batch",
        "places",
        "ShiftedPlaces",
        "gives other tokens for the same rows in another batch.",
    ),
    fault(
        "check_tokens",
        "who is there depends on the batch, where values are large",
        "places",
        "LouderPlaces",
        "gives other tokens for the same rows in another batch.",
    ),
    fault(
        "check_frozen_stays_frozen",
        "counts the calls of `tokens`",
        "places",
        "CountedPlaces",
        "its state changes in `forward` although it is frozen.",
    ),
    fault(
        "check_device",
        "`tokens` makes a tensor on the CPU",
        "places",
        "PlacesAtHome",
        "cannot move to another device",
    ),
    fault(
        "check_every_parameter_learns",
        "a layer whose part in `tokens` is zero",
        "places",
        "UnreadPlaces",
        "parameters that no loss changes: extra.bias, extra.weight.",
    ),
    fault(
        "check_presence",
        "reads what fills tokens up",
        "join_tokens",
        "JoinFilling",
        "what stands in an absent modality's row, or in a token that is none, reaches the output.",
    ),
    fault(
        "check_modalities",
        "takes nothing but tokens",
        "join_tokens",
        "JoinTokensAlone",
        "`forward` fails (AssertionError: no tokens",
    ),
    fault(
        "check_presence",
        "looks at absent rows",
        "join",
        "JoinAll",
        "what stands in an absent modality's row, or in a token that is none, reaches the output.",
    ),
    fault(
        "check_modalities",
        "joins features in the order in which they come",
        "join",
        "JoinAsTheyCome",
        "answers otherwise where features come in another order.",
    ),
    fault(
        "check_known_before_reading",
        "its schema is known after reading",
        "source",
        "LateSchema",
        "its `schema` does not map columns to ColumnSpec.",
    ),
    fault(
        "check_manifest",
        "an outcome that is no class",
        "source",
        "StrangeOutcome",
        "gives outcomes that are no classes (perhaps).",
    ),
    fault(
        "check_read_is_repeatable",
        "samples are called after the reading",
        "source",
        "NewNames",
        "a second reading gives other samples.",
    ),
)


@hookimpl
def fusionkit_components() -> Sequence[Spec]:
    """A raiser that keeps the contract, and one that does not, for the command line."""
    return [replace(GOOD["fixed"], name="good"), replace(FAULTS[5].card, name="bad")]
