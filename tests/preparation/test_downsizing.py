"""What preparation keeps of a large image: its short side, upright, as a JPEG without metadata."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_data import encode
from small_images import save, shown, turned_by

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.decoding import EncodedImage
from r2d2_jax.preparation.downsizing import downsized


def picture(size: tuple[int, int]) -> Image.Image:
    coarse = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def opened(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


def test_too_long_for_a_jpeg() -> None:
    strip = save(Image.new("RGB", (30, 40_000)), "PNG")
    with pytest.raises(UnusableRecord, match="^shrunk to 25 x 66667 pixels it is too long for a JPEG$"):
        downsized(save(Image.new("RGB", (30, 80_000)), "PNG"), 25, 90)
    assert opened(downsized(strip, 25, 90)).size == (25, 33_333)


@pytest.mark.parametrize("size", [(64, 48), (64, 64), (48, 300)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_small_enough_images_stay_as_they_are(kind: str, size: tuple[int, int]) -> None:
    encoded = encode(size, kind=kind)
    assert downsized(encoded, 64, 90) is encoded


@pytest.mark.parametrize(
    "size, expected",
    [
        ((300, 200), (96, 64)),
        ((200, 300), (64, 96)),
        ((130, 65), (128, 64)),
        ((1001, 333), (192, 64)),
        ((65, 65), (64, 64)),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_short_side_and_aspect_ratio(kind: str, size: tuple[int, int], expected: tuple[int, int]) -> None:
    result = opened(downsized(save(picture(size), kind), 64, 90))
    assert (result.format, result.mode, result.size) == ("JPEG", "RGB", expected)


@pytest.mark.parametrize("size", [(150, 120), (600, 480)])
def test_pixels_are_those_of_an_antialiased_resize(size: tuple[int, int]) -> None:
    image = picture(size)
    result = opened(downsized(save(image, "JPEG", quality=95), 60, 95))
    expected = image.resize((75, 60), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(result).astype(int) - np.asarray(expected).astype(int)).mean() < 2


def test_upright_without_metadata() -> None:
    image = picture((200, 100))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"  # shown after a quarter turn clockwise
    encoded = save(image, "JPEG", exif=exif, comment=b"a comment", icc_profile=b"0" * 200, quality=95)
    result = opened(downsized(encoded, 50, 95))
    assert result.size == (50, 100)
    assert set(result.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert not result.getexif()
    expected = image.transpose(Image.Transpose.ROTATE_270).resize((50, 100), Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(result).astype(int) - np.asarray(expected).astype(int)).mean() < 2


FORMATS: list[tuple[str, dict[str, Any]]] = [
    ("JPEG", {"quality": 95}),
    ("MPO", {"quality": 95}),
    ("PNG", {}),
    ("WEBP", {"lossless": True}),
    ("AVIF", {"quality": 95}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("TIFF", {"compression": "jpeg"}),
]


@pytest.mark.parametrize("kind, settings", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_format_keeps_its_shape_when_it_is_turned(kind: str, settings: dict[str, Any], orientation: int) -> None:
    stored = picture((102, 64))
    encoded = save(stored, kind, exif=turned_by(orientation), **settings)
    upright = Image.fromarray(np.ascontiguousarray(shown(np.asarray(stored), orientation)))
    image = EncodedImage(encoded)
    assert image.size == upright.size
    for reduction in (1, 2, 4, 8):
        pixels = image.pixels(reduction)
        fraction = reduction if kind in ("JPEG", "MPO") else 1
        assert pixels.shape[1::-1] == tuple(-(-side // fraction) for side in upright.size)
    for side in (64, 32):
        result = opened(downsized(encoded, side, 95))
        assert ImageOps.exif_transpose(result).size == tuple(pixels * side // 64 for pixels in upright.size)
        expected = np.asarray(upright.resize((16, 16))).astype(int)
        found = np.asarray(ImageOps.exif_transpose(result).convert("RGB").resize((16, 16)))
        assert np.abs(found - expected).mean() < 6


def test_a_turned_tiff_whose_short_side_is_that_of_the_result_is_not_shrunk() -> None:
    encoded = save(picture((102, 64)), "TIFF", exif=turned_by(6))
    assert downsized(encoded, 64, 90) is encoded
    assert opened(downsized(encoded, 32, 90)).size == (32, 51)


def test_transparent_becomes_white_and_grey_becomes_rgb() -> None:
    clear = opened(downsized(save(Image.new("RGBA", (90, 90), (255, 0, 0, 0)), "PNG"), 30, 95))
    assert np.asarray(clear).min() > 250
    grey = opened(downsized(save(Image.new("L", (90, 90), 77), "PNG"), 30, 95))
    assert grey.mode == "RGB"
    assert np.abs(np.asarray(grey).astype(int) - 77).max() <= 2


def test_quality_and_chroma() -> None:
    encoded = save(picture((400, 300)), "PNG")
    fine, coarse = downsized(encoded, 128, 95), downsized(encoded, 128, 40)
    assert len(coarse) < len(fine)
    assert opened(fine).layer[0][1:3] == (2, 2)  # luma is sampled twice as densely as chroma in both directions
    assert opened(coarse).quantization[0][0] > opened(fine).quantization[0][0]


def test_same_arguments_same_bytes() -> None:
    encoded = save(picture((400, 300)), "JPEG")
    assert downsized(encoded, 128, 88) == downsized(encoded, 128, 88)


@pytest.mark.parametrize("size", [(20, 20), (90, 70)])
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_images_are_refused_whether_small_or_large(kind: str, size: tuple[int, int]) -> None:
    encoded = encode(size, kind=kind)
    with pytest.raises(UnusableRecord, match="the image cannot be decoded: "):
        downsized(encoded[: len(encoded) * 2 // 3], 32, 90)
