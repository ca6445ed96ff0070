"""A first plugin: one raiser in one file. `fusionkit -p examples/first_plugin.py show fourier` shows it."""

from collections.abc import Sequence

from pydantic import Field

from fusionkit import ComponentConfig, Raiser, RaiserSpec, hookimpl


class FourierConfig(ComponentConfig):
    """Options of fourier."""

    waves: int = Field(290, ge=1)
    """How many random directions; each gives a cosine and a sine, so the result is twice as wide."""


def _build(config: FourierConfig, input_dim: int) -> Raiser:
    import torch  # here, so that `fusionkit list` stays quick
    from torch import Tensor, nn

    class Fourier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.input_dim, self.output_dim = input_dim, 2 * config.waves
            directions = torch.randn(input_dim, config.waves) / input_dim**0.5
            self.register_buffer("directions", directions)  # a buffer: nothing to learn

        def forward(self, features: Tensor) -> Tensor:
            angles = features @ self.get_buffer("directions")
            return torch.cat([angles.cos(), angles.sin()], 1)

    return Fourier()


@hookimpl
def fusionkit_components() -> Sequence[RaiserSpec]:
    """Returns the card."""
    return [
        RaiserSpec(
            name="fourier",
            summary="Random Fourier features: cosines and sines along random directions.",
            source="Rahimi and Recht 2007, Random features for large-scale kernel machines",
            config=FourierConfig,
            build=_build,
            examples=(FourierConfig(waves=4),),
        )
    ]
