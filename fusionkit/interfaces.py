"""The Protocols that components satisfy; nobody inherits from fusionkit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from torch import Generator, Tensor

    from fusionkit.data.manifest import Manifest
    from fusionkit.specs import ColumnSpec

Cells = Mapping[str, "str | Path | None"]
"""One row's cells of one modality: column -> text, or the file's path; None where the cell is missing."""
Tell = Callable[[str, Mapping[str, Any]], None]
"""Who is told what happens: the name of an event, and its data."""


@dataclass(frozen=True)
class Cut:
    """One view of one row, with the seed of its randomness; no seed means that nothing is random."""

    view: str
    seed: int | None = None


def ignore_progress(done: int, total: int) -> None:
    """Does nothing with how far something is."""


@dataclass(frozen=True)
class SourceContext:
    """Where a source may read and write.

    Args:
        data_root: Folder that relative data paths resolve under.
        cache: Folder of the store that a source may fill with files that it generates; kept between runs.
        workers: How many processes it may use.
        progress: Is told how many files of how many it has made or fetched; from 0 on.
    """

    data_root: Path
    cache: Path
    workers: int = 1
    progress: Callable[[int, int], None] = ignore_progress


class Source(Protocol):
    """Yields the manifest: one row per sample. Schema and classes are known before any data are read.

    Classes may be none, where the outcome is in columns that a recipe's task names.
    """

    schema: Mapping[str, ColumnSpec]
    classes: tuple[str, ...]
    simulated: bool

    def read(self, context: SourceContext) -> Manifest:
        """Reads every row; raises DataError where there can be none, else leaves problems to the manifest."""
        ...


class InputSpec(Protocol):
    """How cells become a tensor and tensors a batch."""

    columns: tuple[str, ...]
    draws: int

    def identity(self) -> Mapping[str, Any]:
        """Returns everything that changes what `load` gives, as JSON values; it goes into addresses."""
        ...

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns the names of the views that one row yields."""
        ...

    def is_random(self, *, training: bool) -> bool:
        """Whether a view depends on its draw's seed."""
        ...

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns 32 bytes that equal contents share, or None where the modality is absent in this row."""
        ...

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Any]:
        """Reads one row once and returns one item per cut; raises DataError."""
        ...

    def collate(self, items: Sequence[Any]) -> Any:
        """Makes one batch from items of `load`."""
        ...


class Encoder(Protocol):
    """Turns a raw batch into one feature vector per sample; a plain `nn.Module`.

    May also offer `pretraining_dim` with `pretraining_features(inputs)` -> (n, pretraining_dim) or
    (n, pretraining_dim, height, width), what a `pretrain` stage classifies (default: forward); and, where
    its card says `gives_tokens`, `tokens(inputs)` -> (n, k, `token_dim`) and a bool mask (n, k) of those that
    are there, at least one in each row and at most `n_tokens`, for heads that take them.
    """

    input_spec: InputSpec
    output_dim: int

    def forward(self, inputs: Any) -> Tensor:
        """Returns (n, output_dim)."""
        ...


class Raiser(Protocol):
    """Widens a feature vector; a plain `nn.Module`."""

    input_dim: int
    output_dim: int

    def forward(self, features: Tensor) -> Tensor:
        """Maps (n, input_dim) to (n, output_dim)."""
        ...


class Head(Protocol):
    """Fuses all feature vectors; a plain `nn.Module`."""

    def forward(self, features: Mapping[str, Tensor], present: Mapping[str, Tensor]) -> Tensor:
        """Maps (n, d) per modality to (n, output_dim); `present[m]` (n,) says where modality m counts.

        It counts where the row has it, or where a vector stands for it that learns with the head. A head
        whose card says `takes_tokens` gets tokens (n, k, d) with `present[m]` (n, k) of a modality whose
        encoder gives them and that has no raiser.
        """
        ...


@runtime_checkable
class Fittable(Protocol):
    """Learns in closed form, in one call, on training subjects only.

    A raiser's inputs are (n, input_dim), an encoder's a raw batch; a head's are a pair, the features by
    modality and `present`, as in its `forward`. A head whose card says `takes_samples` is also
    given `samples`, (n,) numbers that are equal where two rows are views or draws of one sample.
    """

    def fit(self, inputs: Any, targets: Any = None, *, seed: int) -> Self:
        """Learns from all inputs at once; forgets an earlier fit; never changes `output_dim`."""
        ...


@runtime_checkable
class SelfSupervised(Protocol):
    """Learns without labels by gradient, in the one training loop; inputs as in `Fittable`."""

    def loss(self, inputs: Any, generator: Generator) -> Tensor:
        """Returns the scalar loss of a batch; all randomness comes from `generator`."""
        ...
