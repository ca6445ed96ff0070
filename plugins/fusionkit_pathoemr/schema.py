"""The 29 structured fields of PathoEMR, in the order and with the integer codes of Yan et al. 2021."""

from __future__ import annotations

from fusionkit import ColumnSpec

CLASSES = ("benign", "malignant")
IMAGE = "image"
MISSING = ("", "NA")


def _ordinal(*meanings: str) -> ColumnSpec:
    return _coded("ordinal", meanings)


def _category(*meanings: str) -> ColumnSpec:
    return _coded("category", meanings)


def _binary(no: str = "no", yes: str = "yes") -> ColumnSpec:
    return _coded("binary", (no, yes))


def _coded(kind: str, meanings: tuple[str, ...]) -> ColumnSpec:
    return ColumnSpec.model_validate(
        {
            "kind": kind,
            "values": tuple(str(code) for code in range(len(meanings))),
            "missing": MISSING,
            "description": "; ".join(f"{code} {meaning}" for code, meaning in enumerate(meanings)),
        }
    )


FIELDS: dict[str, ColumnSpec] = {
    "age": _ordinal("under 20", "20-40", "over 40"),
    "gender": _binary("male", "female"),
    "disease_course_type": _category("not mentioned", "chronic", "acute", "hidden"),
    "personal_tumor_history": _binary(),
    "family_tumor_history": _binary(),
    "prophase_treatment": _binary(),
    "neoadjuvant_chemotherapy": _binary(),
    "pectoral_muscle_adhesion": _binary(),
    "dimple_sign": _binary(),
    "orange_peel_appearance": _binary(),
    "redness_swelling_of_skin": _binary(),
    "skin_ulcers": _binary(),
    "skin_adhesion": _binary(),
    "tumor": _binary(),
    "breast_deformation": _binary(),
    "nipple_discharge": _binary(),
    "smooth_surface": _binary(),
    "nipple_change": _category("none", "erosion", "retraction"),
    "axillary_lymphadenectasis": _ordinal("none", "movable", "fused", "parasternal metastasis"),
    "swelling_of_lymph_nodes": _binary("no distant metastasis", "distant metastasis"),
    "tumor_position": _category("outer", "upper", "inner lower", "outer lower", "central"),
    "tumor_number": _ordinal("single unilateral", "multiple unilateral", "bilateral"),
    "tumor_size": _ordinal("under 20 mm", "20-50 mm", "over 50 mm"),
    "tumor_texture": _category("soft", "hard", "hard tough", "tough", "moderate"),
    "tumor_border": _ordinal("clear", "unclear", "invasive"),
    "tumor_morphology": _ordinal("regular", "moderate", "irregular"),
    "activity": _ordinal("good", "moderate", "bad"),
    "capsules": _ordinal("no envelope", "incomplete", "enveloped"),
    "tenderness": _category("no", "yes", "periodic"),
}
"""The record's fields; kinds are ours: ordinal where codes have an order, category where they have none."""

COLUMNS: dict[str, ColumnSpec] = {
    IMAGE: ColumnSpec(kind="file", missing=MISSING, description="histology image, H&E"),
    **FIELDS,
}
"""What both sources declare. Magnification and split stay outside: no record encoder shall read them."""
