"""ImageInput: what a file becomes, what is refused and in which words, and where randomness comes from."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL
import pytest
import torch
import torchvision
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from fusionkit.data.images import ImageInput, _patch_box
from fusionkit.errors import DataError, RecipeError
from fusionkit.interfaces import Cut
from fusionkit.specs import AugmentOptions, ColumnSpec, ImageOptions, ViewOptions

SIZE = 16
WHOLE = (Cut("whole"),)
PATCHES = ViewOptions(patches={8: 3, 16: 2, 100: 1})


def image_input(**options) -> ImageInput:
    return ImageInput(ImageOptions(**{"size": SIZE, **options}), {"image": ColumnSpec(kind="file")})


def load(path: Path, cuts=WHOLE, **options) -> list[torch.Tensor]:
    return image_input(**options).load({"image": path}, cuts)


def pixels(mode: str = "RGB", size: tuple[int, int] = (SIZE, SIZE)) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(values).convert(mode)


def save(path: Path, image: Image.Image, **options) -> Path:
    image.save(path, **options)
    return path


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy()


@pytest.fixture
def n_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def refusal(path: Path, **options) -> str:
    with pytest.raises(DataError) as error:
        load(path, **options)
    return str(error.value)


# what a file becomes


@pytest.mark.parametrize(("suffix", "format_"), [("png", "PNG"), ("bmp", "BMP"), ("tiff", "TIFF")])
def test_rgb_comes_through_unchanged(tmp_path, suffix, format_):
    image = pixels()
    (tensor,) = load(save(tmp_path / f"a.{suffix}", image, format=format_))
    assert tensor.dtype == torch.uint8
    assert tensor.shape == (3, SIZE, SIZE)
    assert tensor.is_contiguous()
    assert np.array_equal(array(tensor), np.asarray(image))


def test_the_name_says_nothing_about_the_format(tmp_path):
    image = pixels()
    (tensor,) = load(save(tmp_path / "a.gif", image, format="PNG"))
    assert np.array_equal(array(tensor), np.asarray(image))


@pytest.mark.parametrize("mode", ["L", "1", "P"])
def test_grey_and_palette_show_their_colours(tmp_path, mode):
    image = pixels(mode)
    (tensor,) = load(save(tmp_path / "a.png", image))
    assert np.array_equal(array(tensor), np.asarray(image.convert("RGB")))


def test_16_bit_grey_is_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, SIZE * SIZE).astype(np.uint16).reshape(SIZE, SIZE)
    expected = np.round(values / 65535 * 255).astype(np.uint8)
    for name in ("a.png", "a.tiff"):
        (tensor,) = load(save(tmp_path / name, Image.fromarray(values)))
        assert np.array_equal(array(tensor), np.repeat(expected[:, :, None], 3, axis=2)), name


def test_transparency_is_dropped_not_composited(tmp_path):
    image = pixels("RGB")
    expected = np.asarray(image)
    image.putalpha(Image.fromarray(np.random.default_rng(1).integers(0, 256, (SIZE, SIZE), dtype=np.uint8)))
    (tensor,) = load(save(tmp_path / "a.png", image))
    assert np.array_equal(array(tensor), expected)


@pytest.mark.parametrize("transparency", [0, bytes(range(256))])
def test_a_transparent_palette_keeps_its_colours(tmp_path, transparency):
    image = pixels("P")
    expected = np.asarray(image.convert("RGB"))
    (tensor,) = load(save(tmp_path / "a.png", image, transparency=transparency))
    assert np.array_equal(array(tensor), expected)


def test_cmyk_becomes_rgb(tmp_path):
    ink = Image.new("CMYK", (SIZE, SIZE), (255, 0, 0, 0))
    (tensor,) = load(save(tmp_path / "a.tiff", ink))
    assert tensor[:, 0, 0].tolist() == [0, 255, 255]


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    ink = Image.new("CMYK", (SIZE, SIZE), (255, 0, 0, 0))
    (tensor,) = load(save(tmp_path / "a.jpg", ink, quality=100))
    assert (tensor[:, 0, 0].int() - torch.tensor([0, 255, 255])).abs().max() <= 2


def test_grey_with_alpha_drops_the_alpha(tmp_path):
    image = pixels("L")
    expected = np.repeat(np.asarray(image)[:, :, None], 3, axis=2)
    image.putalpha(7)
    (tensor,) = load(save(tmp_path / "a.png", image))
    assert np.array_equal(array(tensor), expected)


def png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG written by hand: for what Pillow reads and does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("colour", "channels"), [(2, 3), (6, 4)])
def test_16_bit_colour_is_scaled_to_8_bits(tmp_path, colour, channels):
    values = np.random.default_rng(0).integers(0, 65536, (SIZE, SIZE, channels)).astype(">u2")
    path = tmp_path / "a.png"
    path.write_bytes(png(SIZE, SIZE, 16, colour, b"".join(b"\0" + row.tobytes() for row in values)))
    (tensor,) = load(path)
    expected = values[:, :, :3].astype(float) / 65535 * 255
    assert np.abs(array(tensor) - expected).max() <= 1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_of_a_jpeg_is_applied(tmp_path, orientation):
    image = pixels("L", (2 * SIZE, SIZE)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = {1: "", 2: "f", 3: "rr", 4: "frr", 5: "fr", 6: "rrr", 7: "frrr", 8: "r"}[orientation]
    plain, turned = tmp_path / "plain.jpg", tmp_path / "turned.jpg"
    image.save(plain, quality=95)
    image.save(turned, quality=95, exif=exif)
    expected = array(load(plain)[0])
    for step in upright:
        expected = np.fliplr(expected) if step == "f" else np.rot90(expected)
    assert np.array_equal(array(load(turned)[0]), expected)


def test_exif_orientation_is_applied(tmp_path):
    image = pixels()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter clockwise to see it upright
    (tensor,) = load(save(tmp_path / "a.png", image, exif=exif))
    assert np.array_equal(array(tensor), np.rot90(np.asarray(image), -1))


def test_the_first_frame_of_an_animation_counts(tmp_path):
    first = pixels()
    path = tmp_path / "a.webp"
    first.save(path, save_all=True, append_images=[Image.new("RGB", first.size)], lossless=True)
    (tensor,) = load(path)
    assert np.array_equal(array(tensor), np.asarray(first))


@pytest.mark.parametrize("format_", ["PNG", "TIFF"])
def test_the_first_of_several_frames_or_pages_counts(tmp_path, format_):
    first = pixels()
    path = tmp_path / "a"
    first.save(path, format_, save_all=True, append_images=[Image.new("RGB", first.size)])
    with Image.open(path) as image:
        assert image.n_frames == 2
    (tensor,) = load(path)
    assert np.array_equal(array(tensor), np.asarray(first))


def test_whole_is_squashed_with_an_antialiased_filter(tmp_path):
    image = pixels(size=(100, 64))
    (tensor,) = load(save(tmp_path / "a.png", image))
    reference = transforms.resize(
        torch.from_numpy(np.array(image)).permute(2, 0, 1).double(), [SIZE, SIZE], antialias=True
    )
    assert (tensor.double() - reference).abs().max() <= 1


# what is refused


def test_a_file_that_is_not_there(tmp_path):
    path = tmp_path / "a.png"
    text = f"{path}: there is no such file. Check its name and the source's folder of images."
    assert refusal(path) == text
    with pytest.raises(DataError) as error:
        image_input().content_key({"image": path})
    assert str(error.value) == text


def test_a_folder_is_no_image(tmp_path):
    assert (
        refusal(tmp_path) == f"{tmp_path}: the file cannot be read (Is a directory). Check it and its rights."
    )


def test_an_empty_file(tmp_path):
    path = tmp_path / "a.png"
    path.touch()
    assert refusal(path) == f"{path}: the file is empty (0 bytes). Fetch it again."


GIF = io.BytesIO()
pixels("P").save(GIF, "GIF", save_all=True, append_images=[pixels("P")])


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"<!DOCTYPE html><html>404</html>", id="html"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n", id="eps"),
        pytest.param(GIF.getvalue(), id="animated gif"),
    ],
)
def test_other_formats_are_refused_whatever_their_name(tmp_path, data):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert refusal(path) == (
        f"{path}: not an image in a format that is read. "
        "Known, whatever the name: PNG, JPEG, TIFF, WEBP, BMP."
    )


@pytest.mark.parametrize("format_", ["PNG", "JPEG", "TIFF", "BMP"])
def test_a_truncated_file_is_never_filled_up(tmp_path, format_):
    path = save(tmp_path / "a", pixels(size=(128, 128)), format=format_)
    path.write_bytes(path.read_bytes()[:-3000])
    text = refusal(path)
    assert text.startswith(f"{path}: the image is truncated or broken (")
    assert text.endswith("). Fetch it again.")


def test_a_truncated_webp_is_refused_when_it_is_opened(tmp_path):
    path = save(tmp_path / "a", pixels(size=(128, 128)), format="WEBP")
    path.write_bytes(path.read_bytes()[:-3000])
    assert refusal(path) == (
        f"{path}: the image's header is broken (could not create decoder object). Fetch it again."
    )


def huge_png() -> bytes:
    """A 14000 x 14000 1-bit PNG: 25 MB once decoded to bits, 600 MB as RGB, a few kB on disk."""
    return png(14000, 14000, 1, 0, bytes((14000 // 8 + 1) * 14000))


def test_a_decompression_bomb_is_refused_from_its_header(tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(huge_png())
    limit = Image.MAX_IMAGE_PIXELS
    assert refusal(path) == (
        f"{path}: too many pixels (14000 x 14000 = 196000000). At most 64000000 are read; "
        "raise the encoder's option `max_pixels` if the image is meant."
    )
    assert limit == Image.MAX_IMAGE_PIXELS


def test_max_pixels_is_the_only_limit(tmp_path):
    path = save(tmp_path / "a.png", pixels(size=(20, 10)))
    assert load(path, max_pixels=200)
    assert "too many pixels (20 x 10 = 200). At most 199" in refusal(path, max_pixels=199)


def test_max_pixels_may_exceed_pillows_own_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert load(save(tmp_path / "a.png", pixels()))


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_grey_is_refused(tmp_path, mode):
    path = save(tmp_path / "a.tiff", Image.new(mode, (SIZE, SIZE), 7))
    assert refusal(path) == (
        f"{path}: 32-bit grey has no known white (mode {mode}). Save it with 8 or 16 bits."
    )


def test_an_absent_image_cannot_be_loaded():
    with pytest.raises(DataError, match="column image: there is no image in this row"):
        image_input().load({"image": None}, WHOLE)


@pytest.mark.parametrize(
    ("columns", "text"),
    [
        (("a", "b"), "columns: an image is read from one column (given: a, b). Name one of kind file."),
        ((), "columns: an image is read from one column (given: none). Name one of kind file."),
        (
            {"age": ColumnSpec(kind="numeric")},
            "columns: age holds no files (kind: numeric). Name a column of kind file.",
        ),
    ],
)
def test_it_reads_one_column_of_files(columns, text):
    with pytest.raises(RecipeError) as error:
        ImageInput(ImageOptions(), columns)
    assert str(error.value) == text


def test_an_unknown_view_is_a_bug():
    with pytest.raises(ValueError, match="unknown view 'corner'"):
        image_input()._cut(pixels(), b"", "corner")


# content and views


def test_the_same_picture_under_another_name_is_the_same(tmp_path):
    first = save(tmp_path / "a.png", pixels(size=(40, 30)))
    second = tmp_path / "other.png"
    second.write_bytes(first.read_bytes())
    spec = image_input()
    key = spec.content_key({"image": first})
    assert key == spec.content_key({"image": second}) == hashlib.sha256(first.read_bytes()).digest()
    cuts = [Cut("patch8.0", 3), Cut("whole", 4)]
    options = {"augment": AugmentOptions(), "views": PATCHES}
    for one, other in zip(load(first, cuts, **options), load(second, cuts, **options), strict=True):
        assert torch.equal(one, other)


def test_a_changed_file_has_another_key(tmp_path):
    path = save(tmp_path / "a.png", pixels())
    before = image_input().content_key({"image": path})
    save(path, pixels("L"))
    assert image_input().content_key({"image": path}) != before


def test_a_missing_cell_is_absent():
    assert image_input().content_key({"image": None}) is None


def test_views_are_named_by_side_and_index():
    spec = image_input(
        views=ViewOptions(patches={8: 2, 12: 1}), eval_views=ViewOptions(whole=False, patches={8: 1})
    )
    assert spec.views(training=True) == ("whole", "patch8.0", "patch8.1", "patch12.0")
    assert spec.views(training=False) == ("patch8.0",)


def test_a_patch_is_a_square_of_the_original_in_its_own_place(tmp_path):
    image = pixels(size=(64, 48))
    path = save(tmp_path / "a.png", image)
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(image), (SIZE, SIZE), axis=(0, 1))
    places = set()
    for index in range(4):
        (tensor,) = load(path, [Cut(f"patch{SIZE}.{index}")])
        same = np.all(windows == tensor.numpy(), axis=(2, 3, 4))
        assert same.sum() == 1
        places.add(tuple(np.argwhere(same)[0]))
    assert len(places) == 4


@pytest.mark.parametrize("side", [20, 33, 47])
def test_a_shrunk_patch_equals_one_that_is_cut_out_first_but_for_its_rim(tmp_path, side):
    image = pixels(size=(64, 48))
    path = save(tmp_path / "a.png", image)
    key = hashlib.sha256(path.read_bytes()).digest()
    for index in range(6):
        view = f"patch{side}.{index}"
        (tensor,) = load(path, [Cut(view)])
        slow = np.asarray(image.crop(_patch_box(image.size, key, view)).resize((SIZE, SIZE), 2))
        inside = slice(1, -1)
        assert np.array_equal(array(tensor)[inside, inside], slow[inside, inside])
        assert tensor.is_contiguous()


def test_places_are_spread_over_the_image(tmp_path):
    size = 200
    ramp = np.zeros((size, size, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(size)
    ramp[..., 1] = np.arange(size)[:, None]
    path = save(tmp_path / "a.png", Image.fromarray(ramp))
    corners = torch.stack(
        [tensor[:2, 0, 0] for tensor in load(path, [Cut(f"patch16.{i}") for i in range(400)])]
    ).float()
    assert (corners.mean(0) - 92).abs().max() < 8  # uniform on 0..184: mean 92, standard error 2.7
    assert corners.min() < 4
    assert corners.max() > 180


def test_a_patch_is_at_most_as_large_as_the_image(tmp_path):
    image = pixels(size=(SIZE + 9, SIZE))
    (tensor,) = load(save(tmp_path / "a.png", image), [Cut("patch100.0")])
    windows = np.lib.stride_tricks.sliding_window_view(np.asarray(image), (SIZE, SIZE), axis=(0, 1))
    assert np.any(np.all(windows == tensor.numpy(), axis=(2, 3, 4)))


def test_many_cuts_equal_single_ones(tmp_path):
    path = save(tmp_path / "a.png", pixels(size=(64, 48)))
    options = {"augment": AugmentOptions(rotate=20), "views": PATCHES}
    cuts = [Cut(view, seed) for view in image_input(**options).views(training=True) for seed in (None, 1, 2)]
    for cut, tensor in zip(cuts, load(path, cuts, **options), strict=True):
        assert torch.equal(tensor, load(path, [cut], **options)[0])


# augmentation


def test_a_draw_follows_from_its_seed_alone(tmp_path):
    path = save(tmp_path / "a.png", pixels(size=(64, 48)))
    augment = AugmentOptions(rotate=10)
    torch.manual_seed(1)
    first = load(path, [Cut("whole", 7)], augment=augment)[0]
    torch.manual_seed(2)
    assert torch.equal(first, load(path, [Cut("whole", 7)], augment=augment)[0])
    others = [load(path, [Cut("whole", seed)], augment=augment)[0] for seed in range(6)]
    assert len({tensor.numpy().tobytes() for tensor in others}) == 6
    assert first.dtype == torch.uint8
    assert first.shape == (3, SIZE, SIZE)


def test_nothing_is_random_without_augmentation_or_seed(tmp_path):
    path = save(tmp_path / "a.png", pixels())
    plain = load(path)[0]
    assert torch.equal(plain, load(path, [Cut("whole", 5)])[0])
    assert torch.equal(plain, load(path, [Cut("whole")], augment=AugmentOptions())[0])
    assert image_input().is_random(training=True) is False
    assert image_input(augment=AugmentOptions()).is_random(training=True) is True
    assert image_input(augment=AugmentOptions()).is_random(training=False) is False


def only(**options) -> AugmentOptions:
    off = {"flip": False, "rotate": 0, "quarter_turns": False, "brightness": 0, "contrast": 0}
    return AugmentOptions(**(off | options))


def test_flips_and_quarter_turns_give_exactly_the_eight_symmetries(tmp_path):
    image = pixels()
    path = save(tmp_path / "a.png", image)
    values = np.asarray(image)
    symmetries = {np.rot90(side, turns).tobytes() for side in (values, values[:, ::-1]) for turns in range(4)}
    cuts = [Cut("whole", seed) for seed in range(200)]
    draws = load(path, cuts, augment=only(flip=True, quarter_turns=True))
    assert {array(draw).tobytes() for draw in draws} == symmetries
    flips = {array(draw).tobytes() for draw in load(path, cuts, augment=only(flip=True))}
    assert flips == {values[::a, ::b].tobytes() for a in (1, -1) for b in (1, -1)}


def test_brightness_multiplies_within_its_limits(tmp_path):
    path = save(tmp_path / "a.png", Image.new("RGB", (SIZE, SIZE), (100, 100, 100)))
    draws = load(path, [Cut("whole", seed) for seed in range(300)], augment=only(brightness=0.2))
    levels = [int(draw[0, 0, 0]) for draw in draws]
    assert min(levels) in (80, 81)
    assert max(levels) in (119, 120)


def test_contrast_moves_values_away_from_their_mean(tmp_path):
    values = np.full((SIZE, SIZE, 3), 100, dtype=np.uint8)
    values[: SIZE // 2] = 140
    path = save(tmp_path / "a.png", Image.fromarray(values))
    draws = load(path, [Cut("whole", seed) for seed in range(300)], augment=only(contrast=0.5))
    spans = [int(draw[0, 0, 0]) - int(draw[0, -1, 0]) for draw in draws]
    assert 20 <= min(spans) <= 22
    assert 58 <= max(spans) <= 60
    assert all(abs(draw.float().mean() - 120) <= 0.5 for draw in draws)


def test_contrast_is_torchvisions(tmp_path):
    image = pixels(size=(64, 64))
    path = save(tmp_path / "a.png", image)
    values = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    for seed in range(20):
        numbers = random.Random(seed)
        for _ in range(2):
            numbers.random()  # mirrored, upside down
        numbers.randrange(4), numbers.uniform(-1, 1)  # turned
        brightness, contrast = (1 + numbers.uniform(-1, 1) * 0.3 for _ in range(2))
        reference = transforms.adjust_contrast(transforms.adjust_brightness(values, brightness), contrast)
        (draw,) = load(path, [Cut("whole", seed)], size=64, augment=only(brightness=0.3, contrast=0.3))
        assert (draw.float() - reference * 255).abs().max() <= 0.51, seed


def test_a_draw_does_not_depend_on_the_number_of_threads(tmp_path, n_threads):
    path = save(tmp_path / "a.png", pixels(size=(256, 256)))
    cuts = [Cut("whole", seed) for seed in range(40)]
    found = []
    for number in (1, 2, 3):
        n_threads(number)
        found.append(torch.stack(load(path, cuts, size=224, augment=AugmentOptions(rotate=10))))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("degrees", [10, 45, 180])
def test_rotation_fills_corners_by_reflection(tmp_path, degrees):
    path = save(tmp_path / "a.png", Image.new("RGB", (64, 64), (200, 150, 90)))
    cuts = [Cut("whole", seed) for seed in range(20)]
    for draw in load(path, cuts, size=64, augment=only(rotate=degrees)):
        # no black corner: a plain image stays plain
        assert (draw.float() - torch.tensor([200, 150, 90])[:, None, None]).abs().max() <= 1


def test_rotation_turns_about_the_centre(tmp_path):
    image = pixels(size=(9, 9)).resize((65, 65), Image.Resampling.BICUBIC)
    path = save(tmp_path / "a.png", image)
    for seed in range(5):
        (draw,) = load(path, [Cut("whole", seed)], size=65, augment=only(rotate=30))
        best = min(
            np.abs(
                np.asarray(image.rotate(angle, Image.Resampling.BILINEAR), dtype=float)[20:45, 20:45]
                - array(draw)[20:45, 20:45]
            ).mean()
            for angle in np.arange(-30, 30.1, 0.5)
        )
        assert best < 1.5


def test_switching_one_change_off_leaves_the_others_alone(tmp_path):
    path = save(tmp_path / "a.png", pixels())
    for seed in range(5):
        turned = load(path, [Cut("whole", seed)], augment=only(quarter_turns=True))[0]
        both = load(path, [Cut("whole", seed)], augment=only(quarter_turns=True, brightness=0.0, flip=False))[
            0
        ]
        assert torch.equal(turned, both)


# batches and identity


def test_a_batch_travels_as_bytes_and_is_normalised_by_the_encoder():
    spec = image_input(mean=(0.5, 0.25, 0.0), std=(0.5, 1.0, 2.0))
    batch = spec.collate(
        [torch.zeros(3, SIZE, SIZE, dtype=torch.uint8), torch.full((3, SIZE, SIZE), 255).byte()]
    )
    assert batch.dtype == torch.uint8
    normal = spec.normalize(batch)
    assert normal.dtype == torch.float32
    assert normal[:, :, 0, 0].tolist() == [[-1.0, -0.25, 0.0], [1.0, 0.75, 0.5]]
    assert spec.normalize(normal) is normal


def test_identity_holds_what_changes_pixels_and_nothing_else():
    plain = image_input().identity()
    for change in ({"size": 32}, {"mean": (0, 0, 0)}, {"std": (1, 1, 1)}, {"augment": AugmentOptions()}):
        assert image_input(**change).identity() != plain
    for change in ({"views": PATCHES}, {"eval_views": PATCHES}, {"draws": 3}, {"max_pixels": 10**9}):
        assert image_input(**change).identity() == plain


def test_identity_names_the_libraries_that_make_the_pixels():
    plain, augmented = image_input().identity(), image_input(augment=AugmentOptions()).identity()
    assert (plain["version"], plain["pillow"]) == (2, PIL.__version__)
    assert "torchvision" not in plain, "only augmentation calls it"
    assert augmented["torchvision"] == torchvision.__version__
