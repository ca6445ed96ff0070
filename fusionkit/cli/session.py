"""What one call of the command line shares between its commands."""

from __future__ import annotations

import os
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
        """Every plugin, broken ones included; raises UsageError where `-p` names a file that is not there."""
        from fusionkit.registry import Registry

        problems = [
            f"-p {name}: there is no such plugin file or folder. Give its path from here, or a module's name."
            for name in self.plugins
            if is_absent(name)
        ]
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


def is_absent(plugin: str) -> bool:
    """Says whether what `-p` named is a path, and nothing is there."""
    return (plugin.endswith(".py") or os.sep in plugin) and not Path(plugin).exists()
