"""The source `pathoemr_sample`: a simulated cohort, made on the spot; no patient data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from fusionkit import ColumnSpec, SourceContext
from fusionkit_pathoemr.options import SampleOptions
from fusionkit_pathoemr.schema import CLASSES, COLUMNS, FIELDS, IMAGE

if TYPE_CHECKING:
    import numpy as np

    from fusionkit import Manifest
    from fusionkit_pathoemr.design import Design, Truth

MALIGNANT, PATIENTS = 103, 185
"""Published counts: this many of this many patients are malignant."""
JITTER = 0.25
"""Standard deviation of one image's latent around its patient's; ours."""


class SampleSource:
    """A simulated cohort in the likeness of PathoEMR."""

    schema: Mapping[str, ColumnSpec] = COLUMNS
    classes: tuple[str, ...] = CLASSES
    simulated = True

    def __init__(self, options: SampleOptions) -> None:
        self.options = options

    def read(self, context: SourceContext) -> Manifest:
        """Draws the cohort, and those of its images that are not in the cache yet."""
        from fusionkit_pathoemr.design import make_manifest

        return make_manifest(design_of(self.options), self.schema, context)


def design_of(options: SampleOptions) -> Design:
    """Returns the cohort as an instance of the simulator: its truth, its 29 fields, its tissue."""
    from fusionkit_pathoemr.cohort import FIELD_MODELS
    from fusionkit_pathoemr.design import Design, Shown
    from fusionkit_pathoemr.fields import Field
    from fusionkit_pathoemr.tissue import TissueStyle

    per_patient = options.images_per_patient
    return Design(
        source="pathoemr_sample",
        seed=options.seed,
        counts=(options.patients, options.fresh_patients),
        per_subject=(per_patient, per_patient) if isinstance(per_patient, int) else per_patient,
        classes=CLASSES,
        truth=draw_truth,
        fields={
            name: Field("record", FIELD_MODELS[name], spec.values, options.missing)
            for name, spec in FIELDS.items()
        },
        shown={IMAGE: Shown("image", JITTER, TissueStyle(options.width, options.height))},
    )


def draw_truth(index: int, generator: np.random.Generator) -> Truth:
    """Draws a patient: first the diagnosis, then what image and record have of it."""
    import numpy as np

    from fusionkit_pathoemr.cohort import draw_latents
    from fusionkit_pathoemr.design import Truth

    # it depends on the index alone, so that the share is right at every count and no patient changes
    malignant = MALIGNANT * (index + 1) // PATIENTS > MALIGNANT * index // PATIENTS
    _, image, record = draw_latents(np.array([malignant]), generator)
    return Truth(CLASSES[malignant], {"image": float(image[0]), "record": float(record[0])})
