"""From encoded image bytes to square uint8 arrays; pure functions with an explicit random generator."""

import collections
import concurrent.futures
import contextlib
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image, ImageOps

from r2d2_jax.data.records import UnusableRecord

Item = TypeVar("Item")
Result = TypeVar("Result")

CROP_ASPECT_RATIO = (3 / 4, 4 / 3)  # of the published code's RandomResizedCrop
_CROP_ATTEMPTS = 10  # the same
_DRAFT_MARGIN = 2  # our decision: JPEGs are decoded at reduced size only while a crop keeps twice the pixels it needs
_DIRECTIONS = "左右"
_THREADS = min(8, os.cpu_count() or 1)


def train_image(
    encoded: bytes,
    rng: np.random.Generator,
    *,
    image_size: int,
    crop_scale: tuple[float, float],
    flip: bool,
) -> np.ndarray:
    """Random resized crop, then a horizontal mirror with probability 0.5.

    Args:
        encoded: a JPEG, PNG, ... file's bytes.
        rng: draws the crop and the mirror, in this order.
        image_size: side of the result in pixels.
        crop_scale: range of the crop's share of the image's area, in (0, 1].
        flip: whether the image may be mirrored.

    Returns:
        uint8 [image_size image_size 3].

    Raises:
        UnusableRecord: the bytes are not a complete image.
    """
    with _opened(encoded) as image:
        width, height = _upright_size(image)
        box = draw_crop((width, height), rng, crop_scale)
        _decode_smaller(image, min(box[2] - box[0], box[3] - box[1]), image_size)
        image = _upright_rgb(image)
        stretch = (image.width / width, image.height / height) * 2
        left, top, right, bottom = (edge * factor for edge, factor in zip(box, stretch, strict=True))
        box_here = (left, top, min(right, image.width), min(bottom, image.height))
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box_here)
    pixels = np.asarray(image)
    if flip and rng.random() < 0.5:
        pixels = pixels[:, ::-1]
    return np.ascontiguousarray(pixels)


def evaluation_image(encoded: bytes, image_size: int) -> np.ndarray:
    """Bicubic resize of the whole image to a square, as in the published evaluation (no centre crop).

    Returns:
        uint8 [image_size image_size 3].

    Raises:
        UnusableRecord: the bytes are not a complete image.
    """
    with _opened(encoded) as image:
        return square_image(image, image_size)


def square_image(image: Image.Image, image_size: int) -> np.ndarray:
    """The same of an image that is open; returns uint8 [image_size image_size 3]."""
    return np.asarray(_upright_rgb(image).resize((image_size, image_size), Image.Resampling.BICUBIC))


def verify_image(encoded: bytes) -> None:
    """Decodes the whole image to see that nothing is missing (a JPEG at an eighth of its size, which reads all of it).

    Raises:
        UnusableRecord: the bytes are not a complete image.
    """
    with _opened(encoded) as image:
        image.draft(None, (1, 1))
        image.load()


def may_flip(caption: str) -> bool:
    """Whether a mirrored image still agrees with its caption: not if the caption says left or right (左, 右)."""
    return not any(direction in caption for direction in _DIRECTIONS)


def draw_crop(
    size: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float]
) -> tuple[int, int, int, int]:
    """Draws a crop whose area share is uniform in `scale` and whose aspect ratio is log-uniform in 3/4 to 4/3.

    Args:
        size: width and height of the image in pixels.
        scale: range of the area share.

    Returns:
        left, top, right, bottom in pixels; the largest central crop within the aspect ratios if ten draws fit nowhere.
    """
    width, height = size
    log_ratio = np.log(CROP_ASPECT_RATIO)
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(*log_ratio))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = max(1, min(width, round(height * CROP_ASPECT_RATIO[1])))
    crop_height = max(1, min(height, round(width / CROP_ASPECT_RATIO[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Maps in threads, in order, a few items ahead of the consumer; image decoders run outside Python's lock."""
    pool = concurrent.futures.ThreadPoolExecutor(_THREADS)
    pending: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > 4 * _THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _opened(encoded: bytes) -> Iterator[Image.Image]:
    """Opens an image and turns whatever its decoder raises into one kind of exception."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            yield image
    except Image.UnidentifiedImageError as error:
        # Pillow's own message names a memory address, which would differ from run to run.
        raise UnusableRecord(f"not an image: {len(encoded)} bytes in no known format") from error
    except Exception as error:  # decoders raise OSError, ValueError, SyntaxError, struct.error, ...
        raise UnusableRecord(f"the image cannot be decoded: {error}") from error


def _decode_smaller(image: Image.Image, crop_side: int, image_size: int) -> None:
    """Lets the JPEG decoder leave out detail that the crop's resize would only throw away; others are left alone."""
    reduction = crop_side // (image_size * _DRAFT_MARGIN)
    if reduction > 1:
        image.draft("RGB", (image.width // reduction, image.height // reduction))


def _upright_size(image: Image.Image) -> tuple[int, int]:
    # Orientations 5 to 8 of the EXIF standard lie on their side.
    lies = image.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8)
    return (image.height, image.width) if lies else (image.width, image.height)


def _upright_rgb(image: Image.Image) -> Image.Image:
    """Turns the image as its EXIF tag says and makes it RGB; what is transparent becomes white (our decision)."""
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode.startswith("I"):  # 16 bits a pixel, which a plain conversion would cut off instead of scaling
        return Image.fromarray((np.asarray(image).clip(0, 65535) // 257).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    return image.convert("RGB")
