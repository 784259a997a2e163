"""From encoded image bytes to square uint8 arrays; pure functions with an explicit random generator."""

import collections
import concurrent.futures
import math
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import cv2
import numpy as np
from PIL import Image

from r2d2_jax.cores import allowed_cores
from r2d2_jax.data.image.decoding import EncodedImage, opened, upright_rgb
from r2d2_jax.data.image.random_augment import random_augment
from r2d2_jax.data.image.resizing import cropped_and_resized

Item = TypeVar("Item")
Result = TypeVar("Result")

CROP_ASPECT_RATIO = (3 / 4, 4 / 3)  # of the published code's RandomResizedCrop
_LOG_ASPECT_RATIO = (math.log(CROP_ASPECT_RATIO[0]), math.log(CROP_ASPECT_RATIO[1]))
_CROP_ATTEMPTS = 10  # the same
_REDUCTION_MARGIN = 2  # our decision: a JPEG decoded at reduced size keeps at least twice the needed side
_DIRECTIONS = "左右"
_THREADS = min(8, allowed_cores())


def train_image(
    encoded: bytes,
    rng: np.random.Generator,
    *,
    image_size: int,
    crop_scale: tuple[float, float],
    flip: bool,
    magnitude: float | None = None,
) -> np.ndarray:
    """Random resized crop, then a horizontal mirror with probability 0.5, then perhaps `random_augment`.

    The crop is resized with Pillow's bicubic filter, antialiased (see `cropped_and_resized` for how exactly).

    Args:
        encoded: a JPEG, PNG, ... file's bytes.
        rng: draws the crop (see `draw_crop`), the mirror if `flip`, and the operations, in this order.
        image_size: side of the result in pixels.
        crop_scale: range of the crop's share of the image's area, in (0, 1].
        flip: whether the image may be mirrored.
        magnitude: the magnitude of `random_augment`, 0 to 10; None leaves it out.

    Returns:
        uint8 [image_size image_size 3].

    Raises:
        UnusableRecord: see `opened`.
    """
    image = EncodedImage(encoded)
    width, height = image.size
    left, top, right, bottom = draw_crop(image.size, rng, crop_scale)
    pixels = image.pixels(reduction_for(min(right - left, bottom - top), image_size))
    across, down = pixels.shape[1] / width, pixels.shape[0] / height
    box = (left * across, top * down, right * across, bottom * down)
    pixels = cropped_and_resized(pixels, box, (image_size, image_size))
    if flip and rng.random() < 0.5:
        pixels = cv2.flip(pixels, 1)
    if magnitude is not None:
        pixels = random_augment(pixels, rng, magnitude)
    return cv2.cvtColor(pixels, cv2.COLOR_RGBA2RGB)


def evaluation_image(encoded: bytes, image_size: int) -> np.ndarray:
    """Resizes the whole image to a square, bicubically, as the published evaluation does (no centre crop).

    Returns:
        uint8 [image_size image_size 3].

    Raises:
        UnusableRecord: see `opened`.
    """
    with opened(encoded) as image:
        return square_image(image, image_size)


def square_image(image: Image.Image, image_size: int) -> np.ndarray:
    """`evaluation_image` of an open image; returns uint8 [image_size image_size 3]."""
    return np.asarray(upright_rgb(image).resize((image_size, image_size), Image.Resampling.BICUBIC))


def verify_image(encoded: bytes) -> None:
    """Checks that the image is complete by decoding it (a JPEG at an eighth of its size, which reads all bytes).

    Raises:
        UnusableRecord: see `opened`.
    """
    with opened(encoded) as image:
        image.draft(None, (1, 1))
        image.load()
        if image.mode in ("F", "I") or image.format == "TIFF":
            upright_rgb(image)  # which may refuse values out of range, or planes


def may_flip(caption: str) -> bool:
    """Whether the mirrored image still matches its caption: not if the caption says left or right (左, 右)."""
    return not any(direction in caption for direction in _DIRECTIONS)


def reduction_for(side: int, resized_side: int) -> int:
    """The largest reduction of a JPEG, 1, 2, 4 or 8, when `side` pixels will become `resized_side`."""
    return max(
        reduction
        for reduction in (1, 2, 4, 8)
        if reduction == 1 or side >= reduction * resized_side * _REDUCTION_MARGIN
    )


def draw_crop(size: tuple[int, int], rng: np.random.Generator, scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """Draws a crop whose area share is uniform in `scale` and whose aspect ratio is log-uniform in 3/4 to 4/3.

    Args:
        size: width and height of the image in pixels.
        scale: range of the area share.

    Returns:
        left, top, right, bottom in pixels; if ten draws do not fit, the largest central crop within the aspect ratios.
    """
    width, height = size
    for _ in range(_CROP_ATTEMPTS):
        area = width * height * _uniform(rng, scale)
        ratio = math.exp(_uniform(rng, _LOG_ASPECT_RATIO))
        crop_width, crop_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(rng.integers(width - crop_width + 1))
            top = int(rng.integers(height - crop_height + 1))
            return left, top, left + crop_width, top + crop_height
    crop_width = max(1, min(width, round(height * CROP_ASPECT_RATIO[1])))
    crop_height = max(1, min(height, round(width / CROP_ASPECT_RATIO[0])))
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    return left, top, left + crop_width, top + crop_height


def _uniform(rng: np.random.Generator, bounds: tuple[float, float]) -> float:
    # Draws the same number as the generator's own `uniform`, in a fifth of the time.
    return bounds[0] + (bounds[1] - bounds[0]) * rng.random()


def map_ahead(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """Maps in threads, in order, a few items ahead of the consumer; image decoders release Python's lock."""
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
