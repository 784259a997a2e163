"""A limit on metadata, or an error in it, makes no image unusable, and costs no memory."""

import io
import struct
import subprocess
import sys
import tracemalloc
import zlib

import numpy as np
import pytest
from PIL import Image
from small_images import RAMP, USES, save

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.decoding import EncodedImage, opened
from r2d2_jax.data.image.png import without_metadata
from r2d2_jax.data.image.transforms import evaluation_image

SIZE = (102, 64)
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3)).astype(np.uint8)).resize(SIZE, 0)
PNG, JPEG = save(PICTURE), save(PICTURE, "JPEG", quality=95)
MEGABYTE = 2**20


def chunk(name: bytes, content: bytes, crc: int | None = None) -> bytes:
    checksum = zlib.crc32(name + content) if crc is None else crc
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)


def png_with(*chunks: bytes, at: int = 33) -> bytes:
    """Chunks after the header, or at another place."""
    return PNG[:at] + b"".join(chunks) + PNG[at:]


def jpeg_with(*segments: tuple[int, bytes]) -> bytes:
    """Segments right after the start of the image."""
    packed = (struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content for marker, content in segments)
    return JPEG[:2] + b"".join(packed) + JPEG[2:]


def exif_of(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


def noise(size: int) -> bytes:
    return np.random.default_rng(0).bytes(size)


PNGS = {
    "ICC profile of 2 MiB": png_with(chunk(b"iCCP", b"name\0\0" + zlib.compress(noise(2 * MEGABYTE)))),
    "80 texts": png_with(*[chunk(b"tEXt", b"key %d\0" % number + b"a" * MEGABYTE) for number in range(80)]),
    "80 compressed texts": png_with(
        *[chunk(b"zTXt", b"key %d\0\0" % number + zlib.compress(b"a" * MEGABYTE)) for number in range(80)]
    ),
    "compressed text of 5 MB": png_with(chunk(b"zTXt", b"key\0\0" + zlib.compress(b"a" * 5 * MEGABYTE))),
    "international text of 5 MB": png_with(chunk(b"iTXt", b"k\0\1\0\0\0" + zlib.compress(b"a" * 5 * MEGABYTE))),
    "text after the pixels": png_with(
        chunk(b"zTXt", b"key\0\0" + zlib.compress(b"a" * 5 * MEGABYTE)), at=len(PNG) - 12
    ),
    "unknown compression": png_with(chunk(b"zTXt", b"key\0\7abc"), chunk(b"iCCP", b"key\0\7abc")),
    "empty profile": png_with(chunk(b"iCCP", b"")),
    "short numbers": png_with(*[chunk(name, b"a") for name in (b"gAMA", b"cHRM", b"pHYs")], chunk(b"sRGB", b"")),
    "wrong checksum": png_with(chunk(b"tEXt", b"key\0value", 7), chunk(b"iCCP", b"name\0\0value", 7)),
    "broken EXIF": png_with(chunk(b"eXIf", b"garbage!")),
    "EXIF with a wrong checksum": png_with(chunk(b"eXIf", exif_of(6)[6:], 7)),
    "EXIF as text of 50 MB": png_with(
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(bytes(50 * MEGABYTE)))
    ),
    "XMP of 50 MB": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(bytes(50 * MEGABYTE)))),
    "broken XMP": png_with(chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0garbage")),
    "broken animation": png_with(chunk(b"acTL", struct.pack(">II", 2, 0)), chunk(b"fcTL", bytes(3))),
    "animation with a wrong frame": png_with(
        chunk(b"acTL", struct.pack(">II", 2, 0)),
        chunk(b"fcTL", struct.pack(">IIIIIHHBB", 0, 1000, 1000, 0, 0, 1, 1, 0, 0)),
    ),
    "short transparency": png_with(chunk(b"tRNS", b"a")),
    "bytes after the end": PNG + b"garbage",
}
PROFILE = [noise(3 * MEGABYTE)[start : start + 65_000] for start in range(0, 3 * MEGABYTE, 65_000)]
JPEGS = {
    "ICC profile of 3 MB": jpeg_with(
        *[(0xE2, b"ICC_PROFILE\0" + bytes([number, len(PROFILE)]) + part) for number, part in enumerate(PROFILE, 1)]
    ),
    "ICC profile cut short": jpeg_with((0xE2, b"ICC_PROFILE\0")),
    "200 comments": jpeg_with(*[(0xFE, b"c" * 65_000)] * 200),
    "broken EXIF": jpeg_with((0xE1, b"Exif\0\0garbage!")),
    "EXIF cut short": jpeg_with((0xE1, exif_of(6)[:12])),
    "resolution without numbers": jpeg_with(
        (0xE1, b"Exif\0\0MM\0*" + struct.pack(">IHHHIIHHIII", 8, 2, 0x11A, 5, 0, 0, 0x128, 3, 1, 2 << 16, 0))
    ),
    "JFIF cut short": jpeg_with((0xE0, b"JFIF\0")),
    "Adobe's segment cut short": jpeg_with((0xEE, b"Adobe")),
    "Photoshop's segment cut short": jpeg_with((0xED, b"Photoshop 3.0\0008BIM\0\0")),
    "broken index of pictures": jpeg_with((0xE2, b"MPF\0garbage!")),
    "broken XMP": jpeg_with((0xE1, b"http://ns.adobe.com/xap/1.0/\0<x \xff\xfe\0")),
}
WEBPS = {
    "all that WebP has": save(
        PICTURE,
        "WEBP",
        lossless=True,
        icc_profile=noise(3 * MEGABYTE),
        exif=b"Exif\0\0garbage!",
        xmp=b"x" * 3 * MEGABYTE,
    )
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken EXIF
@pytest.mark.parametrize(
    ("encoded", "plain"),
    [
        *[pytest.param(PNGS[name], PNG, id=f"PNG, {name}") for name in PNGS],
        *[pytest.param(JPEGS[name], JPEG, id=f"JPEG, {name}") for name in JPEGS],
        *[pytest.param(WEBPS[name], PNG, id=name) for name in WEBPS],
    ],
)
def test_the_image_is_the_one_without_metadata(encoded: bytes, plain: bytes) -> None:
    for use in USES:
        use(encoded)
    image = EncodedImage(encoded)
    assert image.size == SIZE
    np.testing.assert_array_equal(image.pixels(), EncodedImage(plain).pixels())
    np.testing.assert_array_equal(evaluation_image(encoded, 32), evaluation_image(plain, 32))


def test_a_compressed_text_is_not_decompressed() -> None:
    encoded = png_with(*[chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(500 * MEGABYTE)))] * 3)
    tracemalloc.start()
    evaluation_image(encoded, 32)
    assert tracemalloc.get_traced_memory()[1] < 3 * len(encoded) + MEGABYTE
    tracemalloc.stop()


RAW = b"\nexif\n%8d\n" % len(exif_of(6)) + exif_of(6).hex().encode() + b"\n"
XMP = b'<x tiff:Orientation="6"/>'


@pytest.mark.parametrize(
    "turning",
    [
        chunk(b"eXIf", exif_of(6)[6:]),
        chunk(b"tEXt", b"Raw profile type exif\0" + RAW),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(RAW)),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(XMP)),
    ],
)
def test_what_turns_a_png_is_kept(turning: bytes) -> None:
    image = EncodedImage(png_with(chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(5 * MEGABYTE))), turning))
    assert image.size == SIZE[::-1]
    np.testing.assert_array_equal(image.pixels()[..., :3], np.rot90(np.asarray(PICTURE), -1))


def test_a_jpeg_with_broken_and_with_sound_metadata_is_turned() -> None:
    encoded = jpeg_with((0xE1, exif_of(6)), (0xEE, b"Adobe"))
    assert EncodedImage(encoded).size == SIZE[::-1] == EncodedImage(encoded).pixels().shape[1::-1]


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "P"])
@pytest.mark.parametrize("default_image", [False, True])
@pytest.mark.parametrize("disposal, blend", [(0, 0), (1, 1), (2, 1)])
def test_an_animation_is_its_first_picture_as_in_pillow(
    mode: str, default_image: bool, disposal: int, blend: int
) -> None:
    alpha = Image.fromarray(np.asarray(PICTURE)[..., 0])
    frames = [Image.merge("RGBA", [*PICTURE.split(), alpha]).rotate(angle).convert(mode) for angle in (0, 90)]
    encoded = save(
        frames[0], save_all=True, append_images=frames[1:], default_image=default_image, disposal=disposal, blend=blend
    )
    assert b"acTL" in encoded
    with opened(encoded) as image, Image.open(io.BytesIO(encoded)) as expected:
        assert image.mode == expected.mode
        np.testing.assert_array_equal(np.asarray(image), np.asarray(expected))


@pytest.mark.parametrize("encoded", [PNG, JPEG, b"", PNG[:8], PNG[:24], PNG[:40], PNG[:-5]])
def test_nothing_to_take_away(encoded: bytes) -> None:
    assert without_metadata(encoded) == encoded


def test_more_transparency_than_a_palette_has_entries() -> None:
    plain = save(PICTURE.convert("P"))
    at = plain.index(b"IDAT") - 4
    encoded = plain[:at] + chunk(b"tRNS", bytes(300)) + plain[at:]
    np.testing.assert_array_equal(EncodedImage(encoded).pixels(), EncodedImage(plain).pixels())


def test_transparency_stays() -> None:
    encoded = save(Image.fromarray(RAMP), transparency=0)
    assert without_metadata(encoded) == encoded
    assert EncodedImage(encoded).pixels()[0, 0, 0] == 255


def test_limits_of_pixels_stay() -> None:
    huge = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    encoded = PNG[:8] + chunk(b"IHDR", huge) + chunk(b"iCCP", b"") + PNG[33:]
    for use in USES:
        with pytest.raises(UnusableRecord, match="^the image has 60000 x 60000 pixels, above the limit of 67,108,864$"):
            use(encoded)


@pytest.mark.parametrize("name", [b"IHDR", b"IDAT"])
def test_a_broken_critical_chunk_is_named(name: bytes) -> None:
    at = PNG.index(name)
    encoded = PNG[: at + 4] + b"\xff\xff\xff\xff" + PNG[at + 8 :]
    for use in USES:
        with pytest.raises(UnusableRecord, match="^the image cannot be decoded: "):
            use(encoded)


def test_pillows_warnings_do_not_come_between_the_lines_of_a_program() -> None:
    """In a process of its own, because pytest has its own way with warnings."""
    program = """
import io, sys
from PIL import Image
from r2d2_jax.data.image.transforms import evaluation_image
exif = Image.Exif()
exif[0x9286] = b"comment"
image, file = Image.new("RGB", (8, 8)), io.BytesIO()
image.save(file, "TIFF", exif=exif.tobytes()[:-4])
evaluation_image(file.getvalue(), 8)
"""
    done = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
