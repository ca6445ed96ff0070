"""The hooks that a plugin may answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pluggy

from fusionkit.specs import Spec

GROUP = "fusionkit"
"""Name of the entry-point group and of the hook project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)
"""Marks a function of a plugin as its answer to the hook of that name."""


@hookspec
def fusionkit_components() -> Sequence[Spec]:  # type: ignore[empty-body]
    """Returns the cards of every component that the plugin offers. Called once; must not import torch."""


@hookspec
def fusionkit_event(name: str, data: Mapping[str, Any]) -> None:
    """Observes a run, never changes it.

    Such as stage_started, stage_continued, epoch_finished, stage_finished and run_finished.
    """
