"""Turns names into components, and nothing else can: discovery, look-up, clashes, broken plugins."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_args

import pluggy

from fusionkit import hookspecs
from fusionkit.errors import PluginError, suggest
from fusionkit.specs import (
    COMPONENT_KINDS,
    EncoderSpec,
    HeadSpec,
    Learns,
    RaiserSpec,
    Spec,
    kind_of,
)

CardT = TypeVar("CardT", bound=Spec)
_NAMED: set[str] = set()
"""Import names of the files that `-p` named, in this process: one of them may be loaded from elsewhere."""


@dataclass(frozen=True)
class Plugin:
    """One loaded plugin.

    Args:
        name: The entry point's name, or what `-p` was given.
        package: Import name of its package.
        version: What addresses hash: the distribution's version, or a hash of source that can change.
        cards: What it offers.
    """

    name: str
    package: str
    version: str
    cards: tuple[Spec, ...]


@dataclass
class Registry:
    """Every component that the installed plugins offer.

    Args:
        plugins: The plugins that loaded, by name.
        broken: The plugins that did not, by name, with the reason.
        named: What `-p` named.
        replaced: The installed plugins that others, named by `-p`, stand in for; by name, with `-p`'s word.
    """

    plugins: dict[str, Plugin] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    replaced: dict[str, str] = field(default_factory=dict)
    manager: pluggy.PluginManager = field(default_factory=lambda: pluggy.PluginManager(hookspecs.GROUP))
    _cards: dict[tuple[str, str], list[tuple[Spec, Plugin]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.manager.add_hookspecs(hookspecs)

    @classmethod
    def discover(cls, extra: Sequence[str] = ()) -> Registry:
        """Loads every installed plugin and those that `-p` names; a broken one never stops the others.

        One that `-p` names stands in for an installed plugin of the same import name: who works on a plugin
        tries a copy of it.
        """
        registry = cls(named=tuple(extra))
        installed = sorted(entry_points(group=hookspecs.GROUP), key=lambda entry: entry.name)
        for name in dict.fromkeys(extra):
            registry._load(name, None)
        named = {plugin.package: plugin.name for plugin in registry.plugins.values()}
        for entry in installed:
            if entry.module in named:
                registry.replaced[entry.name] = named[entry.module]
            else:
                registry._load(entry.name, entry)
        return registry

    def _load(self, name: str, entry: EntryPoint | None) -> None:
        try:
            module = entry.load() if entry else _import_named(name)
            if getattr(module, "__file__", None) is None:
                raise PluginError(f"plugin {name}: a folder without __init__.py is no plugin.")
            self.add(name, module, _version(module, entry.dist if entry else None))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            reason = str(error).removeprefix(f"plugin {name}: ")
            self.broken[name] = (
                reason if isinstance(error, PluginError) else f"{type(error).__name__}: {error}"
            )

    def add(self, name: str, module: Any, version: str = "0") -> None:
        """Registers one plugin module; raises PluginError, and keeps nothing, if it breaks the contract."""
        self._check_names(name, getattr(module, "__name__", name))
        self.manager.register(module, name=name)
        try:
            # a misspelt hook would otherwise be silently ignored
            known = {hook for hook in vars(hookspecs) if hook.startswith("fusionkit_")}
            for attribute in vars(module):
                if (
                    attribute.startswith("fusionkit_")
                    and attribute not in known
                    and callable(getattr(module, attribute))
                ):
                    raise PluginError(
                        f"plugin {name}: there is no hook '{attribute}'. {suggest(attribute, known)}"
                    )
            cards = tuple(module.fusionkit_components()) if hasattr(module, "fusionkit_components") else ()
            for card in cards:
                if not isinstance(card, tuple(COMPONENT_KINDS.values())):
                    raise PluginError(
                        f"plugin {name}: fusionkit_components returned {card!r}. Return cards (specs)."
                    )
                _check_learns(name, card)
        except BaseException:
            self.manager.unregister(name=name)
            raise
        plugin = Plugin(name, getattr(module, "__name__", name), version, cards)
        self.plugins[name] = plugin
        for card in cards:
            self._cards.setdefault((kind_of(card), card.name), []).append((card, plugin))

    def _check_names(self, name: str, package: str) -> None:
        for other in self.plugins.values():
            if other.name == name:
                raise PluginError(f"plugin {name}: another plugin has this name. Uninstall one of them.")
            if other.package == package:
                raise PluginError(f"plugin {name}: {other.name} has its import name ({package}). Rename one.")

    def names(self, kind: str) -> list[str]:
        """Returns the known names of a kind: source, encoder, raiser or head."""
        return sorted(name for card_kind, name in self._cards if card_kind == kind)

    def find(self, kind: str, name: str) -> tuple[Spec, Plugin]:
        """Returns a card and its plugin; raises PluginError for an unknown name and for one claimed twice."""
        claims = self._cards.get((kind, name), [])
        if not claims:
            known = suggest(name, self.names(kind))
            raise PluginError(f"unknown {kind} '{name}'. {known}{self.broken_note()}")
        if len(claims) > 1:
            owners = " and ".join(plugin.name for _, plugin in claims)
            raise PluginError(f"{kind} '{name}' is claimed by {owners}. Uninstall one of them.")
        return claims[0]

    def card(self, card_type: type[CardT], name: str) -> CardT:
        """Returns the card of a component, typed by its kind."""
        kind = next(kind for kind, other in COMPONENT_KINDS.items() if other is card_type)
        card = self.find(kind, name)[0]
        assert isinstance(card, card_type)
        return card

    def cards(self, kind: str) -> Iterable[tuple[Spec, Plugin]]:
        """Yields every card of a kind with its plugin, by name; a name claimed twice comes twice."""
        for name in self.names(kind):
            yield from self._cards[kind, name]

    def broken_note(self) -> str:
        """Returns what ends a message about an unknown name where plugins are broken."""
        if not self.broken:
            return ""
        return f" Broken plugins may offer it: {', '.join(self.broken)}. `fusionkit list` says why."

    def notify(self, name: str, data: Mapping[str, Any]) -> None:
        """Tells every observer; one that raises is reported and cannot stop the run."""
        for plugin in self.manager.get_plugins():
            observe = getattr(plugin, "fusionkit_event", None)
            if observe is None:
                continue
            try:
                observe(name=name, data=dict(data))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # SystemExit included
                print(
                    f"plugin {self.manager.get_name(plugin)}: fusionkit_event failed ({error}).",
                    file=sys.stderr,
                )


def _check_learns(plugin: str, card: object) -> None:
    if not isinstance(card, EncoderSpec | RaiserSpec | HeadSpec):
        return
    known = get_args(Learns)
    if card.learns not in known:
        raise PluginError(
            f"plugin {plugin}: {kind_of(card)} {card.name} cannot learn that way (learns: {card.learns}). "
            f"Known: {', '.join(known)}."
        )


def _import_named(name: str) -> ModuleType:
    """Imports what `-p` names: a file, a folder with an `__init__.py`, or an importable module."""
    path = Path(name)
    file = path / "__init__.py" if path.is_dir() else path
    if file.suffix != ".py":
        return importlib.import_module(name)
    module_name = path.stem
    loaded = sys.modules.get(module_name)
    if loaded is not None and loaded.__file__ and file.exists() and Path(loaded.__file__).samefile(file):
        return loaded  # a second copy of it would have classes of its own
    spec = importlib.util.spec_from_file_location(
        module_name, file, submodule_search_locations=[str(path)] if path.is_dir() else None
    )
    if spec is None or spec.loader is None or not file.exists():
        raise PluginError(f"-p {name}: there is no such plugin file.")
    if module_name in sys.stdlib_module_names or (loaded is not None and module_name not in _NAMED):
        raise PluginError(f"-p {name}: a module of that name is there already. Rename the file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]  # a half-made module must not look like a whole one
        raise
    _NAMED.add(module_name)
    return module


@cache
def code_version() -> str:
    """Returns what identifies fusionkit's own code, as plugins have it."""
    try:
        installed = importlib.metadata.distribution("fusionkit")
    except importlib.metadata.PackageNotFoundError:
        installed = None
    return _version(sys.modules["fusionkit"], installed)


def _version(module: ModuleType, distribution: Distribution | None) -> str:
    """Returns what identifies a plugin's code: its version, or a hash of its source where that can change."""
    if distribution is not None and not _is_editable(distribution):
        return distribution.version
    digest = hashlib.sha256()
    for file in sorted(_source_files(module)):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return "source-" + digest.hexdigest()[:16]


def _is_editable(distribution: Distribution) -> bool:
    text = distribution.read_text("direct_url.json")
    return bool(text and json.loads(text).get("dir_info", {}).get("editable"))


def _source_files(module: ModuleType) -> list[Path]:
    file = Path(module.__file__ or "")
    return sorted(file.parent.rglob("*.py")) if file.name == "__init__.py" else [file]
