"""The options of both sources."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import Field, field_validator

from fusionkit import ComponentConfig, DataFile
from fusionkit_pathoemr.schema import CLASSES, FIELDS


class PathoemrOptions(ComponentConfig):
    """Where the released files lie and what their columns are called; the paper does not say it."""

    images: DataFile = "pathoemr/images"
    """Folder that the index's image paths resolve under."""
    records: DataFile = "pathoemr/records.csv"
    """CSV with one row per patient: the 29 fields and the diagnosis."""
    index: DataFile = "pathoemr/index.csv"
    """CSV with one row per image: its path, its patient, its label."""
    image_column: str = "image"
    """Index column with the image's path."""
    index_patient_column: str = "patient_id"
    """Index column with the patient."""
    label_column: str = "label"
    """Index column with the image's label; it may differ from the patient's diagnosis."""
    magnification_column: str | None = None
    """Index column with the magnification; null if there is none. It is kept as `magnification`."""
    record_patient_column: str = "patient_id"
    """Record column with the patient."""
    diagnosis_column: str = "diagnosis"
    """Record column with the patient's diagnosis."""
    fields: Mapping[str, str] = Field(default_factory=dict)
    """Record columns of fields whose column has another name: field -> column."""
    class_texts: Mapping[str, str] = Field(
        default_factory=lambda: {
            "benign": "benign",
            "malignant": "malignant",
            "0": "benign",
            "1": "malignant",
        }
    )
    """Texts of labels and diagnoses -> benign or malignant."""
    encoding: str = "utf-8"
    """Encoding of both CSV files, such as utf-8 or gb18030."""
    expect_released_counts: bool = False
    """Whether to refuse data that have not the published counts of patients and images."""

    @field_validator("class_texts")
    @classmethod
    def _check_classes(cls, texts: Mapping[str, str]) -> Mapping[str, str]:
        wrong = sorted(set(texts.values()) - set(CLASSES))
        if wrong:
            raise ValueError(f"`class_texts` maps to {wrong[0]}, and a class is benign or malignant")
        return texts

    @field_validator("fields")
    @classmethod
    def _check_fields(cls, fields: Mapping[str, str]) -> Mapping[str, str]:
        wrong = sorted(set(fields) - set(FIELDS))
        if wrong:
            raise ValueError(f"`fields` names {wrong[0]}, which is none of the 29 fields")
        return fields


class SampleOptions(ComponentConfig):
    """How large the simulated cohort is; the paper's shape, with small images, by default."""

    patients: int = Field(185, ge=1, le=100_000)
    """How many patients with `split` = train; 103 of 185 are malignant, and about that share at any count."""
    fresh_patients: int = Field(0, ge=0, le=100_000)
    """How many further patients with `split` = test, for a test set as large as you like."""
    images_per_patient: int | tuple[int, int] = (4, 8)
    """How many images each patient has: a count, or [least, most]."""
    width: int = Field(128, ge=16, le=2048)
    """Width of an image in pixels (the paper's: 2048)."""
    height: int = Field(96, ge=12, le=1536)
    """Height of an image in pixels (the paper's: 1536)."""
    missing: float = Field(0.0, ge=0, lt=1)
    """Share of record cells blanked at random."""
    seed: int = Field(0, ge=0, le=2**53 - 1)
    """Every patient derives from it, each by itself: more patients change none of those that are there."""

    @field_validator("images_per_patient")
    @classmethod
    def _check_counts(cls, counts: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = (counts, counts) if isinstance(counts, int) else counts
        if not 1 <= least <= most <= 99:
            raise ValueError("`images_per_patient` is a count from 1 to 99, or [least, most] of such")
        return counts
