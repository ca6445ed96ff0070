"""Sources of Yan et al. 2021: the released PathoEMR data, and a simulated cohort in its likeness."""

from __future__ import annotations

from collections.abc import Sequence

from fusionkit import Source, SourceSpec, hookimpl
from fusionkit_pathoemr.options import PathoemrOptions, SampleOptions


def _build_released(config: PathoemrOptions) -> Source:
    from fusionkit_pathoemr.released import ReleasedSource

    return ReleasedSource(config)


def _build_sample(config: SampleOptions) -> Source:
    from fusionkit_pathoemr.sample import SampleSource

    return SampleSource(config)


@hookimpl
def fusionkit_components() -> Sequence[SourceSpec]:
    """Returns the cards of both sources."""
    return (
        SourceSpec(
            name="pathoemr",
            summary="The released PathoEMR data: a folder of images, a CSV of records, an index CSV.",
            source="Yan et al. 2021, doi:10.1186/s12911-020-01340-6",
            config=PathoemrOptions,
            examples=(PathoemrOptions(),),
            build=_build_released,
        ),
        SourceSpec(
            name="pathoemr_sample",
            summary="A simulated cohort in the likeness of PathoEMR, made on the spot; no patient data.",
            source="ours, docs/simulated-cohort.md; fields and counts after Yan et al. 2021",
            config=SampleOptions,
            examples=(SampleOptions(patients=6, images_per_patient=1, width=32, height=24),),
            build=_build_sample,
        ),
    )
