"""From encoded bytes to upright RGB pixels; whatever is no complete image, or too large a one, is an UnusableRecord."""

import contextlib
import functools
import io
import threading
from collections.abc import Iterator

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, ImageOps

from r2d2_jax.data.bad_records import UnusableRecord

MAX_PIXELS = 2**26  # our decision: 8192 x 8192, up to 1 GiB while it is decoded; a few kilobytes can claim far more
# What the web and cameras have. Left out is what is no photograph or, as EPS, would be handed to another program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_ORIENTATION = ExifTags.Base.Orientation
_opening = threading.Lock()


@contextlib.contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """Reads an image's header, and turns whatever its decoder raises later into one kind of exception.

    Raises:
        UnusableRecord: the bytes are no image, not a complete one, or one of more than `MAX_PIXELS` pixels; the last is
            told by the header, before anything is decoded.
    """
    try:
        with _header(encoded) as image:
            _check_pixels(*image.size)
            yield image
    except (UnusableRecord, MemoryError):
        raise
    except Image.UnidentifiedImageError as error:
        # Pillow's own message names a memory address, which would differ from run to run.
        raise UnusableRecord(f"not an image: {len(encoded)} bytes in no known format") from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, ...
        raise UnusableRecord(f"the image cannot be decoded: {error}") from error


def _header(encoded: bytes) -> Image.Image:
    # Pillow's own limit would warn, or refuse without naming the size. It is a global, which others may rely on.
    with _opening:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(io.BytesIO(encoded), formats=_known_formats())
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@functools.cache
def _known_formats() -> list[str]:
    """Those that this Pillow was built with."""
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def orientation(image: Image.Image) -> int:
    """How the EXIF tag wants the image to be turned or mirrored: 2 to 8 of the EXIF standard; 1, as it is, without."""
    return image.getexif().get(_ORIENTATION, 1)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels once the image is turned as its EXIF tag says."""
    lies = orientation(image) in (5, 6, 7, 8)  # of the EXIF standard: on their side
    return (image.height, image.width) if lies else (image.width, image.height)


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turns the image as its EXIF tag says and makes it RGB; what is transparent becomes white (our decision)."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits a pixel, which a plain conversion would cut off instead of scaling
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")


class EncodedImage:
    """An image of which the header was read.

    Attributes:
        size: width and height in pixels, upright.
    """

    def __init__(self, encoded: bytes) -> None:
        """Reads the header.

        Raises:
            UnusableRecord: see `opened`.
        """
        self._encoded = encoded
        if size := _unmarked_jpeg_size(encoded):
            _check_pixels(*size)
            self.size, self._plain_jpeg = size, True
        else:
            with opened(encoded) as image:
                self.size = upright_size(image)
                self._plain_jpeg = (image.format, image.mode in ("RGB", "L"), orientation(image)) == ("JPEG", True, 1)

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """Decodes the image.

        Args:
            reduction: 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size; other formats are not reduced.

        Returns:
            uint8 [height width 4], upright: red, green, blue, and a byte that says nothing but lets the libraries work
            on whole words, a third faster; sizes that cannot be divided are rounded up.

        Raises:
            UnusableRecord: see `opened`.
        """
        width, height = self.size
        if self._plain_jpeg:
            # The same library and the same pixels as Pillow's, without its detour over four bytes a pixel.
            with contextlib.suppress(ValueError):  # Pillow knows better what is wrong, or whether it can be borne
                return simplejpeg.decode_jpeg(
                    self._encoded,
                    "RGBA",
                    min_height=height // reduction,
                    min_width=width // reduction,
                    min_factor=reduction,
                )
        with opened(self._encoded) as image:
            if reduction > 1:
                image.draft("RGB", (image.width // reduction, image.height // reduction))
            return np.asarray(upright_rgb(image).convert("RGBA"))


def _unmarked_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    # Most JPEGs carry nothing that could turn them (EXIF, XMP); then their header is read in a fraction of the time.
    if any(marker in encoded for marker in (b"Exif\0", b"http://ns.adobe.com/xap/")):
        return None
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError:
        return None
    return (width, height) if colours in ("YCbCr", "RGB", "Gray") else None


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UnusableRecord(f"the image has {width} x {height} pixels, above the limit of {MAX_PIXELS:,}")
