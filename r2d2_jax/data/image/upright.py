"""Makes upright RGB of a picture of any kind. Part of r2d2_jax, Apache-2.0.

This file depends on Pillow and NumPy alone. Every exported folder holds its code, within the image processor, so that
pictures are read there as they are in training.
"""

import struct

import numpy as np
from PIL import ExifTags, Image

_TURNS = {  # the EXIF tag, as EXIF 2.3 defines it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
BROKEN_METADATA = (SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, OSError, struct.error)
_SIXTEEN_BIT_FORMATS = ("PNG", "PPM", "JPEG2000")  # Pillow may have their 16 bits a pixel as 32-bit integers
_DARK = 16  # our decision: floats that reach beyond 1, but not as far as this, are of neither range


class UnreadablePixels(ValueError):
    """Pixels of more than 8 bits that cannot be read as they are meant."""


def orientation(image: Image.Image) -> int:
    """The EXIF tag, 1 to 8, that says how to turn or mirror the image; 1, not at all, where no valid tag is."""
    try:
        tag = image.getexif().get(ExifTags.Base.Orientation)
    except BROKEN_METADATA:
        return 1
    return next((known for known in _TURNS if known == tag), 1)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turns the image as its EXIF tag says and makes it RGB; the image itself stays as it is.

    Our decisions: transparent pixels become white, except in a BMP that would be nothing else: its writers, such as the
    clipboard of Windows, leave the fourth byte zero. 16 bits a pixel are scaled to 8. So are floats that lie within 0
    to 1; floats and 32-bit integers within 0 to 255 stay as they are, and such integers up to 65,535 count as 16 bits.

    Raises:
        UnreadablePixels: floats or 32-bit integers lie within no such range, or Pillow would misread them.
    """
    _check_planes(image)
    grey = _transparent_grey(image)
    _load(image)
    turn, is_bitmap = _TURNS.get(orientation(image)), image.format == "BMP"
    if image.mode[0] in "IF":
        image = _eight_bit_image(image, grey)
    elif grey is not None:
        image = image.copy()
        image.info["transparency"] = grey
    if turn is not None:
        image = image.transpose(turn)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        if not (is_bitmap and image.getchannel("A").getextrema() == (0, 0)):
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _check_planes(image: Image.Image) -> None:
    tags = getattr(image, "tag_v2", {})
    bits = tags.get(ExifTags.Base.BitsPerSample, (8,))
    plain, planar = tags.get(ExifTags.Base.Compression, 1) == 1, tags.get(ExifTags.Base.PlanarConfiguration) == 2
    if plain and planar and len(bits) > 1 and max(bits) > 8:
        raise UnreadablePixels(
            f"it is an uncompressed TIFF of {max(bits)} bits whose colours lie in planes of their own, which Pillow "
            "misreads; write it compressed, or as PNG"
        )


def _transparent_grey(image: Image.Image) -> int | None:
    """The grey that is transparent in a PNG of 2, 4 or 16 bits, in which Pillow would look for it in vain.

    It is scaled as the pixels will be, of which Pillow knows the bits only until it has decoded them.
    """
    grey = image.info.get("transparency")
    if not isinstance(grey, int) or image.format != "PNG":
        return None
    tiles = getattr(image, "tile", ())
    steps = {"L;2": 3, "L;4": 15}.get(tiles[0].args) if tiles else None
    return grey * 255 // steps if steps else grey if image.mode[0] == "I" else None


def _load(image: Image.Image) -> None:
    """Decodes the image; a TIFF turns itself then.

    Pillow would map an uncompressed TIFF into memory with width and height as they are once it is turned.
    """
    name = getattr(image, "filename", "")
    if image.format != "TIFF" or not name:
        image.load()
        return
    image.filename = ""  # type: ignore[attr-defined]
    try:
        image.load()
    finally:
        image.filename = name  # type: ignore[attr-defined]


def _eight_bit_image(image: Image.Image, transparent: int | None) -> Image.Image:
    eight = Image.fromarray(_eight_bits(image))
    if transparent is None:
        return eight
    mask = np.where(np.asarray(image) == transparent, 0, 255).astype(np.uint8)
    return Image.merge("LA", (eight, Image.fromarray(mask)))


def _eight_bits(image: Image.Image) -> np.ndarray:
    """uint8 [height width] of a greyscale image of more bits, which a plain conversion would cut off."""
    scaled = _scaled(image)
    # Zero is white in some TIFFs, which Pillow inverts only if they have 8 bits.
    inverted = getattr(image, "tag_v2", {}).get(ExifTags.Base.PhotometricInterpretation) == 0
    return 255 - scaled if inverted else scaled


def _scaled(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.mode == "F":
        return _floats_as_bytes(values)
    if image.mode == "I" and image.format not in _SIXTEEN_BIT_FORMATS:
        low, high = int(values.min()), int(values.max())
        if not 0 <= low <= high <= 65535:
            raise UnreadablePixels(
                f"its pixels are integers from {low:,} to {high:,}; expected a range within 0 to 255 or 0 to 65,535"
            )
        if high <= 255:
            return values.astype(np.uint8)
    return (values.clip(0, 65535) // 257).astype(np.uint8)


def _floats_as_bytes(values: np.ndarray) -> np.ndarray:
    low, high = float(values.min()), float(values.max())
    rounding = 1 / 255  # how far a resized image may lie outside of its range
    if -rounding <= low <= high <= 1 + rounding:
        values = values * 255
    elif not (low >= -1 and _DARK <= high <= 256):
        raise UnreadablePixels(
            f"its pixels are floats from {low:g} to {high:g}; expected a range within 0 to 1, or within 0 to 255 and "
            f"not below {_DARK} throughout"
        )
    return np.rint(values).clip(0, 255).astype(np.uint8)
