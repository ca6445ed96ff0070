"""What the stages of one recipe work with: rows, parts and where they come from, the store, the device."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fusionkit.core_parts import ABSENT_VERSION, SCALE_VERSION
from fusionkit.data.batches import Kept, ModalityReader, Units
from fusionkit.data.digests import content_digest
from fusionkit.data.manifest import Manifest
from fusionkit.errors import IntegrityError
from fusionkit.interfaces import Encoder, Tell
from fusionkit.model import (
    FusionModel,
    ModalityBatch,
    compute_part,
)
from fusionkit.part_factory import PartFactory
from fusionkit.recipe.components import PartPlan, data_files
from fusionkit.specs import TABULAR_KINDS, ImageOptions
from fusionkit.store import Artefact, Store
from fusionkit.task import Task
from fusionkit.tokens import PACKED_VERSION
from fusionkit.training.checks import check_alone, check_finite
from fusionkit.training.device import Device
from fusionkit.training.features import FeatureTable, ensure_features, fill_up, prefix_address
from fusionkit.training.memory import Portions, count_rows, take_rows

N_SHARED_MODULES = 24
"""How many frozen instances are kept; the least recently used goes first."""


@dataclass(frozen=True)
class Origin:
    """Where a part's state comes from.

    Args:
        address: sha256 of the initial state, or the address of the artefact that learned it.
        seed: The seed of its initial state.
        is_learned: Whether `address` is an artefact.
    """

    address: str
    seed: int
    is_learned: bool = False


Origins = Mapping[str, Origin]


@dataclass
class Shared:
    """What the variants of one run share."""

    modules: OrderedDict[tuple[str, str], nn.Module] = field(default_factory=OrderedDict)
    readers: dict[str, ModalityReader] = field(default_factory=dict)
    tables: dict[str, FeatureTable] = field(default_factory=dict)
    prefixes: dict[tuple[Any, ...], str] = field(default_factory=dict)
    skipped: set[tuple[str, str]] = field(default_factory=set)
    checked: set[tuple[tuple[str, ...], ...]] = field(default_factory=set)
    portions: dict[str, Portions] = field(default_factory=dict)
    artefacts: Callable[[str], Artefact | None] | None = None


@dataclass(frozen=True)
class Experiment:
    """One recipe on one manifest.

    Args:
        factory: Builds parts of the recipe in their initial state.
        manifest: The rows.
        task: What is predicted.
        store: Where artefacts and features are.
        device: Where things are computed.
        tell: Is told what happens.
        shared: Caches that variants share.
    """

    factory: PartFactory
    manifest: Manifest
    task: Task
    store: Store
    device: Device
    tell: Tell
    shared: Shared = field(default_factory=Shared)

    @property
    def modalities(self) -> list[str]:
        """The recipe's modalities, in order."""
        return list(self.factory.loaded.recipe.modalities)

    def reader(self, modality: str) -> ModalityReader:
        """Returns the reader of a modality's rows."""
        if modality not in self.shared.readers:
            seed = self.factory.loaded.recipe.seed
            encoder = cast(
                Encoder, self.module(f"{modality}.encoder", self.initial(f"{modality}.encoder", seed))
            )
            workers = self.factory.loaded.recipe.training.workers
            self.shared.readers[modality] = ModalityReader(
                modality, self.manifest, encoder.input_spec, seed, workers
            )
        reader = self.shared.readers[modality]
        reader.tell = self.tell  # in the name of who asks now, not of who asked first
        return reader

    def initial(self, path: str, seed: int) -> Origin:
        """Returns a part's origin before it learns."""
        return Origin(self.factory.origin(path, seed), seed)

    def fresh(self, path: str, origin: Origin) -> nn.Module:
        """Builds a part in the state of its origin, not shared with anybody."""
        module = self.factory.build(path, origin.seed)
        if origin.is_learned:
            self.restore(module, path, origin)
        module = self.device.place(module)
        return self.device.compile(path, module) if self._reads_files(path) else module

    def _reads_files(self, path: str) -> bool:
        """Says whether a part is the encoder of something else than a table."""
        modality, _, kind = path.partition(".")
        loaded = self.factory.loaded
        kinds = {loaded.source.schema[column].kind for column in loaded.columns.get(modality, ())}
        return kind == "encoder" and not kinds <= set(TABULAR_KINDS)

    def targets(self, rows: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
        """Returns the outcomes of rows: class indices (n,), or numbers (n, k)."""
        return self.task.targets(self.manifest, rows)

    def restore(self, module: nn.Module, path: str, origin: Origin) -> None:
        """Loads a part's tensors from the artefact that learned it; IntegrityError if they do not fit."""
        prefix = f"{path}."
        tensors = self.artefact(origin.address).tensors
        state = {name: tensors[prefix + name] for name in module.state_dict() if prefix + name in tensors}
        try:
            module.load_state_dict(state)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise IntegrityError(
                f"{path}: artefact {origin.address[:12]} does not fit the recipe ({reason})."
            ) from None

    def artefact(self, address: str) -> Artefact:
        """Returns what a stage learned; raises IntegrityError where it is not there."""
        load = self.shared.artefacts or self.store.load
        artefact = load(address)
        if artefact is None:
            raise IntegrityError(
                f"artefact {address[:12]}: not there, or not what was written. Run the recipe again."
            )
        return artefact

    def module(self, path: str, origin: Origin) -> nn.Module:
        """Returns a shared frozen part in the state of its origin."""
        # a head with nothing to learn has the same state whatever it joins
        key = (path if path != "head" else f"head of {' '.join(self.modalities)}", origin.address)
        modules = self.shared.modules
        if key not in modules:
            modules[key] = self.fresh(path, origin)
            while len(modules) > N_SHARED_MODULES:
                modules.popitem(last=False)
        modules.move_to_end(key)
        return modules[key]

    def describe_part(self, path: str, origin: Origin, *, is_pretrained: bool = False) -> dict[str, Any]:
        """Returns what determines a part's behaviour, for addresses; its pretraining alone, if so asked."""
        if path.endswith(".scale"):
            return {"use": "scale", "version": SCALE_VERSION, "origin": origin.address}
        if path.endswith(".absent"):
            return {"use": "absent", "version": ABSENT_VERSION, "origin": origin.address}
        plan = self.factory.loaded.parts[path]
        files = data_files(plan.config, self.factory.data_root)
        readout = getattr(plan.card, "readout", ())
        contents = {
            name: {"sha256": content_digest(file).hex()} for name, file in files.items() if file.is_file()
        }
        return {
            "use": plan.use,
            "version": plan.plugin.version,
            "options": {
                name: contents.get(name, value)
                for name, value in plan.options.items()
                if not _is_image_input(plan, name) and not (is_pretrained and name in readout)
            },
            "origin": origin.address,
        }

    def table(self, modality: str, origin: Origin) -> FeatureTable:
        """Returns the stored features, or tokens, of a modality's frozen encoder."""
        is_packed = self.factory.n_tokens(modality) > 0
        output = {"output": "tokens", "packed": str(PACKED_VERSION)} if is_packed else {"output": "features"}
        return self.output_table(modality, origin, output)

    def output_table(self, modality: str, origin: Origin, output: Mapping[str, Any]) -> FeatureTable:
        """Returns the stored values of one output of a modality's frozen encoder."""
        known = (modality, origin.address, *output.items())
        if known not in self.shared.prefixes:  # for every batch it would cost more than what it finds
            self.shared.prefixes[known] = prefix_address(
                {
                    "encoder": self.describe_part(f"{modality}.encoder", origin),
                    "input": self.reader(modality).spec.identity(),
                    **output,
                    **self.device.identity(),
                }
            )
        prefix = self.shared.prefixes[known]
        if prefix not in self.shared.tables:
            self.shared.tables[prefix] = FeatureTable(self.store, prefix)
        return self.shared.tables[prefix]

    def portions(self, work: str) -> Portions:
        """Returns what cuts the batches of one kind of work without learning, for a whole run."""
        portions = self.shared.portions.setdefault(work, Portions(work, self.tell))
        portions.tell = self.tell  # in the name of who asks now, not of who asked first
        return portions

    def in_portions(self, work: str, raw: Any, compute: Callable[[Any], Tensor]) -> Tensor:
        """Computes (n, d) of a raw batch on the device, in parts where memory is full."""
        n_rows = count_rows(raw)
        if n_rows is None:  # its rows cannot be told apart
            return self.portions(work).run(1, lambda part: compute(self.to_device(raw)))[0]

        def compute_rows(part: slice) -> Tensor:
            is_whole = part.stop - part.start == n_rows
            return compute(self.to_device(raw if is_whole else take_rows(raw, part)))

        parts = self.portions(work).run(n_rows, compute_rows)
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def to_device(self, raw: Any) -> Any:
        """Moves a raw batch to the device."""
        return self.device.move(raw)

    def n_views(self, *, training: bool) -> int:
        """Returns how many views a sample has: as many as its richest modality."""
        return max(self.reader(name).n_views(training=training) for name in self.modalities)

    def n_draws(self, stored: Sequence[str]) -> int:
        """Returns how many draws an epoch of stored features has."""
        specs = [self.reader(name).spec for name in stored]
        return max([spec.draws for spec in specs if spec.is_random(training=True)], default=1)


def _is_image_input(plan: PartPlan, option: str) -> bool:
    """Says whether an option is image options under the name `input`.

    What those change stands in the address by itself: the input spec's identity, and its training views.
    """
    return option == "input" and isinstance(getattr(plan.config, option), ImageOptions)


class Feed:
    """Brings batches to a model some of whose parts are frozen.

    Args:
        experiment: The recipe and its rows.
        origins: Where every part's state comes from.
        learning: Paths of the parts that learn; the others are frozen.
    """

    def __init__(self, experiment: Experiment, origins: Origins, learning: Sequence[str] = ()) -> None:
        self.experiment = experiment
        self.origins = origins
        self.learning = frozenset(learning)
        self.stored = [
            name
            for name in experiment.modalities
            if experiment.reader(name).is_stored and f"{name}.encoder" not in self.learning
        ]

    def model(self, learning: Mapping[str, nn.Module]) -> FusionModel:
        """Assembles the model from shared frozen parts and the given learning ones."""
        experiment, factory = self.experiment, self.experiment.factory

        def part(path: str) -> nn.Module:
            # the encoder behind stored features is not needed
            if path.endswith(".encoder") and path.removesuffix(".encoder") in self.stored:
                return nn.Identity()
            return learning[path] if path in learning else experiment.module(path, self.origins[path])

        chains = {
            name: {path.split(".")[1]: part(path) for path in factory.chain(name)}
            for name in experiment.modalities
        }
        precise = {
            n: experiment.device.autocast for n in experiment.modalities if experiment.reader(n).is_stored
        }
        dims = {name: factory.dim(name) for name in experiment.modalities}
        absent = {name: part(f"{name}.absent") for name in factory.loaded.recipe.stood_in}
        n_tokens = {name: factory.n_tokens(name) for name in experiment.modalities}
        return FusionModel(chains, part("head"), precise, dims, experiment.task.output_dim, absent, n_tokens)

    def ensure(self, units: Units, *, training: bool) -> int:
        """Computes the features that the store lacks for these units; returns how many rows were computed."""
        return sum(self._ensure(name, units, training=training) for name in self.stored)

    def _ensure(self, modality: str, units: Units, *, training: bool) -> int:
        experiment = self.experiment
        reader, origin = experiment.reader(modality), self.origins[f"{modality}.encoder"]
        here = self._of(modality, units.take(reader.present(units.rows)))
        return ensure_features(
            experiment.table(modality, origin),
            reader,
            here,
            lambda raw, again: encode(experiment, modality, origin, raw, again),
            lambda done, total: experiment.tell(
                "features", {"modality": modality, "done": done, "total": total}
            ),
            training=training,
            pin=experiment.device.pin,
        )

    def _of(self, modality: str, units: Units) -> Units:
        """Returns the units as a modality's stored draws number them."""
        spec = self.experiment.reader(modality).spec
        draws = np.where(units.draws < 0, units.draws, units.draws % spec.draws)
        return Units(units.rows, units.views, draws)

    def batch(self, units: Units, *, training: bool, kept: Kept | None = None) -> dict[str, ModalityBatch]:
        """Returns one batch, on the device; `kept` says by modality which units have it, else the data do."""
        experiment = self.experiment
        batch = {}
        for name in experiment.modalities:
            reader = experiment.reader(name)
            present = reader.present(units.rows) if kept is None else kept[name]
            here = units.take(present)
            inputs: Any
            if not len(here):
                inputs, start = torch.zeros(0), 0
            elif name in self.stored:
                keys = reader.feature_keys(self._of(name, here), training=training)
                inputs, start = experiment.table(name, self.origins[f"{name}.encoder"]).gather(keys), 1
            else:
                inputs, start = experiment.device.pin(reader.read(here, training=training)), 0
            mask = torch.from_numpy(present).to(experiment.device.torch)
            batch[name] = ModalityBatch(experiment.to_device(inputs), mask, start)
        return batch


def encode(
    experiment: Experiment, modality: str, origin: Origin, raw: Any, again: Callable[[Sequence[int]], Any]
) -> Tensor:
    """Returns a frozen encoder's features, or packed tokens, (n, d); `again` makes a batch of some rows."""
    path, n_tokens = f"{modality}.encoder", experiment.factory.n_tokens(modality)
    encoder = experiment.module(path, origin)

    def compute(inputs: Any) -> Tensor:
        with torch.inference_mode():
            # of the batch as it was filled up: a row less would else be one of those that are cut off
            n_rows, precision = count_rows(inputs), experiment.device.autocast
            return compute_part(path, encoder, inputs, n_tokens, precision, n_rows)

    def encode_rows(some: Any) -> Tensor:
        found = experiment.in_portions(f"features of {modality}", fill_up(some), compute)
        return found[: len(some)] if isinstance(some, Tensor) else found

    values = encode_rows(raw)
    check_alone(experiment, path, values, again, encode_rows)
    return values


def chain_inputs(experiment: Experiment, origins: Origins, path: str, units: Units) -> Iterator[Any]:
    """Yields by batches what comes into a part in training: raw, features (n, d), or packed tokens."""
    modality = path.split(".")[0]
    reader, n_tokens = experiment.reader(modality), experiment.factory.n_tokens(modality)
    chain = experiment.factory.chain(modality)
    before = chain[: chain.index(path)]
    feed = Feed(experiment, origins, learning=() if before else (path,))
    is_stored = bool(before) and reader.is_stored
    if is_stored:
        feed._ensure(modality, units, training=True)
    # only features can be joined; a raw batch may be anything, and comes whole
    for part in units.chunks(256 if before else max(1, len(units))):
        with torch.no_grad():  # not inference_mode: what comes out may go into a loss
            if is_stored:
                keys = reader.feature_keys(feed._of(modality, part), training=True)
                inputs: Any = experiment.table(modality, origins[f"{modality}.encoder"]).gather(keys)
                inputs = experiment.to_device(inputs)
            else:
                inputs = experiment.to_device(reader.read(part, training=True))
            for name in before[1 if is_stored else 0 :]:
                module = experiment.module(name, origins[name])
                inputs = compute_part(name, module, inputs, n_tokens)
                check_finite(experiment, origins, name, inputs, part.rows)
        yield inputs
