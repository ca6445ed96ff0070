"""A head: its card. What is heavy is imported inside a function.

Two places are to change, each marked by a comment: the options and the card here, and the module in
network.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from fusionkit import ComponentConfig, Head, HeadSpec, hookimpl


class MyHeadConfig(ComponentConfig):
    """Options of my_head."""

    # yours: what a recipe may set, each with a default, bounds, and where its number is from
    width: int = Field(64, ge=1, le=10_000)
    """Width that every modality is brought to; ours."""


def _build(config: MyHeadConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_my_head.network import MyHead

    return MyHead(config, input_dims, output_dim)


@hookimpl
def fusionkit_components() -> Sequence[HeadSpec]:
    """Returns the card."""
    return [
        HeadSpec(
            name="my_head",
            summary="Brings all modalities to one width and averages those that are present.",  # yours
            source="ours",  # yours: the paper or page that it follows
            config=MyHeadConfig,
            examples=(MyHeadConfig(width=8),),  # yours: small, so that the checks are quick
            build=_build,
            # yours, perhaps: takes_tokens=lambda config: True (docs/plugins.md, Tokens)
        )
    ]
