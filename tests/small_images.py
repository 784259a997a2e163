"""Small image files of every kind, and all that is done with a file."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

from r2d2_jax.data.image.transforms import evaluation_image, train_image, verify_image
from r2d2_jax.preparation.downsizing import downsized

RAMP = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


def save(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    """The image as a file's bytes."""
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def train(encoded: bytes) -> np.ndarray:
    """The whole image as in training, in 8 x 8 pixels."""
    generator = np.random.default_rng(0)
    return train_image(encoded, generator, image_size=8, crop_scale=(1.0, 1.0), flip=False)


def shown(stored: np.ndarray, orientation: int) -> np.ndarray:
    """What is seen of stored pixels [h w ...]: the tag says on which sides their row 0 and column 0 are (EXIF 2.3)."""
    return {
        1: stored,
        2: stored[:, ::-1],
        3: stored[::-1, ::-1],
        4: stored[::-1],
        5: stored.swapaxes(0, 1),
        6: stored[::-1].swapaxes(0, 1),
        7: stored[::-1, ::-1].swapaxes(0, 1),
        8: stored[:, ::-1].swapaxes(0, 1),
    }[orientation]


def turned_by(orientation: int) -> Image.Exif:
    """An EXIF with this tag alone."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def png_header(width: int, height: int, *, checksum: int | None = None) -> bytes:
    """A PNG file that ends after its header."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", checksum or zlib.crc32(chunk))


USES: list[Callable[[bytes], object]] = [
    verify_image,
    train,
    lambda image: evaluation_image(image, 8),
    lambda image: downsized(image, 4, 90),
]
