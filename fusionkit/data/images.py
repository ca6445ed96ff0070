"""Images: from a file's bytes to the uint8 tensors that an image encoder reads."""

from __future__ import annotations

import hashlib
import io
import math
import random
import re
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from fusionkit.data.digests import content_digest
from fusionkit.errors import DataError, RecipeError
from fusionkit.interfaces import Cells, Cut
from fusionkit.specs import AugmentOptions, ColumnSpec, ImageOptions

FORMATS = ("PNG", "JPEG", "TIFF", "WEBP", "BMP")
"""The only formats that are decoded, whatever the file is called."""

VERSION = 2
"""Part of every address: raised when the same file would give other pixels, views or places.

2: the mean that a change of contrast turns around no longer depends on the number of threads; the outermost
pixels of a shrunk patch take in what lies just outside it, since it is not cut out before it is shrunk.
"""

_PATCH = re.compile(r"patch([0-9]+)\.([0-9]+)")
_OPENING = threading.Lock()


class ImageInput:
    """Reads one image column: a file is decoded once and cut into all its views.

    An item is a uint8 tensor (3, size, size) in RGB, a batch (n, 3, size, size); encoders call `normalize`
    first, so that bytes, not floats, travel to the device.

    Args:
        options: Size, colour, views, augmentation.
        columns: The column that it reads, exactly one, of kind file.

    Raises:
        RecipeError: There is not exactly one column, or it holds no files.
    """

    def __init__(self, options: ImageOptions, columns: Mapping[str, ColumnSpec] | tuple[str, ...]) -> None:
        names = tuple(columns)
        if len(names) != 1:
            given = ", ".join(names) or "none"
            raise RecipeError(
                f"columns: an image is read from one column (given: {given}). Name one of kind file."
            )
        if isinstance(columns, Mapping) and columns[names[0]].kind != "file":
            kind = columns[names[0]].kind
            raise RecipeError(
                f"columns: {names[0]} holds no files (kind: {kind}). Name a column of kind file."
            )
        self.options = options
        self.columns: tuple[str, ...] = names
        self.draws = options.draws

    def identity(self) -> Mapping[str, Any]:
        """Returns all that changes pixels; views and draws are not in it, since each has its own address."""
        augment = self.options.augment
        drawn_by = {}
        if augment is not None:
            import torchvision

            drawn_by["torchvision"] = torchvision.__version__
        return {
            "input": "image",
            "version": VERSION,
            "size": self.options.size,
            "mean": list(self.options.mean),
            "std": list(self.options.std),
            "augment": augment.model_dump(mode="json") if augment else None,
            "pillow": PIL.__version__,
            **drawn_by,
        }

    def views(self, *, training: bool) -> tuple[str, ...]:
        """Returns `whole` and, for each patch, `patch<side>.<index>`."""
        views = self.options.views if training else self.options.eval_views
        patches = (f"patch{side}.{index}" for side, count in views.patches.items() for index in range(count))
        return (("whole",) if views.whole else ()) + tuple(patches)

    def is_random(self, *, training: bool) -> bool:
        """Whether views are augmented; a patch's place is not random, it follows from the image's content."""
        return training and self.options.augment is not None

    def content_key(self, cells: Cells) -> bytes | None:
        """Returns the sha256 of the file's bytes, or None where the cell is missing."""
        path = self._path(cells)
        if path is None:
            return None
        try:
            return content_digest(path)
        except OSError as error:
            raise _unreadable(path, error) from None

    def load(self, cells: Cells, cuts: Sequence[Cut]) -> list[Tensor]:
        """Decodes the file once and returns one uint8 tensor (3, size, size) per cut.

        Raises:
            DataError: The file is not there, too large, broken, or of a format that is not read.
        """
        path = self._path(cells)
        if path is None:
            raise DataError(
                f"column {self.columns[0]}: there is no image in this row. Read only rows that have one."
            )
        try:
            data = path.read_bytes()
        except OSError as error:
            raise _unreadable(path, error) from None
        image = _decode(data, path, self.options.max_pixels)
        views = dict.fromkeys(cut.view for cut in cuts)
        # only a patch's place follows from the content: a whole image is not hashed for it
        key = hashlib.sha256(data).digest() if views.keys() - {"whole"} else b""
        plain = {view: self._cut(image, key, view) for view in views}
        augment = self.options.augment
        if augment is None:
            return [plain[cut.view] for cut in cuts]
        return [
            plain[cut.view] if cut.seed is None else _augment(plain[cut.view], augment, cut.seed)
            for cut in cuts
        ]

    def collate(self, items: Sequence[Tensor]) -> Tensor:
        """Stacks items into (n, 3, size, size), uint8."""
        return torch.stack(list(items))

    def normalize(self, batch: Tensor) -> Tensor:
        """Returns the float32 batch that an encoder reads; a floating batch counts as normalised."""
        if batch.is_floating_point():
            return batch
        mean = torch.tensor(self.options.mean, device=batch.device).view(3, 1, 1)
        std = torch.tensor(self.options.std, device=batch.device).view(3, 1, 1)
        return (batch.float() / 255 - mean) / std

    def _path(self, cells: Cells) -> Path | None:
        cell = cells[self.columns[0]]
        return None if cell is None else Path(cell)

    def _cut(self, image: Image.Image, key: bytes, view: str) -> Tensor:
        box = (0, 0, *image.size) if view == "whole" else _patch_box(image.size, key, view)
        size = self.options.size
        if (box[2] - box[0], box[3] - box[1]) == (size, size):
            image = image.crop(box)
        else:
            # straight from the whole image: a large patch is not copied first
            image = image.resize((size, size), Image.Resampling.BILINEAR, box)
        # numpy, not torch, turns it: torch would wake its other threads for this little work
        return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(f"{path}: there is no such file. Check its name and the source's folder of images.")
    return DataError(f"{path}: the file cannot be read ({error.strerror}). Check it and its rights.")


def _decode(data: bytes, path: Path, max_pixels: int) -> Image.Image:
    """Returns the first frame as RGB, upright, 8 bits; a file that is not a whole image raises DataError."""
    if not data:
        raise DataError(f"{path}: the file is empty (0 bytes). Fetch it again.")
    try:
        image = _open(data)
    except UnidentifiedImageError:
        known = ", ".join(FORMATS)
        raise DataError(
            f"{path}: not an image in a format that is read. Known, whatever the name: {known}."
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # what a decoder raises on hostile bytes is its own affair
        raise DataError(f"{path}: the image's header is broken ({error}). Fetch it again.") from error
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(
            f"{path}: too many pixels ({width} x {height} = {width * height}). "
            f"At most {max_pixels} are read; raise the encoder's option `max_pixels` if the image is meant."
        )
    try:
        image.load()
        _turn_upright(image, path)
        return _to_rgb(image, path)
    except (DataError, MemoryError):
        raise
    except Exception as error:
        raise DataError(f"{path}: the image is truncated or broken ({error}). Fetch it again.") from error


def _turn_upright(image: Image.Image, path: Path) -> None:
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(
            f"{path}: its EXIF data are broken, so which way is up is not known ({error}). "
            "Save it without them."
        ) from error


def _open(data: bytes) -> Image.Image:
    """Reads an image's header; `max_pixels` is the limit, so Pillow's process-wide one is set aside."""
    with _OPENING:
        # of tags that say nothing about pixels; what makes an image unreadable is an error
        warnings.filterwarnings("ignore", module=r"PIL\.")
        limit = Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = None
        try:
            return Image.open(io.BytesIO(data), formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def _to_rgb(image: Image.Image, path: Path) -> Image.Image:
    if image.mode in ("I", "F"):
        raise DataError(
            f"{path}: 32-bit grey has no known white (mode {image.mode}). Save it with 8 or 16 bits."
        )
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255 instead of scaling
        values = np.asarray(image).astype(np.uint32)
        image = Image.fromarray(((values * 255 + 32767) // 65535).astype(np.uint8))
    # transparency is dropped, not composited: the colours below it are what was recorded
    image.info.pop("transparency", None)
    return image if image.mode == "RGB" else image.convert("RGB")


def _patch_box(size: tuple[int, int], key: bytes, view: str) -> tuple[int, int, int, int]:
    """Returns a patch's corners: they follow from content and view alone, so that all draws share them."""
    match = _PATCH.fullmatch(view)
    if match is None:
        raise ValueError(f"unknown view '{view}': views are 'whole' and 'patch<side>.<index>'")
    side = min(int(match[1]), *size)
    digest = hashlib.sha256(key + view.encode()).digest()
    left = int.from_bytes(digest[:8], "big") % (size[0] - side + 1)
    top = int.from_bytes(digest[8:16], "big") % (size[1] - side + 1)
    return left, top, left + side, top + side


def _augment(image: Tensor, options: AugmentOptions, seed: int) -> Tensor:
    """Returns a changed copy of a uint8 image.

    Every number is drawn whatever the options, so that switching one change off leaves the others alone.
    Changes that move whole pixels come first; the rest is done in floats and rounded once.
    """
    draw = random.Random(seed)
    mirror, upside_down = draw.random() < 0.5, draw.random() < 0.5
    turns = draw.randrange(4)
    angle = draw.uniform(-1, 1) * options.rotate
    brightness = 1 + draw.uniform(-1, 1) * options.brightness
    contrast = 1 + draw.uniform(-1, 1) * options.contrast
    if options.flip:
        axes = [axis for axis, is_flipped in ((2, mirror), (1, upside_down)) if is_flipped]
        image = image.flip(axes) if axes else image
    if options.quarter_turns:
        image = image.rot90(turns, (1, 2))
    if angle or brightness != 1 or contrast != 1:
        values = _rotate(image.float() / 255, angle) if angle else image.float() / 255
        # torchvision takes seconds to import, and only a draw needs it: a sweep that is all stored draws none
        from torchvision.transforms.v2 import functional as transforms

        values = _adjust_contrast(transforms.adjust_brightness(values, brightness), contrast)
        image = (values * 255).round_().to(torch.uint8)
    return image.clone(memory_format=torch.contiguous_format)


def _adjust_contrast(image: Tensor, factor: float) -> Tensor:
    """Moves values away from, or towards, the image's mean grey, as torchvision's `adjust_contrast` does.

    torch's own mean adds up in another order where it has more threads, so it would change the last digit.
    """
    from torchvision.transforms.v2 import functional as transforms

    mean = float(transforms.rgb_to_grayscale(image).numpy().mean(dtype=np.float64))
    return (image * factor + mean * (1 - factor)).clamp_(0, 1)


def _rotate(image: Tensor, angle: float) -> Tensor:
    """Rotates about the centre; the corners that come into view show the image mirrored at its edges."""
    from torchvision.transforms.v2 import InterpolationMode
    from torchvision.transforms.v2 import functional as transforms

    size = image.shape[-1]
    turn = math.radians(abs(angle))
    reach = size * (abs(math.cos(turn)) + abs(math.sin(turn)))
    margin = min(math.ceil((reach - size) / 2) + 1, size - 1)
    padded = transforms.pad(image, [margin], padding_mode="reflect")
    turned = transforms.rotate(padded, angle, interpolation=InterpolationMode.BILINEAR)
    cropped: Tensor = transforms.center_crop(turned, [size, size])
    return cropped
