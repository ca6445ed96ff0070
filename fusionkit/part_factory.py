"""The part factory: builds parts in their initial state, each from its own seed, and knows their widths."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from fusionkit.core_parts import Absent, Scale, is_core_part
from fusionkit.errors import DataError, FusionkitError, IntegrityError, PluginError, RecipeError
from fusionkit.model import calling, seed_of, state_digest, token_sizes
from fusionkit.network import refused_network
from fusionkit.recipe.checks import learns
from fusionkit.recipe.components import data_files, file_options, resolve_files
from fusionkit.recipe.load import LoadedRecipe, PartPlan
from fusionkit.specs import ColumnSpec, Learns


class NotHereError(DataError):
    """A part has to fetch what it learned elsewhere, and this command fetches nothing."""


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
        self._tokens: dict[str, tuple[int, int]] = {}
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
                dim = self.dim(modality)
                module: nn.Module = Scale(dim, self.n_tokens(modality)) if kind == "scale" else Absent(dim)
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

    def n_tokens(self, modality: str) -> int:
        """Returns how many tokens of a modality's row the head reads at most; 0 where it reads a vector."""
        return self._tokens_of(modality)[0] if self.loaded.reads_tokens(modality) else 0

    def _tokens_of(self, modality: str) -> tuple[int, int]:
        """Returns how many tokens an encoder gives of a row at most, and their width."""
        path = f"{modality}.encoder"
        if path not in self._tokens:
            self._tokens[path] = token_sizes(path, self.build(path, 0))
        return self._tokens[path]

    def dim(self, modality: str) -> int:
        """Returns the width of a modality's features, or of a token, as the head sees them."""
        if self.loaded.reads_tokens(modality):
            return self._tokens_of(modality)[1]
        last = [path for path, plan in self.loaded.parts.items() if plan.modality == modality][-1]
        return self.output_dim_of(last)

    def origin(self, path: str, seed: int) -> str:
        """Returns the sha256 of a part's initial state."""
        if (path, seed) not in self._origins:
            module = self.build(path, seed)
            if not is_core_part(path) and path != "head":
                self._dims.setdefault(path, int(cast(Any, module).output_dim))
            modality, _, kind = path.partition(".")
            if kind == "encoder" and self.loaded.reads_tokens(modality):
                self._tokens.setdefault(path, token_sizes(path, module))
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
