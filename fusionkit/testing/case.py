"""A case: a card with one of its examples; it builds the component, makes its inputs, lets it learn."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from fusionkit.data.images import ImageInput
from fusionkit.errors import FusionkitError, FusionkitWarning, PluginError, at_place
from fusionkit.interfaces import Cells, Cut
from fusionkit.model import calling, to_fp32
from fusionkit.specs import TABULAR_KINDS, ColumnSpec, ComponentConfig, EncoderSpec, HeadSpec, Spec, kind_of
from fusionkit.testing.inputs import (
    MODALITIES,
    N_ROWS,
    TOKENS_OF,
    make_cells,
    make_columns,
    make_features,
    make_joined,
    make_targets,
)
from fusionkit.training.memory import take_rows

INPUT_DIM = 5
LEAST_ROWS = 4
STEPS = 3
RATE = 0.01
NEIGHBOURS = 1e-3
"""Of the largest value: kernels round by a hundredth of it, and padding that leaks moves more."""


class BreachError(PluginError):
    """A component breaks a clause of the contract."""


class DoesNotApplyError(Exception):
    """A check has nothing to look at, or cannot be made here; it is not counted as passed."""


@dataclass
class Case:
    """A card with one of its examples, in a folder for its inputs.

    Args:
        card: The card.
        example: Which of its examples, counted from 0; None where only the card is looked at.
        folder: An empty folder that goes away afterwards.
        dims: Width of each modality's features that a head gets.
        n_classes: Width of a head's output.
        tokens_of: Modalities of which a head that takes tokens is given some.
    """

    card: Spec
    example: int | None = None
    folder: Path = Path()
    dims: Mapping[str, int] = field(default_factory=lambda: MODALITIES)
    n_classes: int = 3
    tokens_of: Sequence[str] = TOKENS_OF

    @property
    def id(self) -> str:
        """The component's name, and which example."""
        return self.card.name if self.example is None else f"{self.card.name}.{self.example}"

    @property
    def kind(self) -> str:
        """The card's kind: source, encoder, raiser or head."""
        return kind_of(self.card)

    @property
    def learns(self) -> str:
        """How it learns, as the card says."""
        return str(getattr(self.card, "learns", "nothing"))

    @property
    def config(self) -> ComponentConfig:
        """The example's options."""
        return self.card.examples[self.example or 0]

    @cached_property
    def _columns_and_cells(self) -> tuple[Mapping[str, ColumnSpec], Sequence[Cells]]:
        card = cast(EncoderSpec, self.card)
        if card.example_files is None:
            columns: Mapping[str, ColumnSpec] = make_columns(card.reads)
            return columns, make_cells(columns, self.folder)
        with calling(self.id, "example_files"):
            columns, cells = card.example_files(self.config, self.folder)
        if len(cells) < LEAST_ROWS:
            raise BreachError(
                f"{self.id}: `example_files` gives {len(cells)} rows. Give at least {LEAST_ROWS} that differ."
            )
        return columns, cells

    @property
    def columns(self) -> Mapping[str, ColumnSpec]:
        """The columns that an encoder is built with."""
        return self._columns_and_cells[0]

    @property
    def is_stored(self) -> bool:
        """Whether it is an encoder of files or texts: it may run in bf16, and its features are stored."""
        return self.kind == "encoder" and any(
            spec.kind not in TABULAR_KINDS for spec in self.columns.values()
        )

    @property
    def cells(self) -> Sequence[Cells]:
        """The rows of cells of an encoder; raises DoesNotApplyError where the kit cannot make them."""
        columns, cells = self._columns_and_cells
        reads_files = any(spec.kind == "file" for spec in columns.values())
        is_known = cast(EncoderSpec, self.card).example_files is not None or isinstance(
            self.input_spec, ImageInput
        )
        if reads_files and not is_known:
            raise DoesNotApplyError(
                "it reads files that are no pictures, and its card has no `example_files`"
            )
        return cells

    @cached_property
    def input_spec(self) -> Any:
        """An encoder's input spec."""
        return self.build().input_spec

    @cached_property
    def n_rows(self) -> int:
        """How many rows of input there are."""
        return len(self.cells) if self.kind == "encoder" else N_ROWS

    @property
    def targets(self) -> Tensor:
        """The class code of each row, (n,)."""
        return make_targets(self.n_rows, self.n_classes)

    def build(self, seed: int = 0, config: ComponentConfig | None = None) -> Any:
        """Builds the component from a seed of torch's global generator; frozen, as the core has it.

        Args:
            seed: The seed.
            config: Other options than the example's.
        """
        arguments: dict[str, Callable[[], tuple[Any, ...]]] = {
            "source": lambda: (),
            "encoder": lambda: (self.columns,),
            "raiser": lambda: (INPUT_DIM,),
            "head": lambda: (self.dims, self.n_classes),
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            with calling(self.id, "build"):
                part = cast(Any, self.card).build(config or self.config, *arguments[self.kind]())
        if self.kind == "source":
            return part
        if not isinstance(part, nn.Module):
            raise BreachError(f"{self.id}: `build` gives {type(part).__name__}, not an nn.Module.")
        return part.eval().requires_grad_(False)

    def batch(self, rows: Sequence[int] | None = None) -> Any:
        """Returns some rows as the part gets them, all by default."""
        rows = range(self.n_rows) if rows is None else rows
        if self.kind == "encoder":
            return self.collate(self.cells, rows)
        takes_tokens = self.kind == "head" and cast(HeadSpec, self.card).takes_tokens(self.config)
        tokens_of = self.tokens_of if takes_tokens else ()
        everything = make_joined(self.dims, tokens_of) if self.kind == "head" else make_features(INPUT_DIM)
        return take_rows(everything, list(rows))

    def collate(self, cells: Sequence[Cells], rows: Sequence[int]) -> Any:
        """Returns a raw batch of the first view of evaluation of some rows."""
        with calling(self.id, "input_spec"):
            cut = Cut(self.input_spec.views(training=False)[0])
            return self.input_spec.collate([self.input_spec.load(cells[row], [cut])[0] for row in rows])

    def run(self, part: nn.Module, batch: Any) -> Tensor:
        """Returns what a part gives for a batch, in fp32 where it is an encoder."""
        with torch.no_grad():
            return self.forward(part, batch)

    def forward(self, part: nn.Module, batch: Any) -> Tensor:
        """Returns what a part gives for a batch, with gradients where its parameters have them."""
        with calling(self.id):
            out = part(*batch) if self.kind == "head" else part(batch)
        if not isinstance(out, Tensor):
            raise BreachError(f"{self.id}: gives {type(out).__name__}, and a tensor is due.")
        return cast(Tensor, to_fp32(out)) if self.is_stored else out

    @property
    def gives_tokens(self) -> bool:
        """Whether it is an encoder that gives tokens with these options."""
        return self.kind == "encoder" and cast(EncoderSpec, self.card).gives_tokens(self.config)

    def tokens(self, part: Any, batch: Any) -> Any:
        """Returns what an encoder's `tokens` gives for a batch, whatever it is."""
        with calling(self.id, "tokens"):
            return part.tokens(batch)

    def fit(self, part: Any, rows: Sequence[int] | None = None, seed: int = 0) -> Any:
        """Fits a closed-form part on some rows and returns what `fit` gives."""
        rows = range(self.n_rows) if rows is None else rows
        with calling(self.id, "fit"):
            return part.fit(self.batch(rows), self.targets[list(rows)], seed=seed)

    def loss(self, part: Any, batch: Any, seed: int = 0) -> Tensor:
        """Returns the loss of a self-supervised part, its generator seeded."""
        with calling(self.id, "loss"):
            return cast(Tensor, part.loss(batch, torch.Generator().manual_seed(seed)))

    def learned(self, seed: int = 0) -> Any:
        """Returns a frozen part after a stage has been at it: fitted, or some steps down its own loss."""
        part = self.build(seed)
        if self.learns == "closed_form":
            self.fit(part)
        elif self.learns == "self_supervised":
            part.train().requires_grad_(True)
            optimiser = torch.optim.SGD(part.parameters(), RATE)
            for step in range(STEPS):
                optimiser.zero_grad()
                # not every breach of `loss` shall be one of every clause
                self.loss(part, self.batch(), step).sum().backward()  # type: ignore[no-untyped-call]
                optimiser.step()
        return part.eval().requires_grad_(False)


@contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FusionkitWarning)
        yield


@contextmanager
def _one_thread() -> Iterator[None]:
    """Computes with one thread: inputs are small, and more threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Check:
    """One clause of the contract, and what looks whether a component keeps it.

    Args:
        name: The function's name.
        clause: The function's docstring.
        kinds: The kinds of component that it holds for.
        function: Raises BreachError, or DoesNotApplyError.
        of_card: Whether it looks at the card alone, once, instead of at each of its examples.
        learns: The ways to learn that it holds for; all if empty.
    """

    name: str
    clause: str
    kinds: tuple[str, ...]
    function: Callable[[Case], None]
    of_card: bool = False
    learns: tuple[str, ...] = ()

    def is_due(self, case: Case) -> bool:
        """Says whether the clause holds for a component of this kind that learns this way."""
        is_of_kind = case.kind in self.kinds and (not self.learns or case.learns in self.learns)
        return is_of_kind and self.of_card == (case.example is None)

    def __call__(self, case: Case) -> None:
        """Looks at a case; raises BreachError in one sentence, or DoesNotApplyError with the reason."""
        try:
            # a part may warn of what it was given: that is no breach
            with TemporaryDirectory(prefix="fusionkit-check-") as folder, _one_thread(), _no_warnings():
                self.function(replace(case, folder=Path(folder)))
        except (BreachError, DoesNotApplyError, KeyboardInterrupt):
            raise
        except FusionkitError as error:
            raise BreachError(error.problems[0]) from error
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            raise BreachError(f"{case.id}: fails ({at_place(error)}). Mend the plugin.") from error

    def look(self, case: Case) -> tuple[Literal["pass", "fail", "does not apply"], str]:
        """Looks at a case and returns how it went, with the reason."""
        try:
            self(case)
        except BreachError as error:
            return "fail", error.problems[0]
        except DoesNotApplyError as reason:
            return "does not apply", str(reason)
        return "pass", ""


def check(
    *kinds: str, of_card: bool = False, learns: tuple[str, ...] = ()
) -> Callable[[Callable[[Case], None]], Check]:
    """Makes a check of a function; its docstring is the clause."""

    def make(function: Callable[[Case], None]) -> Check:
        return Check(function.__name__, inspect.getdoc(function) or "", kinds, function, of_card, learns)

    return make


def require(case: Case, is_kept: bool, breach: str) -> None:
    """Raises BreachError, naming the case, unless a clause is kept."""
    if not is_kept:
        raise BreachError(f"{case.id}: {breach}")


def is_same(expected: Tensor, again: Tensor) -> bool:
    """Says whether two results are one but for the last digits; NaN equals NaN."""
    if expected.shape != again.shape:
        return False
    expected, again = expected.double(), again.double()  # masks have no absolute value
    largest = float(expected.nan_to_num(0.0).abs().max()) if expected.numel() else 0.0
    return torch.allclose(expected, again, rtol=1e-5, atol=1e-6 * largest, equal_nan=True)
