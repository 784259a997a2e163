"""Pictures that Pillow misreads when it is left alone: they are read as they are meant, or refused."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_images import shown

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.decoding import EncodedImage
from r2d2_jax.data.image.transforms import verify_image
from r2d2_jax.data.image.upright import upright_rgb

GREYS = np.arange(16).reshape(2, 8)  # of four bits
PLANES = np.random.default_rng(0).integers(0, 256, (3, 6, 10)).astype(np.uint8)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def grey_png(values: np.ndarray, bits: int, transparent: int) -> bytes:
    """A PNG of `bits` a pixel, written here because Pillow writes none of two or four."""
    rows = ["".join(f"{value:0{bits}b}" for value in row) for row in values]
    content = b"".join(b"\0" + int(row, 2).to_bytes(len(row) // 8, "big") for row in rows)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], bits, 0, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": struct.pack(">H", transparent), b"IDAT": zlib.compress(content), b"IEND": b""}
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts.items())


def tiff(planes: np.ndarray, compression: int = 1) -> bytes:
    """An RGB TIFF whose colours [3 h w] lie one after the other; Pillow writes none."""
    bits = 8 * planes.itemsize
    parts = [plane.tobytes() if compression == 1 else zlib.compress(plane.tobytes()) for plane in planes]
    start = 8 + 2 + 9 * 12 + 4
    places = np.cumsum([start + 30, *map(len, parts)])[:3].tolist()
    numbers = {256: planes.shape[2], 257: planes.shape[1], 258: start, 259: compression, 262: 2}
    numbers |= {273: start + 6, 277: 3, 279: start + 18, 284: 2}
    counts, longs = {258: 3, 273: 3, 279: 3}, (273, 279)
    tags = [struct.pack("<HHII", tag, 4 if tag in longs else 3, counts.get(tag, 1), n) for tag, n in numbers.items()]
    arrays = struct.pack("<3H3I3I", bits, bits, bits, *places, *map(len, parts))
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(4) + arrays + b"".join(parts)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("transparent", [0, 2, 3])
def test_the_grey_that_is_transparent_becomes_white(bits: int, transparent: int) -> None:
    scale, highest = (4369, 65535) if bits == 16 else (1, 2**bits - 1)
    values, transparent = GREYS % 2 ** min(bits, 4) * scale, transparent * scale
    encoded = grey_png(values, bits, transparent)
    want = np.where(values == transparent, 255, values * 255 // highest)
    np.testing.assert_array_equal(EncodedImage(encoded).pixels()[..., 0], want)
    np.testing.assert_array_equal(np.asarray(upright_rgb(Image.open(io.BytesIO(encoded))))[..., 2], want)


def test_the_callers_picture_keeps_its_transparency() -> None:
    picture = Image.open(io.BytesIO(grey_png(GREYS, 4, 5)))
    upright_rgb(picture)
    assert picture.info["transparency"] == 5


@pytest.mark.parametrize("encoded", [tiff(PLANES), tiff(PLANES, 8), tiff(PLANES.astype("<u2") * 257, 8)])
def test_colours_in_planes(encoded: bytes) -> None:
    np.testing.assert_array_equal(EncodedImage(encoded).pixels()[..., :3], PLANES.transpose(1, 2, 0))


def test_planes_that_pillow_misreads_are_refused() -> None:
    encoded = tiff(PLANES.astype("<u2") * 257)
    for use in (verify_image, lambda encoded: EncodedImage(encoded).pixels()):
        with pytest.raises(UnusableRecord, match="an uncompressed TIFF of 16 bits whose colours lie in planes"):
            use(encoded)


@pytest.mark.parametrize("kind", ["L", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_tiff_that_pillow_opened_itself(kind: str, orientation: int, tmp_path: Path) -> None:
    grey = PLANES[0]
    stored = Image.fromarray(grey if kind == "L" else grey.astype(np.uint16) * 257)
    stored.save(tmp_path / "a.tif", tiffinfo={274: orientation})
    with Image.open(tmp_path / "a.tif") as picture:
        found = np.asarray(upright_rgb(picture))[..., 0]
        assert picture.filename == str(tmp_path / "a.tif")
    np.testing.assert_array_equal(found, shown(grey, orientation))


def bitmap(colours: np.ndarray, alpha: int) -> bytes:
    """A BMP with a fourth byte that its header calls alpha, as the clipboard of Windows writes it; Pillow does not."""
    height, width = colours.shape[:2]
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    header = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, width * height * 4, 0, 0, 0, 0) + masks
    pixels = np.dstack([colours[::-1, :, ::-1], np.full((height, width), alpha, np.uint8)]).tobytes()
    start = 14 + 124
    return struct.pack("<2sIHHI", b"BM", start + len(pixels), 0, 0, start) + header.ljust(124, b"\0") + pixels


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bitmap_is_not_all_transparent(alpha: int) -> None:
    colours = PLANES.transpose(1, 2, 0)
    assert Image.open(io.BytesIO(bitmap(colours, alpha))).mode == "RGBA"
    np.testing.assert_array_equal(EncodedImage(bitmap(colours, alpha)).pixels()[..., :3], colours)


def test_another_picture_that_is_all_transparent_is_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (3, 2), (10, 20, 30, 0)).save(file, "PNG")
    assert (EncodedImage(file.getvalue()).pixels() == 255).all()
