"""RandomAugment of the published fine-tuning code: two random operations out of ten, on uint8 [height width 4].

The channels are red, green, blue and an unused fourth: OpenCV takes half of the time for four channels.

The equations are those of the published code, which are Pillow's for the colours and OpenCV's for the geometry. Where
it lets bytes overflow (AutoContrast of a channel whose minimum is not 0, Sharpness above 1), this code clips them.
"""

from collections.abc import Callable

import cv2
import numpy as np

Operation = Callable[..., np.ndarray]

MAX_MAGNITUDE = 10.0  # the scale on which a magnitude is given
_OPERATIONS_PER_IMAGE = 2  # as all numbers below, from the published code
_PROBABILITY = 0.5
_GREY = (128, 128, 128, 128)  # fills pixels whose origin lies outside of the image
_LEVELS = np.arange(256)


def random_augment(pixels: np.ndarray, rng: np.random.Generator, magnitude: float) -> np.ndarray:
    """Draws two of the ten operations, with replacement, and applies each with probability 0.5.

    Args:
        pixels: uint8 [height width 4]; not changed.
        rng: draws both operations; then, for each, whether to apply it and, for an operation with a sign, the sign.
        magnitude: 0 to 10; 5 in the published code, where the factor of Brightness and Sharpness is exactly 1, so they
            change nothing.

    Returns:
        uint8 [height width 4].
    """
    for choice in rng.integers(len(OPERATIONS), size=_OPERATIONS_PER_IMAGE):
        if rng.random() < _PROBABILITY:
            pixels = _applied(OPERATIONS[choice], pixels, rng, magnitude / MAX_MAGNITUDE)
    return pixels


def _applied(operation: Operation, pixels: np.ndarray, rng: np.random.Generator, share: float) -> np.ndarray:
    if operation in _ENHANCING:
        return operation(pixels, share * 1.8 + 0.1)
    if operation in _LARGEST:
        sign = 1 if rng.random() < 0.5 else -1
        return operation(pixels, sign * share * _LARGEST[operation])
    return operation(pixels)


def identity(pixels: np.ndarray) -> np.ndarray:
    """Changes nothing."""
    return pixels


def auto_contrast(pixels: np.ndarray) -> np.ndarray:
    """Stretches each channel to 0 to 255: floor(255 (x - low) / (high - low)); a channel of one value stays."""
    return _by_channel(pixels, _stretching)


def _stretching(channel: np.ndarray) -> np.ndarray:
    low, high, *_ = cv2.minMaxLoc(channel)
    if low == high:
        return _LEVELS.astype(np.uint8)
    scale = 255.0 / (high - low)
    return (_LEVELS * scale - low * scale).clip(0, 255).astype(np.uint8)


def equalize(pixels: np.ndarray) -> np.ndarray:
    """Equalizes each channel's histogram h: floor((step // 2 + sum of h below x) / step).

    step = (number of pixels - those of the highest value) // 255; a channel with step 0 stays.
    """
    return _by_channel(pixels, _equalizing)


def _equalizing(channel: np.ndarray) -> np.ndarray:
    counts = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().astype(np.int64)
    step = (counts.sum() - counts[np.flatnonzero(counts)[-1]]) // 255
    if step == 0:
        return _LEVELS.astype(np.uint8)
    below = np.cumsum(counts) - counts
    return ((step // 2 + below) // step).clip(0, 255).astype(np.uint8)


def _by_channel(pixels: np.ndarray, table: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Maps each colour channel through the table that `table` makes of it."""
    *colours, fourth = cv2.split(pixels)
    return cv2.merge([*(cv2.LUT(channel, table(channel)) for channel in colours), fourth])


def brightness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """floor(factor x), at most 255."""
    if factor == 1.0:
        return pixels
    return cv2.LUT(pixels, (_LEVELS * factor).clip(0, 255).astype(np.uint8))


def sharpness(pixels: np.ndarray, factor: float) -> np.ndarray:
    """floor(s + factor (x - s)) in 0 to 255, s the mean of 3 x 3 pixels with the middle one five-fold; edges stay."""
    if factor == 1.0:
        return pixels
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    smooth = cv2.filter2D(pixels, -1, kernel / kernel.sum())[1:-1, 1:-1].astype(np.float32)
    sharp = pixels.copy()
    sharp[1:-1, 1:-1] = (smooth + factor * (pixels[1:-1, 1:-1] - smooth)).clip(0, 255)
    return sharp


def shear_x(pixels: np.ndarray, shear: float) -> np.ndarray:
    """Moves what is at (x, y) to (x + shear y, y)."""
    return _warped(pixels, [[1, shear, 0], [0, 1, 0]])


def shear_y(pixels: np.ndarray, shear: float) -> np.ndarray:
    """Moves what is at (x, y) to (x, y + shear x)."""
    return _warped(pixels, [[1, 0, 0], [shear, 1, 0]])


def rotate(pixels: np.ndarray, degrees: float) -> np.ndarray:
    """Turns anticlockwise about (width / 2, height / 2)."""
    height, width = pixels.shape[:2]
    return _warped(pixels, cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1))


def _warped(pixels: np.ndarray, matrix: list[list[float]] | np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    return cv2.warpAffine(pixels, np.asarray(matrix, np.float64), (width, height), borderValue=_GREY)


def translate_x(pixels: np.ndarray, offset: float) -> np.ndarray:
    """Moves to the left by the offset, rounded to whole pixels (our decision; the published magnitude gives whole)."""
    moved, whole = np.full_like(pixels, _GREY[0]), round(offset)
    kept = max(0, pixels.shape[1] - abs(whole))
    if whole > 0:
        moved[:, :kept] = pixels[:, whole:]
    else:
        moved[:, pixels.shape[1] - kept :] = pixels[:, :kept]
    return moved


def translate_y(pixels: np.ndarray, offset: float) -> np.ndarray:
    """Moves upwards by the offset, rounded to whole pixels."""
    return translate_x(pixels.swapaxes(0, 1), offset).swapaxes(0, 1)


_ENHANCING = (brightness, sharpness)
_LARGEST = {shear_x: 0.3, shear_y: 0.3, translate_x: 10.0, translate_y: 10.0, rotate: 30.0}  # either sign is drawn
OPERATIONS: tuple[Operation, ...] = (identity, auto_contrast, equalize, *_ENHANCING, *_LARGEST)
