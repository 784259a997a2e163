"""Pictures of more than eight bits a pixel are scaled by one rule, or refused; none becomes black."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from PIL import Image
from small_images import USES, save

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.decoding import EncodedImage
from r2d2_jax.data.image.transforms import evaluation_image, square_image

WAVE = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
BYTES = np.rint(WAVE * 255).astype(np.uint8)


def tiff(values: np.ndarray, photometric: int | None = None) -> bytes:
    return save(Image.fromarray(values), "TIFF", tiffinfo={} if photometric is None else {262: photometric})


def pfm(values: np.ndarray) -> bytes:
    return b"Pf\n8 8\n-1.0\n" + values[::-1].astype("<f4").tobytes()


@pytest.mark.parametrize("file", [tiff, pfm])
@pytest.mark.parametrize("values", [WAVE, WAVE * 255, WAVE * 1.006 - 0.003, WAVE * 256.5 - 0.75])
def test_floats(file: Callable[[np.ndarray], bytes], values: np.ndarray) -> None:
    encoded = file(values)
    for use in USES:
        use(encoded)
    for pixels in (evaluation_image(encoded, 8), EncodedImage(encoded).pixels()[..., :3]):
        assert np.abs(pixels.astype(int) - BYTES[..., None]).max() <= 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.arange(64).reshape(8, 8), np.arange(64).reshape(8, 8)),
        (np.arange(64).reshape(8, 8) * 1000, np.arange(64).reshape(8, 8) * 1000 // 257),
    ],
)
def test_32_bit_integers(values: np.ndarray, expected: np.ndarray) -> None:
    np.testing.assert_array_equal(evaluation_image(tiff(values.astype(np.int32)), 8)[..., 0], expected)


@pytest.mark.parametrize("order", ["<u2", ">u2"])
def test_16_bits_in_either_order(order: str) -> None:
    values = (np.arange(64).reshape(8, 8) * 1000).astype(order)
    image = Image.frombytes("I;16B" if order == ">u2" else "I;16", (8, 8), values.tobytes())
    np.testing.assert_array_equal(square_image(image, 8)[..., 0], values // 257)


def test_a_dark_picture_of_16_bits_stays_dark() -> None:
    dark = b"P5 8 8 65535\n" + np.full((8, 8), 200, ">u2").tobytes()
    assert evaluation_image(dark, 8).max() == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.full((8, 8), np.nan), "floats from nan to nan"),
        (np.where(WAVE > 0.5, np.inf, 0), "floats from 0 to inf"),
        (WAVE * 10 - 5, "floats from -5 to 5"),
        (WAVE * 3, "floats from 0 to 3"),
        (WAVE * 65535, "floats from 0 to 65535"),
    ],
)
def test_floats_of_no_known_range_are_refused(values: np.ndarray, message: str) -> None:
    encoded = tiff(values.astype(np.float32))
    for use in USES:
        with pytest.raises(
            UnusableRecord,
            match=f"^its pixels are {message}; expected a range within 0 to 1, or within 0 to 255 and not below 16",
        ):
            use(encoded)


@pytest.mark.parametrize("low, high", [(-5, 255), (0, 2**31 - 1)])
def test_integers_of_no_known_range_are_refused(low: int, high: int) -> None:
    encoded = tiff(np.linspace(low, high, 64).astype(np.int32).reshape(8, 8))
    for use in USES:
        with pytest.raises(
            UnusableRecord, match=f"^its pixels are integers from {low:,} to {high:,}; expected a range"
        ):
            use(encoded)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_that_pillow_cannot_read_are_named_so(kind: type) -> None:
    values = np.random.default_rng(0).random((8, 8, 3)).astype(kind)
    encoded = cv2.imencode(".tiff", values, [cv2.IMWRITE_TIFF_COMPRESSION, 1])[1].tobytes()
    for use in USES:
        with pytest.raises(UnusableRecord, match="^the image cannot be decoded: unknown pixel mode$"):
            use(encoded)


def test_the_callers_picture_stays_as_it_is() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(io.BytesIO(save(Image.new("RGB", (102, 64)), "JPEG", exif=exif)))
    before = image.size, image.getexif()[0x0112]
    square_image(image, 8)
    assert (image.size, image.getexif()[0x0112]) == before == ((102, 64), 6)


@pytest.mark.parametrize("values", [BYTES.astype(np.uint16) * 257, WAVE])
def test_tiffs_in_which_zero_is_white(values: np.ndarray) -> None:
    encoded = tiff(values, photometric=0)
    pixels = evaluation_image(encoded, 8)[..., 0].astype(int)
    assert np.abs(pixels - (255 - BYTES.astype(int))).max() <= 1
