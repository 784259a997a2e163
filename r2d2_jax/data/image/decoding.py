"""From encoded bytes to upright RGB pixels; an image that is incomplete or too large raises UnusableRecord.

What is wrong with metadata makes no image unusable: a profile or text of any size, a broken EXIF. It costs no memory
beyond the file's own, either. AVIF is an exception: its library refuses a file with a broken EXIF.
"""

import contextlib
import functools
import io
import struct
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import simplejpeg
from PIL import ExifTags, Image, TiffImagePlugin

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image import upright
from r2d2_jax.data.image.jpeg import with_less_metadata
from r2d2_jax.data.image.png import without_metadata
from r2d2_jax.data.image.upright import BROKEN_METADATA, orientation
from r2d2_jax.errors import first_line
from r2d2_jax.paths import LFS_POINTER

# Here, because every process that decodes imports this: Pillow warns of metadata that is broken or that a conversion
# drops, without saying which file it was, between the lines of a program.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

MAX_PIXELS = 2**26  # our decision: 8192 x 8192, up to 1 GiB while it is decoded; a file of a few kB can claim far more
# The formats of cameras and the web. The others are no photographs; Pillow hands an EPS to another program.
FORMATS = ("JPEG", "MPO", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# What photographs also come in; four bytes of length stand before the first two.
_UNREAD_FORMATS = {b"ftyphe": "HEIC", b"JXL ": "JPEG XL", b"\xff\x0a": "JPEG XL"}
_PREFIX_BYTES = 16  # as many as Pillow shows to a format to find out whether the file is of it


@contextlib.contextmanager
def opened(encoded: bytes) -> Iterator[Image.Image]:
    """Reads an image's header, and turns everything that its decoder raises later into one kind of exception.

    Raises:
        UnusableRecord: the bytes are no image, or an incomplete one, or the header claims more than `MAX_PIXELS`
            pixels; the last is checked before anything is decoded.
    """
    with decoder_errors(), _header(without_metadata(encoded)) as image:
        _check_pixels(*image.size)
        yield image


@contextlib.contextmanager
def decoder_errors() -> Iterator[None]:
    """Makes an UnusableRecord of whatever Pillow and its decoders raise about an image."""
    try:
        yield
    except (UnusableRecord, MemoryError):
        raise
    except Image.DecompressionBombError as error:  # some formats check Pillow's limit, a higher one, while they open
        raise UnusableRecord(f"the image has more pixels than the limit of {MAX_PIXELS:,}") from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, ...
        raise UnusableRecord(f"the image cannot be decoded: {first_line(error)}") from error


def _header(encoded: bytes) -> Image.Image:
    unreadable = (UnusableRecord, *BROKEN_METADATA)
    try:
        return _pillows_header(encoded)
    except unreadable:
        for bare in with_less_metadata(encoded):
            with contextlib.suppress(*unreadable):
                return _pillows_header(bare)
        raise


def _pillows_header(encoded: bytes) -> Image.Image:
    """What `Image.open` returns, without its limit: a global, which warns, or refuses without naming the size."""
    prefix, reason = encoded[:_PREFIX_BYTES], None
    for read_header, accepts in _known_formats():
        accepted = accepts is None or accepts(prefix)
        if accepted and not isinstance(accepted, str):  # a text says why this Pillow cannot read the format
            try:
                return read_header(io.BytesIO(encoded), "")
            except (SyntaxError, IndexError, TypeError, struct.error) as error:  # another format, says Pillow
                reason = error
    if reason:
        raise UnusableRecord(f"the image cannot be decoded: {first_line(reason)}") from reason
    if encoded.startswith(LFS_POINTER):
        raise UnusableRecord("not an image but a Git LFS pointer, which stands for one; run `git lfs pull`")
    for start, name in _UNREAD_FORMATS.items():
        if encoded.startswith(start) or encoded[4:].startswith(start):
            raise UnusableRecord(f"the image is {name}, which is not read here; convert it to JPEG or PNG")
    raise UnusableRecord(f"not an image: {len(encoded)} bytes in no known format")


@functools.cache
def _known_formats() -> list[tuple[Callable[..., Image.Image], Callable[[bytes], bool | str] | None]]:
    """How Pillow reads the header of each format that it was built with, and how it recognises the format."""
    Image.init()
    return [Image.OPEN[name] for name in FORMATS if name in Image.OPEN]


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Width and height in pixels, once it is turned as its EXIF tag says, of an image whose pixels are not yet read."""
    width, height = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):  # whose `size` is turned already, in some versions of Pillow
        width, height = image.tag_v2[ExifTags.Base.ImageWidth], image.tag_v2[ExifTags.Base.ImageLength]
    return (height, width) if orientation(image) in (5, 6, 7, 8) else (width, height)


def upright_rgb(image: Image.Image) -> Image.Image:
    """`upright.upright_rgb`, for records.

    Raises:
        UnusableRecord: pixels of more than 8 bits lie within no known range, or would be misread.
    """
    try:
        return upright.upright_rgb(image)
    except upright.UnreadablePixels as error:
        raise UnusableRecord(str(error)) from error


class EncodedImage:
    """An image whose header has been read; a PNG is decoded with it.

    Attributes:
        size: width and height in pixels, upright.
    """

    def __init__(self, encoded: bytes) -> None:
        """Reads the header.

        Raises:
            UnusableRecord: see `opened`.
        """
        self._encoded = encoded
        self._upright: Image.Image | None = None
        self._plain_jpeg = False
        if size := _unmarked_jpeg_size(encoded):
            _check_pixels(*size)
            self.size, self._plain_jpeg = size, True
        else:
            with opened(encoded) as image:
                if image.format == "PNG":  # which Pillow decodes to find its orientation
                    self._upright = upright_rgb(image)
                    self.size = self._upright.size
                    return
                self.size = upright_size(image)
                self._plain_jpeg = (image.format, image.mode in ("RGB", "L"), orientation(image)) == ("JPEG", True, 1)

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """Decodes the image.

        Args:
            reduction: 1, 2, 4 or 8: a JPEG is decoded at this fraction of its size; other formats are not reduced.

        Returns:
            uint8 [height width 4], upright: red, green, blue and an unused fourth byte (4-byte pixels run a third
            faster). A reduced size is rounded up.

        Raises:
            UnusableRecord: see `opened`.
        """
        width, height = self.size
        if self._plain_jpeg:
            # The library that Pillow uses, and the same pixels, without a copy.
            with contextlib.suppress(ValueError):  # Pillow then says what is wrong, or decodes the image nevertheless
                return simplejpeg.decode_jpeg(
                    self._encoded,
                    "RGBA",
                    min_height=height // reduction,
                    min_width=width // reduction,
                    min_factor=reduction,
                )
        if self._upright:
            return np.asarray(self._upright.convert("RGBA"))
        with opened(self._encoded) as image:
            if reduction > 1:
                image.draft("RGB", (image.width // reduction, image.height // reduction))
            return np.asarray(upright_rgb(image).convert("RGBA"))


def _unmarked_jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    # Most JPEGs have no EXIF and no XMP that could turn them; reading their header so takes a fraction of the time.
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
