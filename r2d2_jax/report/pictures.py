"""Pictures within the page: everything that is shown is a data: URI, so the file needs nothing beside it."""

import base64
import functools
import io
from collections.abc import Callable

from PIL import Image

from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.data.image.decoding import opened, upright_rgb

LARGEST_SIDE = 224  # pixels of a picture in the page
QUALITY = 82  # of JPEG


def data_uri(file: bytes, kind: str) -> str:
    """A file as a URI that holds it; kind is such as "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode('ascii')}"


def picture_of(file: bytes) -> Image.Image:
    """An image file upright in its own shape, no side longer than LARGEST_SIDE.

    Raises:
        UnusableRecord: it cannot be decoded.
    """
    with opened(file) as image:
        picture = upright_rgb(image)
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    return picture


def picture_uri(file: bytes) -> str:
    """An image file, made smaller, as PNG or JPEG: drawings are smaller as the one, photographs as the other.

    Raises:
        UnusableRecord: it cannot be decoded.
    """
    picture = picture_of(file)
    written = {}
    for kind in ("png", "jpeg"):
        picture.save(buffer := io.BytesIO(), kind, quality=QUALITY, optimize=True)  # each reads what it knows
        written[kind] = buffer.getvalue()
    kind = min(written, key=lambda each: len(written[each]))
    return data_uri(written[kind], kind)


def uris_of(split: EvaluationSplit) -> Callable[[int], str]:
    """A function from the position of an image in the split to its URI; each is made once."""
    return functools.cache(lambda image: picture_uri(split.picture(image)))
