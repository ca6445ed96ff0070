"""The model: per modality an encoder, perhaps a raiser, a scale; then the head."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.errors import (
    FusionkitError,
    PluginError,
    at_place,
    is_out_of_memory,
)
from fusionkit.tokens import pack_tokens, unpack_tokens


@dataclass(frozen=True)
class ModalityBatch:
    """One modality of a batch.

    Args:
        inputs: Raw batch, or features after the first `start` parts of the chain; present rows only.
        present: (n,) says which rows of the batch have the modality.
        start: Index of the first part of the chain that `inputs` still has to go through.
    """

    inputs: Any
    present: Tensor
    start: int = 0

    def take(self, part: slice) -> ModalityBatch | None:
        """Returns some rows of the batch; None where its inputs have no rows that could be told apart."""
        before, here = int(self.present[: part.start].sum()), int(self.present[part].sum())
        if not isinstance(self.inputs, Tensor) or len(self.inputs) != int(self.present.sum()):
            return None
        return ModalityBatch(self.inputs[before : before + here], self.present[part], self.start)


@contextmanager
def calling(
    path: str, method: str = "forward", passing: type[BaseException] = FusionkitError
) -> Iterator[None]:
    """Names the part in whatever a plugin's own code raises inside; the cause is kept for the log."""
    try:
        yield
    except (FusionkitError, KeyboardInterrupt, passing):
        raise
    except BaseException as error:  # a plugin may raise anything, SystemExit included
        # the training loop knows what to do about these two
        if is_out_of_memory(error) or "more than 1 value per channel" in str(error):
            raise
        raise PluginError(
            f"{path}: `{method}` fails ({at_place(error)}). Mend the plugin, or look at its options."
        ) from error


class FusionModel(nn.Module):
    """Runs each modality's chain on its present rows, scales, fills absent rows, and fuses.

    Args:
        chains: Parts per modality in data-flow order: encoder, perhaps raiser, perhaps scale.
        head: The head.
        in_precision: Enters the precision of a modality's encoder; null for fp32.
        dims: Width of each modality's features, or of a token.
        output_dim: Width of the head's output.
        absent: What gives the rows that lack a modality, by modality; zeros for the others.
        n_tokens: How many tokens of a row the head reads at most, by modality; 0 where it reads a vector.
    """

    def __init__(
        self,
        chains: Mapping[str, Mapping[str, nn.Module]],
        head: nn.Module,
        in_precision: Mapping[str, Callable[[], Any]],
        dims: Mapping[str, int],
        output_dim: int,
        absent: Mapping[str, nn.Module] | None = None,
        n_tokens: Mapping[str, int] | None = None,
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.chains = nn.ModuleDict({name: nn.ModuleDict(dict(chain)) for name, chain in chains.items()})
        self.absent = nn.ModuleDict(dict(absent or {}))
        self.head = head
        self.in_precision = dict(in_precision)
        self.dims = dict(dims)
        self.n_tokens = dict(n_tokens or {})

    def walk(self, modality: str, inputs: Any, start: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Yields a modality's features, or packed tokens, after each part from `start` on, in fp32."""
        n_rows, n_tokens = None, self.n_tokens.get(modality, 0)
        for kind, part in list(cast(nn.ModuleDict, self.chains[modality]).items())[start:]:
            path = f"{modality}.{kind}"
            precision = self.in_precision.get(modality) if kind == "encoder" else None
            inputs = compute_part(path, part, inputs, n_tokens, precision, n_rows)
            n_rows = len(inputs)
            yield path, inputs

    def features(self, modality: str, inputs: Any, start: int = 0) -> Tensor:
        """Returns a modality's features from `start` of its chain on, or packed tokens, (n present, d)."""
        for _, values in self.walk(modality, inputs, start):
            inputs = values
        return cast(Tensor, inputs)

    def join(self, batch: Mapping[str, ModalityBatch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns what the head gets: features (n, d) by modality, and for which rows they count.

        Of a modality whose tokens it reads, these (n, k, d), and which of them count (n, k).
        Rows that lack a modality are zero and do not count, or are the vector learned for them, which
        counts like any other: a head lets nothing through of what does not.
        """
        features, present = {}, {}
        for modality, part in batch.items():
            here, n_tokens = part.present, self.n_tokens.get(modality, 0)
            dense = self._absent_rows(modality, here, n_tokens)
            if bool(here.any()):
                found = self.features(modality, part.inputs, part.start)
                if len(found) != int(here.sum()):
                    raise PluginError(
                        f"{modality}.encoder: gives {len(found)} rows of features for {int(here.sum())}. "
                        "Mend the plugin."
                    )
                is_whole = len(found) == len(here)
                dense = found if is_whole else dense.index_put((here.nonzero().squeeze(1),), found)
            if n_tokens:
                features[modality], present[modality] = unpack_tokens(dense, n_tokens)
            else:
                features[modality] = dense
                present[modality] = torch.ones_like(here) if modality in self.absent else here
        return features, present

    def _absent_rows(self, modality: str, here: Tensor, n_tokens: int) -> Tensor:
        """Returns what stands in rows that lack a modality, (n, d), as if all did; one token of many."""
        if modality not in self.absent:
            dim = self.dims[modality]
            return torch.zeros(len(here), n_tokens * (dim + 1) if n_tokens else dim, device=here.device)
        vectors = cast(Tensor, self.absent[modality](len(here)))
        return (
            pack_tokens(vectors[:, None], torch.ones_like(here)[:, None], n_tokens) if n_tokens else vectors
        )

    def forward(self, batch: Mapping[str, ModalityBatch]) -> Tensor:
        """Returns logits (n, output_dim)."""
        features, present = self.join(batch)
        with calling("head"):
            logits = self.head(features, present)
        n_rows = len(next(iter(present.values())))
        is_right = isinstance(logits, Tensor) and logits.shape == (n_rows, self.output_dim)
        if not is_right or not logits.is_floating_point():
            raise PluginError(
                f"head: gives {describe(logits)}, and ({n_rows}, {self.output_dim}) floats are due. "
                "Mend the plugin."
            )
        return cast(Tensor, logits)


def seed_of(seed: int, *parts: str | int) -> int:
    """Derives a seed below 2**63 for one purpose."""
    text = "/".join([str(seed), *map(str, parts)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def state_digest(module: nn.Module) -> str:
    """Returns the sha256 of a module's state: names, types, shapes and bytes, in order."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}:".encode())
        # torch's reshape keeps 0-d tensors readable as bytes too
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def compute_part(
    path: str,
    part: nn.Module,
    inputs: Any,
    n_tokens: int = 0,
    precision: Callable[[], Any] | None = None,
    n_rows: int | None = None,
) -> Tensor:
    """Returns what a part gives, in fp32: features (n, output_dim), or an encoder's tokens, packed.

    Args:
        path: The part's.
        part: It.
        inputs: What comes into it.
        n_tokens: How many tokens the head reads of a row at most; 0 where it reads a vector.
        precision: Enters the precision of an encoder of files; null for fp32 as it is.
        n_rows: How many rows are due, if it is known.

    Raises:
        PluginError: It fails, or gives something else.
    """
    is_asked = n_tokens > 0 and path.endswith(".encoder")
    with calling(path, "tokens" if is_asked else "forward"), (precision or nullcontext)():
        found = cast(Any, part).tokens(inputs) if is_asked else part(inputs)
    if is_asked:
        values, mask = check_given_tokens(path, part, found, n_rows)
        return pack_tokens(values, mask, n_tokens)
    return check_features(path, part, found if precision is None else to_fp32(found), n_rows)


def token_sizes(path: str, encoder: Any) -> tuple[int, int]:
    """Returns how many tokens an encoder gives of a row at most, and their width.

    Raises:
        PluginError: It does not say so, or has no `tokens`.
    """
    sizes = getattr(encoder, "n_tokens", None), getattr(encoder, "token_dim", None)
    if callable(getattr(encoder, "tokens", None)) and all(isinstance(n, int) and n > 0 for n in sizes):
        return cast(tuple[int, int], sizes)
    raise PluginError(
        f"{path}: its card says that it gives tokens, and it has no `tokens`, or its `n_tokens` or "
        "`token_dim` is no number from 1 on. Mend the plugin."
    )


def check_given_tokens(path: str, part: Any, found: Any, n_rows: int | None = None) -> tuple[Tensor, Tensor]:
    """Returns an encoder's tokens as float32, and their mask; raises PluginError for what they may not be."""
    is_pair = isinstance(found, tuple) and len(found) == 2 and all(isinstance(one, Tensor) for one in found)
    values, mask = found if is_pair else (torch.zeros(0), torch.zeros(0))
    is_right = (
        values.ndim == 3
        and values.is_floating_point()
        and values.shape[2] == part.token_dim
        and values.shape[1] <= part.n_tokens
        and mask.dtype == torch.bool
        and mask.shape == values.shape[:2]
        and n_rows in (None, len(values))
    )
    if not is_right:
        given = f"({describe(values)}, {describe(mask)})" if is_pair else describe(found)
        due = f"({'n' if n_rows is None else n_rows}, at most {part.n_tokens}, {part.token_dim}) floats"
        raise PluginError(
            f"{path}: `tokens` gives {given}, and {due} with a bool mask are due. Mend the plugin."
        )
    if not bool(mask.any(1).all()):
        raise PluginError(
            f"{path}: `tokens` gives a row without any token. Mend the plugin; give at least one."
        )
    return values.float(), mask


def check_features(path: str, part: nn.Module, features: Any, n_rows: int | None = None) -> Tensor:
    """Returns a part's output if it is (n, output_dim) float32 values; raises PluginError otherwise."""
    dim = getattr(part, "output_dim", None)
    is_right = isinstance(features, Tensor) and features.ndim == 2 and features.dtype == torch.float32
    if is_right and dim in (None, features.shape[1]) and n_rows in (None, len(features)):
        return cast(Tensor, features)
    due = f"({'n' if n_rows is None else n_rows}, {dim or 'd'}) float32"
    raise PluginError(f"{path}: gives {describe(features)}, and {due} is due. Mend the plugin.")


def to_fp32(features: Any) -> Any:
    """Returns what an encoder gives in its own precision as float32; what is no float is left as it is."""
    is_float = isinstance(features, Tensor) and features.is_floating_point()
    return features.float() if is_float else features


def describe(value: Any) -> str:
    """Returns shape and type of a value, for the brackets of a message."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
