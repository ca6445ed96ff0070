"""What one call of the command line shares between its commands."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from fusionkit.errors import PluginError, UsageError

if TYPE_CHECKING:
    from fusionkit.registry import Registry


@dataclass(frozen=True)
class Session:
    """The options before the command.

    Args:
        plugins: What `-p` named.
    """

    plugins: tuple[str, ...] = ()

    @cached_property
    def all_plugins(self) -> Registry:
        """Every plugin, broken ones included; raises UsageError where `-p` names no file and no package."""
        from fusionkit.registry import Registry

        problems = [f"-p {name}: {said}" for name in self.plugins for said in _find_fault(name)]
        if problems:
            raise UsageError(problems)
        return Registry.discover(self.plugins)

    @property
    def registry(self) -> Registry:
        """Every component; raises PluginError if a plugin that `-p` asked for is broken."""
        registry = self.all_plugins
        broken = {name: registry.broken[name] for name in self.plugins if name in registry.broken}
        problems = [f"-p {name}: {reason.removeprefix(f'-p {name}: ')}" for name, reason in broken.items()]
        if problems:
            raise PluginError(problems)
        return registry


def _find_fault(plugin: str) -> Iterator[str]:
    """Yields what stands against the path that `-p` named; a module's name is looked at when it loads."""
    path = Path(plugin)
    if is_absent(plugin):
        yield "there is no such plugin file or folder. Give its path from here, or a module's name."
    elif path.is_dir() and not (path / "__init__.py").exists():
        packages = sorted(file.parent for file in path.glob("*/__init__.py"))
        known = (
            f"Name the package in it: {packages[0]}."
            if packages
            else "Name a package's folder or a .py file."
        )
        yield f"a folder without __init__.py. {known}"
    elif not path.exists() and path.with_name(f"{path.name}.py").exists() and not _is_module(plugin):
        yield f"there is no module of that name. Did you mean {plugin}.py?"


def _is_module(name: str) -> bool:
    """Says whether a module of that name could be imported; a parent package may be imported for it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def is_absent(plugin: str) -> bool:
    """Says whether what `-p` named is a path, and nothing is there."""
    return (plugin.endswith(".py") or os.sep in plugin) and not Path(plugin).exists()
