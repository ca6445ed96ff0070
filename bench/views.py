"""All 76 views of a 2048 x 1536 image, beside one decode and 76 resizes written by hand for them."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from paired import interleave, ratio, summary
from PIL import Image
from study import photograph

from fusionkit.data.images import _patch_box
from fusionkit.interfaces import Cut
from fusionkit.specs import ColumnSpec, ImageOptions, ViewOptions

SIZE = (2048, 1536)
PATCHES = {224: 40, 512: 20, 1024: 10, 1536: 5}
"""Beside the whole image: 76 views."""


def time_views(path: Path, rounds: int) -> dict[str, Any]:
    from fusionkit.data.images import ImageInput

    options = ImageOptions(size=224, views=ViewOptions(patches=PATCHES))
    images = ImageInput(options, {"image": ColumnSpec(kind="file")})
    cuts = [Cut(view) for view in images.views(training=True)]
    assert len(cuts) == 76
    key = hashlib.sha256(path.read_bytes()).digest()
    boxes = [_patch_box(SIZE, key, cut.view) for cut in cuts if cut.view != "whole"]

    def product() -> None:
        images.load({"image": path}, cuts)

    def by_hand() -> None:
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        image.resize((224, 224), Image.Resampling.BILINEAR)
        for box in boxes:
            image.resize((224, 224), Image.Resampling.BILINEAR, box)

    def of_whole() -> None:
        image = Image.open(io.BytesIO(path.read_bytes())).convert("RGB")
        for _ in cuts:
            image.resize((224, 224), Image.Resampling.BILINEAR)

    seconds = interleave({"product": product, "by_hand": by_hand, "of_whole": of_whole}, rounds)
    return {
        "seconds": {name: summary(values) for name, values in seconds.items()},
        "of_by_hand": ratio(seconds["product"], seconds["by_hand"]),
        "of_76_whole_resizes": ratio(seconds["product"], seconds["of_whole"]),
    }


def main(rounds: int = 9) -> None:
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        image = photograph(np.random.default_rng(0), *SIZE)
        for suffix, options in (("jpg", {"quality": 90}), ("png", {})):
            path = Path(folder) / f"image.{suffix}"
            image.save(path, **options)
            results[suffix] = time_views(path, rounds)
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
