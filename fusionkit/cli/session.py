"""What one call of the command line shares between its commands."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fusionkit.errors import PluginError

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
        """Every plugin, broken ones included."""
        from fusionkit.registry import Registry

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
