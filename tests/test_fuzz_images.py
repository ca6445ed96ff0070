"""Mutated images: every view of a picture, or one clear error each; and what these tests found."""

import io
import warnings

import image_files
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from strategies import answer, bounded, bounded_memory

from fusionkit import ColumnSpec, DataError
from fusionkit.data.images import ImageInput
from fusionkit.interfaces import Cut
from fusionkit.specs import AugmentOptions, ImageOptions, ViewOptions

SECONDS = 3
DATA = 4
OPTIONS = ImageOptions(
    size=16,
    views=ViewOptions(patches={8: 2, 100: 1}),
    augment=AugmentOptions(rotate=20),
    max_pixels=16_000_000,
)
CUTS = [Cut("whole"), Cut("whole", 3), Cut("patch8.0"), Cut("patch8.1", 5), Cut("patch100.0")]
SUFFIXES = [".png", ".jpg", ".tif", ".html", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


def read(path):
    reader = ImageInput(OPTIONS, {"image": ColumnSpec(kind="file")})
    return reader.content_key({"image": path}), reader.load({"image": path}, CUTS)


def check_image(data, suffix, folder):
    """What is read has all its views, and the same ones again."""
    path = folder / f"image{suffix}"
    path.write_bytes(data)
    with bounded_memory():
        found = answer(lambda: read(path), DATA)
    if isinstance(found, DataError):
        (problem,) = found.problems
        assert problem.startswith(f"{path}: ")
        return
    key, tensors = found
    assert [(tensor.shape, tensor.dtype) for tensor in tensors] == [((3, 16, 16), torch.uint8)] * len(CUTS)
    again = read(path)
    assert again[0] == key
    assert all(torch.equal(one, two) for one, two in zip(again[1], tensors, strict=True))


images = {"data": image_files.image_files(), "suffix": st.sampled_from(SUFFIXES)}


@bounded(60)
@given(**images)
def test_any_image_is_read_or_is_an_error(data, suffix, folder):
    check_image(data, suffix, folder)


@pytest.mark.slow
@bounded(600, SECONDS)
@given(**images)
def test_six_hundred_images_are_read_or_are_errors(data, suffix, folder):
    check_image(data, suffix, folder)


# what these tests found


def refusal(path, data):
    path.write_bytes(data)
    with pytest.raises(DataError) as error:
        read(path)
    (problem,) = error.value.problems
    return problem


@pytest.mark.parametrize("kind", [kind for kind in image_files.KINDS if kind[1] not in ("I", "F")], ids=str)
def test_every_kind_is_read(kind, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(image_files.encoded(kind))
    assert len(read(path)[1]) == len(CUTS)


@pytest.mark.parametrize("data", image_files.OTHER_FILES, ids=image_files.OTHERS)
def test_no_other_format_is_read(data, tmp_path):
    path = tmp_path / "image.png"
    assert refusal(path, data) == (
        f"{path}: not an image in a format that is read. "
        "Known, whatever the name: PNG, JPEG, TIFF, WEBP, BMP."
    )


def test_broken_exif_data_are_named(tmp_path):
    path = tmp_path / "image.png"
    data = image_files.encoded(("PNG", "RGB", {}), exif=b"Exif\x00\x00garbage")
    assert refusal(path, data) == (
        f"{path}: its EXIF data are broken, so which way is up is not known "
        "(not a TIFF file (header b'garbage' not valid)). Save it without them."
    )


def test_nothing_is_said_of_tags_that_say_nothing_about_pixels(tmp_path):
    path = tmp_path / "image.jpg"
    exif = image_files.exif_of(6)
    path.write_bytes(image_files.encoded(("JPEG", "RGB", {}), exif=exif[: len(exif) // 2]))
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        Image.open(io.BytesIO(path.read_bytes())).getexif()
    assert heard  # Pillow would say it
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        read(path)
    assert heard == []


@pytest.mark.parametrize("number", range(len(image_files.BOMBS)))
def test_a_bomb_is_an_error_or_a_picture(number, folder):
    check_image(image_files.BOMBS[number], ".png", folder)


def test_a_header_of_absurd_size_is_refused_unread(tmp_path):
    path = tmp_path / "image.png"
    data = image_files.png_of(60_000, 50_000, 8, 2, image_files.BOMB)
    assert refusal(path, data) == (
        f"{path}: too many pixels (60000 x 50000 = 3000000000). At most 16000000 are read; "
        "raise the encoder's option `max_pixels` if the image is meant."
    )
