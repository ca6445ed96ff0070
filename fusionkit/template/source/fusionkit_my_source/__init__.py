"""A source that reads one JSON file per patient: its card. What is heavy is imported inside.

Two places are to change, each marked by a comment: the options, the example files and the card here, and how
rows are read in rows.py.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from fusionkit import ComponentConfig, DataFile, Source, SourceSpec, hookimpl


class MySourceConfig(ComponentConfig):
    """Options of my_source."""

    # yours: where the data lie; a DataFile resolves under the data root
    folder: DataFile = "patients"
    """Folder with one JSON file per patient, and the images that these name."""


def _build(config: MySourceConfig) -> Source:
    from fusionkit_my_source.rows import MySource

    return MySource(config)


def write_example_files(config: MySourceConfig, data_root: Path, n_patients: int = 8) -> None:
    """Writes simulated patients as the source reads them, for `fusionkit check` and for recipe.yaml."""
    import numpy as np
    from PIL import Image

    # yours: files like your own
    folder, rng = data_root / config.folder, np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(n_patients):
        is_ill = number % 2
        pixels = rng.integers(0, 200, (16, 16, 3)) + 20 * is_ill
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{number}.png")
        age = 40 + number + 12 * is_ill
        visit = {"image": f"{number}.png", "age": age, "smoker": ("no", "yes")[number // 2 % 2]}
        patient = {"patient": f"p{number}", "diagnosis": ("healthy", "ill")[is_ill], "visits": [visit]}
        (folder / f"{number}.json").write_text(json.dumps(patient), encoding="utf-8")


@hookimpl
def fusionkit_components() -> Sequence[SourceSpec]:
    """Returns the card."""
    return [
        SourceSpec(
            name="my_source",
            summary="One JSON file per patient, with visits and their images.",  # yours
            source="ours",  # yours: the page that the data come from
            config=MySourceConfig,
            examples=(MySourceConfig(),),
            build=_build,
            example_files=write_example_files,
        )
    ]
