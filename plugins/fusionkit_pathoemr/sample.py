"""The source `pathoemr_sample`: a simulated cohort, made on the spot; no patient data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fusionkit import ColumnSpec, SourceContext
from fusionkit_pathoemr.options import SampleOptions
from fusionkit_pathoemr.schema import CLASSES, COLUMNS, FIELDS, IMAGE

if TYPE_CHECKING:
    from fusionkit import Manifest

MALIGNANT, PATIENTS = 103, 185
"""Published counts: this many of this many patients are malignant."""
JITTER = 0.25
"""Standard deviation of one image's latent around its patient's; ours."""
GROUPS = {"S": "train", "F": "test"}
"""First letter of a patient's name -> its split."""


@dataclass(frozen=True)
class SimulatedImage:
    """What is needed to draw one image, and nothing else: it can be sent to another process."""

    name: str
    key: tuple[int, ...]
    latent: float
    zoom: int


@dataclass(frozen=True)
class SimulatedPatient:
    """One simulated patient.

    Args:
        name: S0001 in the cohort itself, F0001 among the fresh ones.
        malignant: The diagnosis.
        latents: The image's and the record's.
        clarity: Which modality tells the diagnosis: both, image, record or neither.
        codes: The 29 fields; -1 where blanked.
        images: What its images show.
    """

    name: str
    malignant: bool
    latents: tuple[float, float]
    clarity: str
    codes: tuple[int, ...]
    images: tuple[SimulatedImage, ...]


class SampleSource:
    """A simulated cohort in the likeness of PathoEMR."""

    schema: Mapping[str, ColumnSpec] = COLUMNS
    classes: tuple[str, ...] = CLASSES
    simulated = True

    def __init__(self, options: SampleOptions) -> None:
        self.options = options

    def read(self, context: SourceContext) -> Manifest:
        """Draws the cohort, and those of its images that are not in the cache yet."""
        import polars as pl

        from fusionkit import Manifest
        from fusionkit_pathoemr.files import store_images

        cohort = draw_cohort(self.options)
        images = [image for patient in cohort for image in patient.images]
        size = (self.options.width, self.options.height)
        folder = store_images(images, self.options.seed, size, context.cache, context.workers)
        rows = [(patient, image) for patient in cohort for image in patient.images]
        outcomes = [CLASSES[patient.malignant] for patient, _ in rows]
        return Manifest(
            samples=[f"simulated_{image.name}" for _, image in rows],
            subjects=[patient.name for patient, _ in rows],
            outcomes=outcomes,
            cells=pl.DataFrame(
                _cells(rows), schema=dict.fromkeys([*COLUMNS, "magnification", "split"], pl.String)
            ),
            schema=self.schema,
            classes=CLASSES,
            root=folder,
            is_simulated=True,
            subject_outcomes=outcomes,
        )


def draw_cohort(options: SampleOptions) -> list[SimulatedPatient]:
    """Draws every patient of the cohort, and then the fresh ones, without drawing an image."""
    counts = zip(GROUPS, (options.patients, options.fresh_patients), strict=True)
    return [_patient(options, group, i) for group, count in counts for i in range(count)]


def _patient(options: SampleOptions, group: str, index: int) -> SimulatedPatient:
    import numpy as np

    from fusionkit_pathoemr import cohort

    key = (options.seed, list(GROUPS).index(group), index)
    # it depends on the index alone, so that the share is right at every count and no patient changes
    malignant = MALIGNANT * (index + 1) // PATIENTS > MALIGNANT * index // PATIENTS
    drawn = cohort.draw(np.array([malignant]), np.random.default_rng([*key, 0]))
    blanked = np.random.default_rng([*key, 1]).random(len(FIELDS)) < options.missing
    name = f"{group}{index + 1:04d}"
    latents = float(drawn.image[0]), float(drawn.record[0])
    return SimulatedPatient(
        name=name,
        malignant=malignant,
        latents=latents,
        clarity=list(cohort.CLARITY)[drawn.clarity[0]],
        codes=tuple(int(code) for code in np.where(blanked, -1, drawn.codes[0])),
        images=_images(options.images_per_patient, name, key, latents[0]),
    )


def _images(
    per_patient: int | tuple[int, int], name: str, key: tuple[int, ...], latent: float
) -> tuple[SimulatedImage, ...]:
    import numpy as np

    least, most = (per_patient, per_patient) if isinstance(per_patient, int) else per_patient
    count = int(np.random.default_rng([*key, 2]).integers(least, most + 1))
    images = []
    for i in range(count):
        generator = np.random.default_rng([*key, 3, i])
        shown = latent + JITTER * float(generator.standard_normal())
        images.append(SimulatedImage(f"{name}_{i + 1:02d}", (*key, i), shown, int(generator.integers(1, 3))))
    return tuple(images)


def _cells(rows: Sequence[tuple[SimulatedPatient, SimulatedImage]]) -> dict[str, list[str | None]]:
    cells: dict[str, list[str | None]] = {IMAGE: [f"simulated_{image.name}.png" for _, image in rows]}
    for j, field in enumerate(FIELDS):
        codes = [patient.codes[j] for patient, _ in rows]
        cells[field] = [str(code) if code >= 0 else None for code in codes]
    cells["magnification"] = [f"{image.zoom}00x" for _, image in rows]
    cells["split"] = [GROUPS[patient.name[0]] for patient, _ in rows]
    return cells
