"""Finds images that were damaged after they were made although they can still be decoded: part of the picture is wrong.

Only two formats can tell. libjpeg warns of a JPEG whose codes do not come out even, and shows grey or shifted blocks;
damage that by chance leaves the codes even stays unseen. A PNG has checksums, at which no viewer looks. The pixels of
GIF, WebP, TIFF and JPEG 2000 have none: damage there either stops the decoder or cannot be seen.
"""

import simplejpeg

from r2d2_jax.data.image.jpeg import without_segments
from r2d2_jax.data.image.png import chunks

_JPEG_START = b"\xff\xd8\xff"
# How libjpeg's warnings begin (jerror.h), which simplejpeg raises.
_WARNINGS = ("Corrupt JPEG data:", "Premature end of JPEG file", "Inconsistent progression sequence")


def damage(encoded: bytes) -> str:
    """What is wrong with an image that can be decoded nevertheless; "" if nothing is, or if its format cannot tell."""
    if encoded.startswith(_JPEG_START):
        return _jpeg_warning(encoded)
    broken = [chunk.name.decode() for chunk in chunks(encoded) if chunk.critical and not chunk.intact(encoded)]
    return f"the checksum of {broken[0]} is wrong" if broken else ""


def _jpeg_warning(encoded: bytes) -> str:
    """libjpeg's last warning while it reads the pixels of a JPEG, at an eighth of its size."""
    pixels = without_segments(encoded)  # the library ends at the first warning, which may be of metadata
    try:
        colours = simplejpeg.decode_jpeg_header(pixels)[2]
        simplejpeg.decode_jpeg(
            pixels, "CMYK" if colours in ("CMYK", "YCCK") else "GRAY", min_height=1, min_width=1, min_factor=8
        )
    except (ValueError, KeyError) as error:  # some JPEGs this library cannot decode, but Pillow can
        return str(error) if str(error).startswith(_WARNINGS) else ""
    return ""
