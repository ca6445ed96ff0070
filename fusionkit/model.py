"""The model: per modality an encoder, perhaps a raiser, a scale; then the head."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fusionkit.core_parts import Absent, Scale, is_core_part
from fusionkit.errors import (
    DataError,
    FusionkitError,
    IntegrityError,
    PluginError,
    RecipeError,
    at_place,
    is_out_of_memory,
)
from fusionkit.network import refused_network
from fusionkit.recipe.checks import learns
from fusionkit.recipe.components import data_files, file_options, resolve_files
from fusionkit.recipe.load import LoadedRecipe, PartPlan
from fusionkit.specs import ColumnSpec, Learns


class NotHereError(DataError):
    """A part has to fetch what it learned elsewhere, and this command fetches nothing."""


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
        dims: Width of each modality's features.
        output_dim: Width of the head's output.
        absent: What gives the rows that lack a modality, by modality; zeros for the others.
    """

    def __init__(
        self,
        chains: Mapping[str, Mapping[str, nn.Module]],
        head: nn.Module,
        in_precision: Mapping[str, Callable[[], Any]],
        dims: Mapping[str, int],
        output_dim: int,
        absent: Mapping[str, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.chains = nn.ModuleDict({name: nn.ModuleDict(dict(chain)) for name, chain in chains.items()})
        self.absent = nn.ModuleDict(dict(absent or {}))
        self.head = head
        self.in_precision = dict(in_precision)
        self.dims = dict(dims)

    def walk(self, modality: str, inputs: Any, start: int = 0) -> Iterator[tuple[str, Tensor]]:
        """Yields a modality's features after each part of its chain from `start` on, in fp32."""
        n_rows = None
        for kind, part in list(cast(nn.ModuleDict, self.chains[modality]).items())[start:]:
            path = f"{modality}.{kind}"
            with calling(path):
                if kind == "encoder" and modality in self.in_precision:
                    with self.in_precision[modality]():
                        inputs = part(inputs)
                    inputs = to_fp32(inputs)
                else:
                    inputs = part(inputs)
            inputs = check_features(path, part, inputs, n_rows)
            n_rows = len(inputs)
            yield path, inputs

    def features(self, modality: str, inputs: Any, start: int = 0) -> Tensor:
        """Returns a modality's features from `start` of its chain on, (n present, d), in fp32."""
        for _, values in self.walk(modality, inputs, start):
            inputs = values
        return cast(Tensor, inputs)

    def join(self, batch: Mapping[str, ModalityBatch]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Returns what the head gets: features (n, d) by modality, and for which rows they count.

        Rows that lack a modality are zero and do not count, or are the vector learned for them, which
        counts like any other: a head lets nothing through of what does not.
        """
        features, present = {}, {}
        for modality, part in batch.items():
            here = part.present
            if modality in self.absent:
                dense = cast(Tensor, self.absent[modality](len(here)))
            else:
                dense = torch.zeros(len(here), self.dims[modality], device=here.device)
            if bool(here.any()):
                found = self.features(modality, part.inputs, part.start)
                if len(found) != int(here.sum()):
                    raise PluginError(
                        f"{modality}.encoder: gives {len(found)} rows of features for {int(here.sum())}. "
                        "Mend the plugin."
                    )
                is_whole = len(found) == len(here)
                dense = found if is_whole else dense.index_put((here.nonzero().squeeze(1),), found)
            features[modality] = dense
            present[modality] = torch.ones_like(here) if modality in self.absent else here
        return features, present

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


class PartFactory:
    """Builds parts in their initial state, each from its own seed, and knows their origins.

    Args:
        loaded: The recipe.
        output_dim: Width of the head's output.
        data_root: Folder that relative paths of weights resolve under.
        fetches: Whether a part may fetch from the network what it learned elsewhere.
    """

    def __init__(
        self, loaded: LoadedRecipe, output_dim: int, data_root: Path, *, fetches: bool = True
    ) -> None:
        self.loaded = loaded
        self.output_dim = output_dim
        self.data_root = data_root
        self.fetches = fetches
        self._dims: dict[str, int] = {}
        self._origins: dict[tuple[str, int], str] = {}

    def chain(self, modality: str) -> list[str]:
        """Returns a modality's part paths in data-flow order, its scale included."""
        paths = [path for path, plan in self.loaded.parts.items() if plan.modality == modality]
        scaled = self.loaded.recipe.modalities[modality].standardize
        return [*paths, f"{modality}.scale"] if scaled else paths

    def paths(self) -> list[str]:
        """Returns every part path in data-flow order, head last."""
        paths = []
        for name in self.loaded.recipe.modalities:
            paths += self.chain(name)
            paths += [f"{name}.absent"] if name in self.loaded.recipe.stood_in else []
        return [*paths, "head"]

    def learns(self, path: str) -> Learns:
        """Returns how a part learns, as its card says; a scale in closed form."""
        if is_core_part(path):
            return "closed_form" if path.endswith(".scale") else "gradient"
        return learns(self.loaded.parts[path])

    def build(self, path: str, seed: int) -> nn.Module:
        """Builds a part in its initial state, from the seed of (seed, "init", path)."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(seed, "init", path))
            if is_core_part(path):
                modality, _, kind = path.partition(".")
                module: nn.Module = (Scale if kind == "scale" else Absent)(self.dim(modality))
            else:
                module = self._build(self.loaded.parts[path])
        module.eval()
        module.requires_grad_(False)
        return module

    def _build(self, plan: PartPlan) -> nn.Module:
        config = resolve_files(plan.config, self.data_root)
        card = cast(Any, plan.card)
        given: tuple[Any, ...]
        if plan.path == "head":
            given = {name: self.dim(name) for name in self.loaded.recipe.modalities}, self.output_dim
        elif plan.path.endswith(".encoder"):
            schema = self.loaded.source.schema
            columns: dict[str, ColumnSpec] = {
                name: schema[name] for name in self.loaded.columns[cast(str, plan.modality)]
            }
            given = (columns,)
        else:
            given = (self.output_dim_of(f"{plan.modality}.encoder"),)
        with nullcontext() if self.fetches else refused_network() as refusal:
            try:
                with calling(plan.path, f"build of {plan.use}"):
                    module = card.build(config, *given)
            except FusionkitError as error:
                if refusal is not None and refusal.was_asked:
                    raise NotHereError(_not_here(plan)) from error
                if isinstance(error, DataError | IntegrityError | RecipeError):
                    raise type(error)(_located(plan, error.problems, self.data_root)) from error
                raise
        return _checked(module, plan)

    def output_dim_of(self, path: str) -> int:
        """Returns the width of a part's output."""
        if path not in self._dims:
            self._dims[path] = int(cast(Any, self.build(path, 0)).output_dim)
        return self._dims[path]

    def dim(self, modality: str) -> int:
        """Returns the width of a modality's features as the head sees them."""
        last = [path for path, plan in self.loaded.parts.items() if plan.modality == modality][-1]
        return self.output_dim_of(last)

    def origin(self, path: str, seed: int) -> str:
        """Returns the sha256 of a part's initial state."""
        if (path, seed) not in self._origins:
            module = self.build(path, seed)
            if not is_core_part(path) and path != "head":
                self._dims.setdefault(path, int(cast(Any, module).output_dim))
            self._origins[path, seed] = state_digest(module)
        return self._origins[path, seed]


def _node(plan: PartPlan) -> str:
    """Returns a part's place in the recipe."""
    return plan.path if plan.path == "head" else f"modalities.{plan.path}"


def _not_here(plan: PartPlan) -> str:
    """Says that a part would have to fetch, and names the option that asks for it."""
    words = {name: getattr(plan.config, name) for name in file_options(plan.config)}
    named = [name for name, word in words.items() if word in plan.config.not_files]
    where = ".".join([_node(plan), *named[:1]])
    what = words[named[0]] if named else f"what {plan.use} learned elsewhere"
    return (
        f"{where}: not here yet ({what}), and only a run fetches it. Give `fusionkit run`, or name a file "
        "that is here."
    )


def _located(plan: PartPlan, problems: Sequence[str], data_root: Path) -> list[str]:
    """Returns what is wrong with a part's options, columns or files, with their place in the recipe."""
    paths = {name: f"{path}: " for name, path in data_files(plan.config, data_root).items()}

    def locate(problem: str) -> str:
        for name, path in paths.items():
            if problem.startswith(path):
                return f"{_node(plan)}.{name}: {problem}"
        where = problem.partition(": ")[0]
        if where == "columns" and plan.modality is not None:
            return f"modalities.{plan.modality}.{problem}"
        is_option = where.partition(".")[0] in {"use", *type(plan.config).model_fields}
        return f"{_node(plan)}{'.' if is_option else ': '}{problem}"

    return [locate(problem) for problem in problems]


def _checked(module: Any, plan: PartPlan) -> nn.Module:
    if not isinstance(module, nn.Module):
        raise PluginError(
            f"{plan.path}: {plan.use} built {type(module).__name__}, not an nn.Module. Mend the plugin."
        )
    can_learn = [name for name in ("fit", "loss") if hasattr(module, name)]
    if getattr(plan.card, "learns", "nothing") == "nothing" and can_learn:
        raise PluginError(
            f"{plan.path}: {plan.use} has a method `{can_learn[0]}`, and its card says "
            "that it learns nothing. Say `learns` on the card."
        )
    if plan.path.endswith(".encoder") and not hasattr(module, "input_spec"):
        raise PluginError(f"{plan.path}: {plan.use} has no `input_spec`. Mend the plugin.")
    return module


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
