"""Shrinking an image once, before it is stored."""

import io

from PIL import Image

from r2d2_jax.data.transforms import _opened, _upright_rgb, _upright_size


def downsized(encoded: bytes, short_side: int, quality: int) -> bytes:
    """Shrinks an image to a short side of so many pixels, as JPEG; one that is small enough stays as it is."""
    with _opened(encoded) as image:
        width, height = _upright_size(image)
        scale = short_side / min(width, height)
        image = _upright_rgb(image)
    if scale >= 1:
        return encoded
    file = io.BytesIO()
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    image.resize(size, Image.Resampling.LANCZOS).save(file, "JPEG", quality=quality)
    return file.getvalue()
