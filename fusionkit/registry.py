"""Turns names into components, and nothing else can: discovery, look-up, clashes, broken plugins."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import json
import re
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar, get_args

import pluggy

from fusionkit import __version__, hookspecs
from fusionkit.errors import PluginError, one_line, suggest, tidy
from fusionkit.specs import (
    COMPONENT_KINDS,
    ComponentConfig,
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
SLOW = 0.3
"""Seconds to load beyond which a plugin is named as slow; ours, of the half second that `list` may take."""
FORGOTTEN = "If your own plugin offers it, name that before the command: `fusionkit -p PLUGIN ...`."
"""What an unknown name without a near one most likely is, where no plugin was named."""


@dataclass(frozen=True)
class Plugin:
    """One loaded plugin.

    Args:
        name: The entry point's name, or what `-p` was given.
        package: Import name of its package.
        version: What addresses hash: the distribution's version, or a hash of source that can change.
        cards: What it offers.
        file: The file of its module.
        distribution: What installed it, such as `fusionkit-ecg 0.1.0`; empty where `-p` named it.
    """

    name: str
    package: str
    version: str
    cards: tuple[Spec, ...]
    file: str = ""
    distribution: str = ""


@dataclass
class Registry:
    """Every component that the installed plugins offer.

    Args:
        plugins: The plugins that loaded, by name.
        broken: The plugins that did not, by name, with the reason.
        named: What `-p` named.
        replaced: The installed plugins that others, named by `-p`, stand in for; by name, with `-p`'s word.
        seconds: How long each plugin took to load, broken ones included, by name.
    """

    plugins: dict[str, Plugin] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    replaced: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
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
        for name in dict.fromkeys(extra):
            registry._load(name, None)
        named = {plugin.package: plugin.name for plugin in registry.plugins.values()}
        for entry in registry._find_installed():
            if entry.value.strip() in named:
                registry.replaced[entry.name] = named[entry.value.strip()]
            else:
                registry._load(entry.name, entry)
        return registry

    def _find_installed(self) -> list[EntryPoint]:
        """Returns every entry point of the group, by name; what cannot be read of one stops no other."""
        try:
            found = list(entry_points(group=hookspecs.GROUP))
        except Exception:  # some distribution's metadata are broken: which one, is seen one by one
            found, seen = [], set()
            for distribution in distributions():
                name = "a distribution"
                try:
                    name = distribution.name
                    if name not in seen:  # the first one on the path is the one that is imported
                        found += distribution.entry_points.select(group=hookspecs.GROUP)
                    seen.add(name)
                except Exception as error:
                    self.broken[name] = f"its entry points cannot be read ({one_line(error)})"
        return sorted(found, key=lambda entry: entry.name)

    def _load(self, name: str, entry: EntryPoint | None) -> None:
        started = time.perf_counter()
        try:
            # what a plugin prints while it loads must not get between the lines of a command's own output
            with contextlib.redirect_stdout(sys.stderr):
                self._load_plugin(name, entry)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may raise anything, SystemExit included
            reason = str(error).removeprefix(f"plugin {name}: ")
            said = f"{type(error).__name__}: {error}"
            self.broken[name] = tidy(reason if isinstance(error, PluginError) else said)
        self.seconds[name] = time.perf_counter() - started

    def _load_plugin(self, name: str, entry: EntryPoint | None) -> None:
        distribution = entry.dist if entry else None
        if distribution is not None:
            _check_requirement(distribution)
        value = entry.value.strip() if entry else ""
        if entry and not re.fullmatch(r"\w+(\.\w+)*", value):
            raise PluginError(f"its entry point names no module ({value}). Give a module's name alone.")
        module = importlib.import_module(value) if entry else _import_named(name)
        if getattr(module, "__file__", None) is None:
            raise PluginError(f"plugin {name}: a folder without __init__.py is no plugin.")
        label = f"{distribution.name} {distribution.version}" if distribution is not None else ""
        self.add(name, module, _version(module, distribution), label)

    def add(self, name: str, module: Any, version: str = "0", distribution: str = "") -> None:
        """Registers one plugin module; raises PluginError, and keeps nothing, if it breaks the contract."""
        package = getattr(module, "__name__", name)
        self._check_names(name, package)
        try:
            self.manager.register(module, name=name)
            _check_hooks(name, module)
            cards = tuple(module.fusionkit_components()) if hasattr(module, "fusionkit_components") else ()
            for card in cards:
                _check_card(name, card)
            _check_offers_once(name, cards)
        except BaseException:
            # pluggy keeps a module whose hooks it refuses
            self.manager.unregister(name=name)
            raise
        file = getattr(module, "__file__", None) or ""
        plugin = Plugin(name, package, version, cards, file, distribution)
        self.plugins[name] = plugin
        for card in cards:
            self._cards.setdefault((kind_of(card), card.name), []).append((card, plugin))

    def _check_names(self, name: str, package: str) -> None:
        for other in self.plugins.values():
            if other.name == name:
                raise PluginError(f"plugin {name}: another plugin has this name. Uninstall one of them.")
            if other.package == package:
                raise PluginError(f"plugin {name}: {other.name} has its import name ({package}). Rename one.")

    @property
    def slow(self) -> dict[str, float]:
        """The plugins of others that took longer than `SLOW` seconds to load, by name."""
        # of the bundled ones a test says what they import: what is slow there is the disk, at the first start
        bundled = {p.name for p in self.plugins.values() if p.distribution.startswith("fusionkit ")}
        slow = {name: seconds for name, seconds in self.seconds.items() if seconds > SLOW}
        return {name: seconds for name, seconds in slow.items() if name not in bundled}

    @property
    def clashes(self) -> list[tuple[str, str, tuple[str, ...]]]:
        """Every component that several plugins claim: kind, name, the plugins' names."""
        return [
            (kind, name, tuple(plugin.name for _, plugin in claims))
            for (kind, name), claims in sorted(self._cards.items())
            if len(claims) > 1
        ]

    def names(self, kind: str) -> list[str]:
        """Returns the known names of a kind: source, encoder, raiser or head."""
        return sorted(name for card_kind, name in self._cards if card_kind == kind)

    def find(self, kind: str, name: str) -> tuple[Spec, Plugin]:
        """Returns a card and its plugin; raises PluginError for an unknown name and for one claimed twice."""
        claims = self._cards.get((kind, name), [])
        if not claims:
            raise PluginError(f"unknown {kind} '{name}'. {self.hint(name, [kind])}")
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

    def hint(self, name: str, kinds: Iterable[str] = COMPONENT_KINDS) -> str:
        """Returns what is said of an unknown name: the nearest known one, and who else may offer it."""
        known = suggest(name, [other for kind in kinds for other in self.names(kind)])
        if self.broken:
            broken = ", ".join(self.broken)
            return f"{known} Broken plugins may offer it: {broken}. `fusionkit list` says why."
        is_of_another_kind = any(name == other for _, other in self._cards)
        if self.named or is_of_another_kind or known.startswith("Did you mean"):
            return known
        return f"{known} {FORGOTTEN}"

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


def _check_hooks(plugin: str, module: Any) -> None:
    """Raises PluginError for a misspelt hook, which would otherwise be silently ignored, and for no hook."""
    known = {hook for hook in vars(hookspecs) if hook.startswith("fusionkit_")}
    hooks = [
        name for name, value in vars(module).items() if name.startswith("fusionkit_") and callable(value)
    ]
    for hook in hooks:
        if hook not in known:
            raise PluginError(f"plugin {plugin}: there is no hook '{hook}'. {suggest(hook, known)}")
    if not hooks:
        raise PluginError(f"plugin {plugin}: it answers no hook. Known: {', '.join(sorted(known))}.")


def _check_card(plugin: str, card: object) -> None:
    """Raises PluginError for what would stop a command that only looks at cards."""
    if not isinstance(card, tuple(COMPONENT_KINDS.values())):
        raise PluginError(f"plugin {plugin}: fusionkit_components returned {card!r}. Return cards (specs).")
    assert isinstance(card, Spec)
    for name in ("name", "summary", "source"):
        text = getattr(card, name)
        if not isinstance(text, str):
            raise PluginError(
                f"plugin {plugin}: the `{name}` of a {kind_of(card)}'s card is no text ({text!r})."
            )
    if not (isinstance(card.config, type) and issubclass(card.config, ComponentConfig)):
        raise PluginError(
            f"plugin {plugin}: the `config` of {kind_of(card)} {card.name} is no ComponentConfig "
            f"({card.config!r})."
        )
    known = get_args(Learns)
    if isinstance(card, EncoderSpec | RaiserSpec | HeadSpec) and card.learns not in known:
        raise PluginError(
            f"plugin {plugin}: {kind_of(card)} {card.name} cannot learn that way (learns: {card.learns}). "
            f"Known: {', '.join(known)}."
        )


def _check_offers_once(plugin: str, cards: Sequence[Spec]) -> None:
    seen: set[tuple[str, str]] = set()
    for card in cards:
        component = kind_of(card), card.name
        if component in seen:
            raise PluginError(f"plugin {plugin}: offers {' '.join(component)} twice. Rename one.")
        seen.add(component)


def _check_requirement(distribution: Distribution) -> None:
    """Raises PluginError where a plugin's own metadata ask for another fusionkit than this one.

    pip looks at them once, when it installs the plugin; fusionkit may have changed since.
    """
    for text in distribution.requires or ():
        if not re.match(r"fusionkit\b(?!-)", text, re.IGNORECASE):
            continue
        from packaging.requirements import Requirement  # only here: most plugins set no bound

        requirement = Requirement(text)
        is_due = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if is_due and not requirement.specifier.contains(__version__, prereleases=True):
            raise PluginError(
                f"{distribution.name} {distribution.version} asks for fusionkit{requirement.specifier}, "
                f"and {__version__} is here. Install a version of it that goes with this one."
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
