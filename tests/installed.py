"""Plugins as pip would have installed them: a module, and a dist-info folder with its entry point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

CARD = """\
from fusionkit import HeadSpec, hookimpl


def build(config, input_dims, output_dim):
    import torch, numpy, polars
    return torch.nn.Identity()


@hookimpl
def fusionkit_components():
    return [HeadSpec(name={name!r}, summary="A toy.", source="ours", build=build)]
"""


def install(
    site: Path,
    name: str,
    code: str = CARD,
    *,
    requires: Sequence[str] = (),
    value: str | None = None,
    entry_points: str | None = None,
) -> None:
    """Installs a plugin of a name into a folder; `{name!r}` in its code is its name."""
    site.mkdir(exist_ok=True)
    (site / f"{name}.py").write_text(code.replace("{name!r}", repr(name)))
    info = site / f"{name}-1.2.3.dist-info"
    info.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.2.3"]
    lines += [f"Requires-Dist: {text}" for text in requires]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    text = entry_points or f"[fusionkit]\n{name} = {value or name}\n"
    (info / "entry_points.txt").write_text(text)
