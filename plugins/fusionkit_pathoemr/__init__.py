"""Sources of Yan et al. 2021: the released PathoEMR data, and a simulated cohort in its likeness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionkit import Source, SourceSpec, hookimpl
from fusionkit_pathoemr.options import PathoemrOptions, SampleOptions
from fusionkit_pathoemr.schema import FIELDS


def _build_released(config: PathoemrOptions) -> Source:
    from fusionkit_pathoemr.released import ReleasedSource

    return ReleasedSource(config)


def _write_released(config: PathoemrOptions, data_root: Path) -> None:
    """Writes four patients in the layout of the released data, for the conformance kit."""
    index = [f"{config.image_column},{config.index_patient_column},{config.label_column}"]
    index += [f"p{row}/a.png,p{row},{row % 2}" for row in range(4)]
    records = [",".join([config.record_patient_column, *FIELDS, config.diagnosis_column])]
    records += [",".join([f"p{row}", *["1"] * len(FIELDS), str(row % 2)]) for row in range(4)]
    for name, lines in ((config.index, index), (config.records, records)):
        (data_root / name).parent.mkdir(exist_ok=True)
        (data_root / name).write_text("\n".join(lines) + "\n", encoding=config.encoding)


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
            samples=_write_released,
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
