"""A raiser: its card. What is heavy is imported inside a function.

Two places are to change, each marked by a comment: the options and the card here, and the module in
network.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from fusionkit import ComponentConfig, Raiser, RaiserSpec, hookimpl


class MyRaiserConfig(ComponentConfig):
    """Options of my_raiser."""

    # yours: what a recipe may set, each with a default, bounds, and where its number is from
    centres: int = Field(64, ge=1, le=10_000)
    """How many training rows become centres; as many features come out. Ours."""


def _build(config: MyRaiserConfig, input_dim: int) -> Raiser:
    from fusionkit_my_raiser.network import MyRaiser

    return MyRaiser(config, input_dim)


@hookimpl
def fusionkit_components() -> Sequence[RaiserSpec]:
    """Returns the card."""
    return [
        RaiserSpec(
            name="my_raiser",
            summary="How near a row is to each of some training rows.",  # yours
            source="ours",  # yours: the paper or page that it follows
            config=MyRaiserConfig,
            examples=(MyRaiserConfig(centres=8),),  # yours: small, so that the checks are quick
            build=_build,
            learns="closed_form",  # yours: or nothing, self_supervised, gradient (docs/plugins.md)
        )
    ]
