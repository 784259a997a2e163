"""What preparation keeps of a large image: its short side, upright, as a JPEG without metadata."""

import io

import numpy as np
import pytest
from PIL import Image
from small_data import encode

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.downsizing import downsized


def save(image: Image.Image, kind: str, **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


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
