"""A source of skin lesions and a head: their cards. What is heavy is imported inside a function."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import Field

from fusionkit import ComponentConfig, DataFile, Head, HeadSpec, Source, SourceSpec, hookimpl

SITES = (
    "abdomen",
    "acral",
    "back",
    "chest",
    "ear",
    "face",
    "foot",
    "genital",
    "hand",
    "lower extremity",
    "neck",
    "scalp",
    "trunk",
    "upper extremity",
)
"""HAM10000's places, but `unknown`; the audit refuses others, row by row."""
CLASSES = {"nevus": "nv", "keratosis": "bkl", "melanoma": "mel"}
"""Class -> HAM10000's code; rows with another code are left out, and counted."""


class SkinConfig(ComponentConfig):
    """Options of skin_lesions."""

    folder: DataFile = "ham10000"
    """Folder with HAM10000's metadata.csv, and <image_id>.jpg or .png for each of its rows."""
    simulated: bool = False
    """Whether these are no patients' lesions; then every report says so."""


class ExpertsConfig(ComponentConfig):
    """Options of product_of_experts."""

    hidden: int = Field(0, ge=0, le=10_000)
    """Width of each expert's hidden layer; 0 for none. Ours."""


def _build_source(config: SkinConfig) -> Source:
    from fusionkit_skin.lesions import SkinLesions

    return SkinLesions(config)


def _build_head(config: ExpertsConfig, input_dims: Mapping[str, int], output_dim: int) -> Head:
    from fusionkit_skin.experts import ProductOfExperts

    return ProductOfExperts(config, input_dims, output_dim)


def write_example_files(config: SkinConfig, data_root: Path, n_lesions: int = 12) -> None:
    """Writes SIMULATED lesions as the source reads them: discs whose size and colour follow the class."""
    import numpy as np
    from PIL import Image

    folder, rng, rows = data_root / config.folder, np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    y, x = np.mgrid[:32, :32]
    for number in range(n_lesions):
        kind = number % len(CLASSES)
        is_disc = (x - 16) ** 2 + (y - 16) ** 2 < (5 + 2 * kind + rng.integers(4)) ** 2
        darkness = np.array([20, 40 + 15 * kind, 60 + 20 * kind]) * is_disc[:, :, None]
        pixels = np.array([230, 180, 160]) - darkness + rng.normal(0, 25, (32, 32, 3))
        name, sex = f"simulated_{number}", ("female", "male", "unknown")[number % 5 % 3]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
        age = str(30 + 10 * kind + int(rng.integers(0, 30))) if number % 7 else ""
        rows.append(
            [f"lesion_{number}", name, [*CLASSES.values()][kind], age, sex, SITES[number % len(SITES)]]
        )
    with open(folder / "metadata.csv", "w", encoding="utf-8", newline="") as file:
        header = ["lesion_id", "image_id", "dx", "age", "sex", "localization"]
        csv.writer(file).writerows([header, *rows])


@hookimpl
def fusionkit_components() -> Sequence[SourceSpec | HeadSpec]:
    """Returns the cards."""
    return [
        SourceSpec(
            name="skin_lesions",
            summary="Dermatoscopic images with age, sex and place: nevus, keratosis or melanoma.",
            source="Tschandl, Rosendahl and Kittler 2018, The HAM10000 dataset, doi:10.1038/sdata.2018.161",
            config=SkinConfig,
            examples=(SkinConfig(simulated=True),),
            build=_build_source,
            example_files=write_example_files,
        ),
        HeadSpec(
            name="product_of_experts",
            summary="A classifier per modality; probabilities are multiplied, who is absent has no say.",
            source="Hinton 2002, Training products of experts by minimizing contrastive divergence",
            config=ExpertsConfig,
            examples=(ExpertsConfig(), ExpertsConfig(hidden=8)),
            build=_build_head,
        ),
    ]
