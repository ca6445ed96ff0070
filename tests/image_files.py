"""Image files for tests of generated bad input: of many kinds, then spoiled; and headers of absurd sizes."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st
from PIL import Image
from strategies import spoil

KINDS: list[tuple[str, str, dict[str, Any]]] = [
    *(("PNG", mode, {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    ("PNG", "P", {"transparency": 3}),
    ("PNG", "RGB", {"compress_level": 0}),
    *(("JPEG", mode, {}) for mode in ("L", "RGB", "CMYK")),
    ("JPEG", "RGB", {"progressive": True}),
    *(
        ("TIFF", mode, {})
        for mode in ("1", "L", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F", "LAB", "YCbCr")
    ),
    *(("TIFF", "RGB", {"compression": name}) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")),
    ("TIFF", "1", {"compression": "group4"}),
    *(("WEBP", mode, {}) for mode in ("RGB", "RGBA")),
    ("WEBP", "RGB", {"lossless": True}),
    *(("BMP", mode, {}) for mode in ("1", "L", "P", "RGB", "RGBA")),
]
"""Format, mode and options of the files that are spoiled."""
OTHERS = ("GIF", "PPM", "ICO", "TGA", "JPEG2000", "PCX", "SGI", "EPS", "PDF")
"""Formats that are never read."""


def picture(mode: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """Returns a picture with smooth and noisy parts."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    noise[:, : size[0] // 2] //= 16
    image = Image.fromarray(noise)
    if mode in ("I;16", "I", "F"):
        grey = np.asarray(image.convert("L"))
        return Image.fromarray(grey.astype({"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]) * 100)
    if mode == "LAB":
        return Image.frombytes("LAB", size, image.tobytes())
    return image.convert(mode)


def encoded(kind: tuple[str, str, dict[str, Any]], n_frames: int = 1, exif: bytes = b"") -> bytes:
    name, mode, options = kind
    file = io.BytesIO()
    more = {"exif": exif} if exif and name in ("PNG", "JPEG", "WEBP", "TIFF") else {}
    if n_frames > 1 and name in ("PNG", "TIFF", "WEBP"):
        more |= {"save_all": True, "append_images": [picture(mode, (40, 30))] * (n_frames - 1)}
    picture(mode).save(file, name, **options, **more)
    return file.getvalue()


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker\x00" * 20
    return exif.tobytes()


def png_of(
    width: int, height: int, depth: int, colour: int, data: bytes, *chunks: tuple[bytes, bytes]
) -> bytes:
    """Returns a PNG file with right checksums, whatever its header says."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))
    middle = b"".join(chunk(name, content) for name, content in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + middle + chunk(b"IDAT", data) + chunk(b"IEND", b"")


BOMB = zlib.compress(bytes(1 << 26), 9)
"""64 MiB of zeros in 64 KiB."""


TEXT_BOMB = (b"zTXt", b"Comment\x00\x00" + BOMB)
PLAIN = zlib.compress(bytes(30 * 121))
BOMBS = [
    png_of(3900, 4000, 8, 2, zlib.compress(bytes(1 << 20))),
    png_of(2**31 - 1, 2**31 - 1, 8, 2, BOMB),
    png_of(60_000, 1000, 16, 6, BOMB),
    png_of(1, 2_000_000, 1, 0, BOMB),
    png_of(40, 30, 8, 2, BOMB),
    png_of(40, 30, 8, 2, PLAIN, *[TEXT_BOMB] * 40),
    png_of(40, 30, 8, 2, PLAIN, (b"iCCP", b"a\x00\x00" + BOMB)),
    png_of(40, 30, 8, 3, zlib.compress(bytes(30 * 41)), (b"PLTE", b"abc")),
    png_of(0, 30, 8, 2, BOMB),
]
"""Small files that ask for much."""


def sized(data: bytes, width: int, height: int) -> bytes:
    """Returns a file whose header says another size, where its format is one that we know to change."""
    if data.startswith(b"\x89PNG"):
        header = data[12:16] + struct.pack(">II", width, height) + data[24:29]
        return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]
    if data.startswith(b"BM"):
        return data[:18] + struct.pack("<ii", width, height) + data[26:]
    for marker in (b"\xff\xc0\x00\x11\x08", b"\xff\xc2\x00\x11\x08", b"\xff\xc0\x00\x0b\x08"):
        at = data.find(marker)
        if at >= 0:
            size = struct.pack(">HH", height & 0xFFFF, width & 0xFFFF)
            return data[: at + 5] + size + data[at + 9 :]
    for tag, value in (
        (b"\x00\x01\x04\x00\x01\x00\x00\x00", width),
        (b"\x01\x01\x04\x00\x01\x00\x00\x00", height),
    ):
        at = data.find(tag)
        if at >= 0:
            data = data[: at + 8] + struct.pack("<I", value & 0xFFFFFFFF) + data[at + 12 :]
    return data


SIZES = [0, 1, 2, 40, 41, 8000, 65535, 2**31 - 1]
WHOLE_FILES = [encoded(kind) for kind in KINDS]
OTHER_FILES = [encoded((name, "RGB", {})) for name in OTHERS]


@st.composite
def image_files(draw: Any) -> bytes:
    """Returns an image file: whole, of many frames, with odd EXIF, of another size, cut or spoiled."""
    what = draw(
        st.sampled_from(
            ["whole", "frames", "exif", "size", "bomb", "splice", "spoil", "spoil", "spoil", "bytes", "other"]
        )
    )
    if what == "bomb":
        return draw(st.sampled_from(BOMBS))
    if what == "bytes":
        start = draw(
            st.sampled_from(
                [
                    b"",
                    b"\x89PNG\r\n\x1a\n",
                    b"\xff\xd8\xff",
                    b"II*\x00",
                    b"MM\x00*",
                    b"RIFF",
                    b"BM",
                    b"<html>",
                ]
            )
        )
        return start + draw(st.binary(max_size=200))
    if what == "other":
        return draw(st.sampled_from(OTHER_FILES))
    data = draw(st.sampled_from(WHOLE_FILES))
    if what == "frames":
        return encoded(draw(st.sampled_from(KINDS)), draw(st.integers(2, 4)))
    if what == "exif":
        exif = exif_of(draw(st.integers(0, 9)))
        exif = draw(
            st.sampled_from([exif, spoil(draw, exif), b"Exif\x00\x00" + draw(st.binary(max_size=40))])
        )
        return encoded(
            draw(st.sampled_from([kind for kind in KINDS if kind[0] in ("PNG", "JPEG", "WEBP")])), 1, exif
        )
    if what == "size":
        return sized(data, draw(st.sampled_from(SIZES)), draw(st.sampled_from(SIZES)))
    if what == "splice":
        other = draw(st.sampled_from(WHOLE_FILES))
        return data[: draw(st.integers(0, len(data)))] + other[draw(st.integers(0, len(other))) :]
    return spoil(draw, data) if what == "spoil" else data
