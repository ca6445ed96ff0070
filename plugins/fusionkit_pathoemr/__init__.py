"""Sources: the released PathoEMR data, a simulated cohort in its likeness, and cohorts of other diseases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fusionkit import Source, SourceSpec, hookimpl
from fusionkit_pathoemr.options import PathoemrOptions, SampleOptions
from fusionkit_pathoemr.schema import FIELDS
from fusionkit_pathoemr.simulated_options import SimulatedOptions


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


def _build_simulated(config: SimulatedOptions) -> Source:
    from fusionkit_pathoemr.simulated import SimulatedSource

    return SimulatedSource(config)


_SMALL_RECORD = {
    "age": {"kind": "numeric", "shows": "risk", "slope": 0.3, "mean": 40, "deviation": 12, "range": [15, 95]},
    "grade": {"kind": "ordinal", "shows": "risk", "slope": 1, "values": ["a", "b"], "shares": [0.7, 0.3]},
}
_SMALL = (
    {
        "subjects": 6,
        "samples_per_subject": [1, 2],
        "weights": {"lesion": 2, "risk": 1},
        "classes": {"low": 0.5, "middle": 0.3, "high": 0.2},
        "record": _SMALL_RECORD,
        "image": {"shows": "lesion", "width": 24, "height": 24},
    },
    {
        "subjects": 6,
        "weights": {"genes": 1, "risk": 1},
        "survival": {},
        "record": _SMALL_RECORD,
        "vectors": {"shows": "genes", "width": 12, "signal": 3},
    },
)


@hookimpl
def fusionkit_components() -> Sequence[SourceSpec]:
    """Returns the cards of the sources."""
    return (
        SourceSpec(
            name="pathoemr",
            summary="The released PathoEMR data: a folder of images, a CSV of records, an index CSV.",
            source="Yan et al. 2021, doi:10.1186/s12911-020-01340-6",
            config=PathoemrOptions,
            examples=(PathoemrOptions(),),
            build=_build_released,
            example_files=_write_released,
        ),
        SourceSpec(
            name="pathoemr_sample",
            summary="A simulated cohort in the likeness of PathoEMR, made on the spot; no patient data.",
            source="ours, docs/simulated-cohort.md; fields and counts after Yan et al. 2021",
            config=SampleOptions,
            examples=(SampleOptions(patients=6, images_per_patient=1, width=32, height=24),),
            build=_build_sample,
        ),
        SourceSpec(
            name="simulated_cohort",
            summary="A simulated cohort of any disease, made on the spot from latents; no patient data.",
            source="ours, docs/simulated-cohort.md",
            config=SimulatedOptions,
            examples=tuple(SimulatedOptions.model_validate(options) for options in _SMALL),
            build=_build_simulated,
        ),
    )
