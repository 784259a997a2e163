"""Photographs as the page shows them: upright JPEGs of two sizes, made when they are first asked for.

The file itself is never sent. What is sent has no metadata, so no place where it was taken, and is an image whatever
the file holds.
"""

import io
import threading
from collections import OrderedDict

from PIL import Image

from r2d2_jax.data.image.decoding import EncodedImage
from r2d2_jax.data.image.transforms import reduction_for
from r2d2_jax.search.view import IndexView

SIDES = {"small": 512, "large": 1600}  # the longest side in pixels, in a ranking and by itself
_QUALITY = 85
_LARGEST_CACHE = 2**26  # bytes; about a thousand small ones


class Thumbnails:
    """Thumbnails of an index, the last ones in memory; several threads may ask."""

    def __init__(self, index: IndexView, largest_cache: int = _LARGEST_CACHE) -> None:
        """`largest_cache` is the most bytes that are kept."""
        self._index, self._largest = index, largest_cache
        self._kept: OrderedDict[tuple[bytes, str], bytes] = OrderedDict()
        self._bytes, self._lock = 0, threading.Lock()

    def jpeg(self, digest: bytes, size: str) -> bytes | None:
        """The picture of a digest as a JPEG file; None if the index has none, or its file is gone or has changed.

        Args:
            digest: of the content.
            size: a name of `SIDES`.
        """
        key = digest, size
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        encoded = self._index.picture(digest)
        if encoded is None:
            return None
        made = thumbnail(encoded, SIDES[size])
        self._keep(key, made)
        return made

    def _keep(self, key: tuple[bytes, str], made: bytes) -> None:
        with self._lock:
            self._bytes += len(made) - len(self._kept.pop(key, b""))  # another thread may have made it meanwhile
            self._kept[key] = made
            while self._bytes > self._largest:
                self._bytes -= len(self._kept.popitem(last=False)[1])


def thumbnail(encoded: bytes, side: int) -> bytes:
    """An image file as a JPEG file, upright, no side longer than `side`; a smaller one keeps its size.

    Raises:
        UnusableRecord: it cannot be decoded.
    """
    image = EncodedImage(encoded)
    pixels = image.pixels(reduction_for(max(image.size), side))
    picture = Image.fromarray(pixels[..., :3].copy())
    picture.thumbnail((side, side))
    picture.save(buffer := io.BytesIO(), "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
