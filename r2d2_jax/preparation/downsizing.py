"""Shrinks images once, when a dataset is prepared, so that every epoch reads and decodes less."""

import importlib.metadata
import io

import numpy as np
from PIL import Image

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image import resizing
from r2d2_jax.data.image.decoding import EncodedImage
from r2d2_jax.data.image.resizing import cropped_and_resized
from r2d2_jax.data.image.transforms import reduction_for, verify_image

_JPEG_SIDE = 65_500  # pixels; the limit of libjpeg


def libraries() -> dict[str, str]:
    """Name -> version of each library on which the bytes of `downsized` depend."""
    names = ["pillow", "simplejpeg", *(["cykooz-resizer"] if resizing.cykooz_resizer else [])]
    return {name: importlib.metadata.version(name) for name in names}


def downsized(encoded: bytes, short_side: int, quality: int) -> bytes:
    """Makes a smaller JPEG of an image whose short side is longer than `short_side`; returns others unchanged.

    The smaller image keeps the aspect ratio to the next pixel. It is upright, RGB, without metadata, and has chroma at
    half resolution (4:2:0, as most photographs of the web already; our decision).

    Args:
        encoded: a JPEG, PNG, ... file's bytes.
        short_side: the short side to make, in pixels.
        quality: of the JPEG, 1 to 95.

    Returns:
        The JPEG's bytes, the same for the same arguments; or `encoded` itself.

    Raises:
        UnusableRecord: the image cannot be decoded, which is tried in any case, see `opened`; or the smaller image is
            too long for a JPEG.
    """
    image = EncodedImage(encoded)
    width, height = image.size
    shorter = min(image.size)
    if shorter <= short_side:
        verify_image(encoded)
        return encoded
    pixels = image.pixels(reduction_for(shorter, short_side))
    size = (round(width * short_side / shorter), round(height * short_side / shorter))
    if max(size) > _JPEG_SIDE:
        raise UnusableRecord(f"shrunk to {size[0]} x {size[1]} pixels it is too long for a JPEG")
    resized = cropped_and_resized(pixels, (0, 0, pixels.shape[1], pixels.shape[0]), size)
    return _jpeg(resized[..., :3], quality)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality, subsampling="4:2:0", optimize=True)
    return file.getvalue()
