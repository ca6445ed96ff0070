"""The cards that a plugin hands in; reading a card imports neither torch nor numpy."""

from __future__ import annotations

import ast
import inspect
import math
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

if TYPE_CHECKING:
    from fusionkit.interfaces import Cells, Encoder, Head, Raiser, Source

ColumnKind = Literal["file", "text", "numeric", "ordinal", "category", "binary", "multi"]
TABULAR_KINDS: tuple[ColumnKind, ...] = ("numeric", "ordinal", "category", "binary", "multi")
"""The kinds of column that become numbers."""
MAX_SEED = 2**53 - 1
"""The largest seed: the largest number that every reader of JSON keeps exactly."""
MAX_PATCHES = 10_000
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
Learns = Literal["nothing", "closed_form", "self_supervised", "gradient"]


class ComponentConfig(BaseModel):
    """Base of every component's options: unknown keys are refused, values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    not_files: ClassVar[tuple[str, ...]] = ()
    """Words that a DataFile option may hold instead of a path."""

    @classmethod
    def model_json_schema(cls, *args: Any, **options: Any) -> dict[str, Any]:
        """Returns the JSON Schema of the options, described by the texts that stand under them."""
        describe(cls)
        return super().model_json_schema(*args, **options)


@cache
def describe(config: type[BaseModel]) -> None:
    """Gives each option, and those of options inside it, the text that stands under it as its description.

    pydantic's `use_attribute_docstrings` does so as soon as a class is made, which took a fifth of the time
    of `fusionkit list`: it reads the source of every class, and nearly always nobody asks.
    """
    for name, field in config.model_fields.items():
        for inner in _configs_in(field.annotation):
            describe(inner)
        if field.description is None:
            found = (_texts_of(owner).get(name) for owner in config.__mro__)
            field.description = next((text for text in found if text is not None), None)
    config.model_rebuild(force=True)


def _configs_in(annotation: Any) -> Iterator[type[ComponentConfig]]:
    if isinstance(annotation, type) and issubclass(annotation, ComponentConfig):
        yield annotation
    for inner in get_args(annotation):
        yield from _configs_in(inner)


@cache
def _texts_of(owner: type) -> Mapping[str, str]:
    """Returns the texts under the annotated names of a class; none where its source cannot be read."""
    if owner in (object, BaseModel):
        return {}
    try:
        source = inspect.getsource(owner)
    except (OSError, TypeError):  # made by `exec` or in a shell
        return {}
    (node,) = ast.parse(textwrap.dedent(source)).body
    texts = {}
    for line, below in pairwise(getattr(node, "body", ())):
        if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
            text = below.value if isinstance(below, ast.Expr) else None
            if isinstance(text, ast.Constant) and isinstance(text.value, str):
                texts[line.target.id] = inspect.cleandoc(text.value)
    return texts


@dataclass(frozen=True)
class DataFileMarker:
    """Marks an option whose text is a path under the data root."""


def _check_path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path has no NUL character")
    return text


DataFile = Annotated[str, DataFileMarker(), AfterValidator(_check_path)]
"""An option that names a file; relative paths resolve under the data root before `build` is called."""


def read_number(text: str) -> float | None:
    """Returns the finite number that a cell's text is, or None where it is none."""
    number = float(text) if _NUMBER.fullmatch(text) else math.inf
    return number if math.isfinite(number) else None


class ColumnSpec(ComponentConfig):
    """What one column of the data may hold, declared once."""

    kind: ColumnKind
    """file: a path; text: free text; numeric; ordinal, category, binary: one value; multi: several values."""
    values: tuple[str, ...] = ()
    """Allowed texts, in order (ordinal, category, binary, multi). The position is the code."""
    range: tuple[float, float] | None = None
    """Least and greatest allowed value of a numeric column."""
    missing: tuple[str, ...] = ("",)
    """Texts that mean that the value is missing; an empty cell always does."""
    separator: str = Field("&", min_length=1)
    """What joins the values of a multi column."""
    unit: str = ""
    """The unit of a numeric column, for people."""
    description: str = ""
    """One line for people."""

    @model_validator(mode="after")
    def _check_values(self) -> ColumnSpec:
        discrete = self.kind in ("ordinal", "category", "binary", "multi")
        if discrete and not self.values:
            raise ValueError(f"a column of kind {self.kind} needs `values`")
        if not discrete and self.values:
            raise ValueError(f"a column of kind {self.kind} takes no `values`")
        if self.kind == "binary" and len(self.values) != 2:
            raise ValueError("a binary column has exactly two `values`")
        if len(set(self.values)) != len(self.values):
            raise ValueError("`values` repeats a value")
        if self.range is not None and (self.kind != "numeric" or self.range[0] > self.range[1]):
            raise ValueError("`range` is [least, greatest] of a numeric column")
        both = set(self.values) & set(self.missing)
        if both:
            raise ValueError(f"{sorted(both)} cannot be a value and mean missing")
        return self


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What every card says.

    Args:
        name: The word that recipes use, snake_case.
        summary: One line for people.
        source: The paper or page that the component follows.
        config: The component's options: schema, defaults, help and checks in one class.
        examples: Small options that build without files or network; tests run on them.
    """

    name: str
    summary: str
    source: str
    config: type[ComponentConfig] = ComponentConfig
    examples: tuple[ComponentConfig, ...] = ()


def _never(config: Any) -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class SourceSpec(Spec):
    """A card for a source.

    Args:
        build: `build(config)`; cheap, reads no data: it knows schema and classes.
        example_files: `example_files(config, data_root)`, for the conformance kit, writes the few small files
            that the source reads.
    """

    build: Callable[[Any], Source]
    example_files: Callable[[Any, Path], None] | None = None


@dataclass(frozen=True, kw_only=True)
class EncoderSpec(Spec):
    """A card for an encoder.

    Args:
        build: `build(config, columns)`; torch is imported inside. `columns` maps the names that the modality
            reads to their ColumnSpec, in order.
        reads: The kinds of column that it reads; they are the modality's default columns.
        learns: How it learns.
        is_pretrained: Whether these options bring learned weights, so that no stage needs to name it.
        emits_missing: Whether, with these options, NaN may be in its output.
        gives_tokens: Whether, with these options, the module has `tokens`, for heads that take them.
        readout: Options that change only what `forward` reads out: neither the state nor
            `pretraining_features` depends on them, so that encoders that differ in nothing else share one
            pretraining.
        example_files: `example_files(config, folder)`, for the conformance kit, writes a few small files and
            returns the columns and at least four different rows of their cells; for files that are no
            pictures.
    """

    build: Callable[[Any, Mapping[str, ColumnSpec]], Encoder]
    reads: tuple[ColumnKind, ...]
    learns: Learns = "gradient"
    is_pretrained: Callable[[Any], bool] = _never
    emits_missing: Callable[[Any], bool] = _never
    gives_tokens: Callable[[Any], bool] = _never
    readout: tuple[str, ...] = ()
    example_files: Callable[[Any, Path], tuple[Mapping[str, ColumnSpec], Sequence[Cells]]] | None = None


@dataclass(frozen=True, kw_only=True)
class RaiserSpec(Spec):
    """A card for a raiser: `build(config, input_dim)`; `accepts_missing` says that NaN may come in."""

    build: Callable[[Any, int], Raiser]
    learns: Learns = "nothing"
    accepts_missing: bool = False
    is_pretrained: Callable[[Any], bool] = _never


@dataclass(frozen=True, kw_only=True)
class HeadSpec(Spec):
    """A card for a head: `build(config, input_dims, output_dim)`, `input_dims` by modality.

    Args:
        build: As above; torch is imported inside.
        learns: How it learns.
        takes_samples: Whether, with these options, its `fit` is also given `samples`, an int64 tensor (n,),
            equal where two rows are views or draws of one sample.
        takes_tokens: Whether, with these options, it reads the tokens of encoders that give some, in place
            of their feature vector: `input_dims` has the width of a token then.
        tasks: The kinds of task that it can do; null for all of them, or for classification alone where it
            learns in closed form.
    """

    build: Callable[[Any, Mapping[str, int], int], Head]
    learns: Learns = "gradient"
    takes_samples: Callable[[Any], bool] = _never
    takes_tokens: Callable[[Any], bool] = _never
    tasks: tuple[str, ...] | None = None

    def can_do(self, kind: str) -> bool:
        """Says whether it can do a kind of task."""
        if self.tasks is not None:
            return kind in self.tasks
        return kind == "classification" or self.learns != "closed_form"


def may_say(card: Spec, question: str) -> bool:
    """Says whether a card says more than never to a question about options, such as `gives_tokens`."""
    return getattr(card, question, _never) is not _never


COMPONENT_KINDS: Mapping[str, type[Spec]] = {
    "source": SourceSpec,
    "encoder": EncoderSpec,
    "raiser": RaiserSpec,
    "head": HeadSpec,
}


def kind_of(spec: Spec) -> str:
    """Returns the word for a card's kind: source, encoder, raiser or head."""
    return next(kind for kind, card in COMPONENT_KINDS.items() if isinstance(spec, card))


class AugmentOptions(ComponentConfig):
    """Random changes of training views, drawn anew for each draw.

    Source: Yan et al. 2021 name flips, rotations, brightness and contrast; their strengths are ours.
    """

    flip: bool = True
    """Mirror left-right and up-down, each with probability one half."""
    rotate: float = Field(0.0, ge=0, le=180)
    """Largest rotation either way, in degrees; corners are filled by reflection."""
    quarter_turns: bool = True
    """Also turn by 0, 90, 180 or 270 degrees."""
    brightness: float = Field(0.2, ge=0, lt=1)
    """Largest relative change of brightness."""
    contrast: float = Field(0.2, ge=0, lt=1)
    """Largest relative change of contrast."""


class ViewOptions(ComponentConfig):
    """Which views are cut from one decoded image."""

    whole: bool = True
    """The whole image, squashed to `size` x `size`."""
    patches: Mapping[int, int] = Field(default_factory=dict)
    """Random square patches: side in pixels of the original -> how many.

    The paper's: {224: 40, 512: 20, 1024: 10, 1536: 5}."""

    @model_validator(mode="after")
    def _check_not_empty(self) -> ViewOptions:
        if any(side < 1 or count < 0 for side, count in self.patches.items()):
            raise ValueError("`patches` maps a side of at least 1 pixel to a count of at least 0")
        if sum(self.patches.values()) > MAX_PATCHES:
            raise ValueError(f"`patches` are at most {MAX_PATCHES} of an image")
        if not self.whole and not sum(self.patches.values()):
            raise ValueError("there is no view: set `whole: true` or name `patches`")
        return self


Share = Annotated[float, Field(ge=0, le=1)]
Spread = Annotated[float, Field(gt=0, le=100)]


class ImageOptions(ComponentConfig):
    """How an image file becomes a tensor: size, colour, views, draws."""

    size: int = Field(224, ge=8, le=4096)
    """Side of the square that the encoder sees, in pixels."""
    mean: tuple[Share, Share, Share] = (0.485, 0.456, 0.406)
    """Subtracted from RGB in [0, 1]; torchvision's ImageNet values by default."""
    std: tuple[Spread, Spread, Spread] = (0.229, 0.224, 0.225)
    """Divides after the mean is subtracted."""
    views: ViewOptions = ViewOptions()
    """What training sees."""
    eval_views: ViewOptions = ViewOptions()
    """What evaluation and prediction see, never augmented."""
    augment: AugmentOptions | None = None
    """Random changes of training views; null for none."""
    draws: int = Field(1, ge=1, le=1000)
    """How many augmented draws of each view a stored feature table holds (the paper's arithmetic: 11)."""
    max_pixels: int = Field(64_000_000, ge=1, le=2_000_000_000)
    """An image with more pixels is refused."""
