"""Each operation against an oracle written from its equation or against Pillow; and how operations are drawn."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from r2d2_jax.data.image import random_augment as module
from r2d2_jax.data.image.random_augment import OPERATIONS, random_augment

GREY = 128


def picture(seed: int = 0, low: int = 0, high: int = 256) -> np.ndarray:
    """Smooth random colours of 40 x 56 pixels, and a fourth channel of noise."""
    coarse = np.random.default_rng(seed).integers(low, high, (5, 7, 3)).astype(np.uint8)
    return with_noise(np.asarray(Image.fromarray(coarse).resize((56, 40), Image.Resampling.BICUBIC)))


def with_noise(rgb: np.ndarray) -> np.ndarray:
    return np.dstack([rgb, np.random.default_rng(0).integers(0, 256, rgb.shape[:2]).astype(np.uint8)])


def rgb(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels[..., :3])


def warp_oracle(pixels: np.ndarray, matrix: list[list[float]]) -> np.ndarray:
    """result(M p) = pixels(p), bilinear, grey outside; M is [2 3] and maps (x, y, 1)."""
    height, width = pixels.shape[:2]
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    source_x, source_y, _ = np.einsum("ij,jhw->ihw", inverse, np.stack([x, y, np.ones_like(x)]))
    padded = np.pad(pixels.astype(float), ((1, 1), (1, 1), (0, 0)), constant_values=GREY)
    left, top = np.floor(source_x).astype(int), np.floor(source_y).astype(int)

    def at(row: np.ndarray, column: np.ndarray) -> np.ndarray:
        return padded[np.clip(row + 1, 0, height + 1), np.clip(column + 1, 0, width + 1)]

    right_share, lower_share = (source_x - left)[..., None], (source_y - top)[..., None]
    upper = at(top, left) * (1 - right_share) + at(top, left + 1) * right_share
    lower = at(top + 1, left) * (1 - right_share) + at(top + 1, left + 1) * right_share
    return upper * (1 - lower_share) + lower * lower_share


def assert_close(result: np.ndarray, expected: np.ndarray) -> None:
    """OpenCV rounds positions to 1/32 pixel in some versions, so at steep edges (grey outside) more may differ."""
    assert result.dtype == np.uint8
    difference = np.abs(result.astype(float) - expected)
    assert difference.mean() < 0.5
    assert difference.max() < 8


@pytest.mark.parametrize("low, high", [(0, 256), (40, 200), (100, 103)])
def test_auto_contrast_and_equalize_are_pillows(low: int, high: int) -> None:
    pixels = picture(1, low, high)
    image = Image.fromarray(rgb(pixels))
    np.testing.assert_array_equal(rgb(module.auto_contrast(pixels)), np.asarray(ImageOps.autocontrast(image)))
    np.testing.assert_array_equal(rgb(module.equalize(pixels)), np.asarray(ImageOps.equalize(image)))


def test_a_single_colour_stays() -> None:
    plain = with_noise(np.full((30, 30, 3), (7, 0, 255), np.uint8))
    np.testing.assert_array_equal(module.auto_contrast(plain), plain)
    np.testing.assert_array_equal(module.equalize(plain), plain)


def test_auto_contrast_stretches_each_channel() -> None:
    pixels = picture(2, 60, 180)
    low, high = rgb(pixels).min((0, 1)).astype(float), rgb(pixels).max((0, 1)).astype(float)
    expected = (rgb(pixels) - low) * 255 / (high - low)
    result = rgb(module.auto_contrast(pixels))
    assert np.abs(result - expected).max() <= 1
    assert (result.min((0, 1)) == 0).all()


@pytest.mark.parametrize("factor", [0.1, 0.64, 1.0, 1.36, 1.9])
def test_brightness(factor: float) -> None:
    pixels = picture(3)
    np.testing.assert_array_equal(module.brightness(pixels, factor), np.minimum(np.floor(pixels * factor), 255))


@pytest.mark.parametrize("factor", [0.1, 0.64, 1.0, 1.36, 1.9])
def test_sharpness(factor: float) -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (20, 30, 4)).astype(np.uint8)
    padded = np.pad(pixels.astype(float), ((1, 1), (1, 1), (0, 0)))
    around = sum(padded[y : y + 20, x : x + 30] for y in range(3) for x in range(3))
    smooth = np.round((around + 4.0 * pixels) / 13)
    expected = pixels.astype(float)
    expected[1:-1, 1:-1] = np.clip(smooth + factor * (pixels - smooth), 0, 255)[1:-1, 1:-1]
    result = module.sharpness(pixels, factor)
    assert np.abs(result - expected).max() <= 1
    pillow = np.asarray(ImageEnhance.Sharpness(Image.fromarray(rgb(pixels))).enhance(factor))
    assert np.abs(rgb(result).astype(int) - pillow.astype(int)).max() <= 1


@pytest.mark.parametrize("shear", [-0.3, -0.15, 0.15])
def test_shear(shear: float) -> None:
    pixels = picture(5)
    assert_close(module.shear_x(pixels, shear), warp_oracle(pixels, [[1, shear, 0], [0, 1, 0]]))
    assert_close(module.shear_y(pixels, shear), warp_oracle(pixels, [[1, 0, 0], [shear, 1, 0]]))


@pytest.mark.parametrize("degrees", [-30.0, -15.0, 15.0])
def test_rotate(degrees: float) -> None:
    """Anticlockwise on the screen, where y points down: (x, y) - c -> (cos x + sin y, -sin x + cos y) + c."""
    pixels, angle = picture(6), np.deg2rad(degrees)
    turn, centre = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]), np.array([28, 20])
    matrix = np.column_stack([turn, centre - turn @ centre])
    assert_close(module.rotate(pixels, degrees), warp_oracle(pixels, matrix.tolist()))


@pytest.mark.parametrize("offset", [5.0, -5.0, 0.0, 2.4, 100.0, -100.0])
def test_translate(offset: float) -> None:
    pixels = picture(7)
    whole = round(offset)
    across, down = warp_oracle(pixels, [[1, 0, -whole], [0, 1, 0]]), warp_oracle(pixels, [[1, 0, 0], [0, 1, -whole]])
    np.testing.assert_array_equal(module.translate_x(pixels, offset), across)
    np.testing.assert_array_equal(module.translate_y(pixels, offset), down)


class Script:
    """A generator whose draws are written down: two operations, then numbers in [0, 1)."""

    def __init__(self, operations: tuple[str, str], *numbers: float) -> None:
        self.names, self.numbers = operations, list(numbers)

    def integers(self, high: int, size: int) -> list[int]:
        assert (high, size) == (10, 2)
        names = [operation.__name__ for operation in OPERATIONS]
        return [names.index(name) for name in self.names]

    def random(self) -> float:
        return self.numbers.pop(0)


def drawn(script: Any, magnitude: float = 5.0) -> np.ndarray:
    result = random_augment(picture(8), script, magnitude)
    assert script.numbers == []
    return result


def test_exactly_the_ten_published_operations() -> None:
    assert {operation.__name__ for operation in OPERATIONS} == {
        "identity",
        "auto_contrast",
        "equalize",
        "brightness",
        "sharpness",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
        "rotate",
    }


def test_operations_follow_one_another_and_each_may_be_left_out() -> None:
    pixels = picture(8)
    both = module.equalize(module.auto_contrast(pixels))
    np.testing.assert_array_equal(drawn(Script(("auto_contrast", "equalize"), 0.49, 0.49)), both)
    np.testing.assert_array_equal(drawn(Script(("auto_contrast", "equalize"), 0.5, 0.0)), module.equalize(pixels))
    np.testing.assert_array_equal(drawn(Script(("auto_contrast", "equalize"), 0.5, 0.5)), pixels)
    np.testing.assert_array_equal(drawn(Script(("identity", "identity"), 0.0, 0.0)), pixels)


@pytest.mark.parametrize(
    "name, size", [("shear_x", 0.15), ("shear_y", 0.15), ("translate_x", 5), ("translate_y", 5), ("rotate", 15)]
)
def test_published_magnitude_with_either_sign(name: str, size: float) -> None:
    operation, pixels = getattr(module, name), picture(8)
    for number, sign in ((0.49, 1), (0.5, -1)):
        result = drawn(Script((name, "identity"), 0.0, number, 0.9))
        np.testing.assert_array_equal(result, operation(pixels, sign * size))
        assert (result != pixels).any()


@pytest.mark.parametrize("name", ["brightness", "sharpness"])
def test_enhancing_changes_nothing_at_the_published_magnitude(name: str) -> None:
    pixels, operation = picture(8), getattr(module, name)
    np.testing.assert_array_equal(drawn(Script((name, "identity"), 0.0, 0.9)), pixels)
    for magnitude, factor in ((0.0, 0.1), (7.0, 1.36), (10.0, 1.9)):
        result = drawn(Script((name, "identity"), 0.0, 0.9), magnitude)
        np.testing.assert_array_equal(result, operation(pixels, factor))
        assert (result != pixels).any()


def test_all_operations_are_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of ten, twice an image, with probability 0.5: 0.1 times an image; one 40th of the images see it twice."""
    seen: Counter[Any] = Counter()

    def counted(operation: Any) -> Any:
        def count(pixels: np.ndarray) -> np.ndarray:
            seen[operation] += 1
            return pixels

        return count

    monkeypatch.setattr(module, "OPERATIONS", tuple(map(counted, OPERATIONS)))
    rng, images = np.random.default_rng(0), 10_000
    for _ in range(images):
        random_augment(np.zeros((1, 1, 4), np.uint8), rng, 5.0)
    assert len(seen) == 10
    for count in seen.values():
        assert abs(count - 0.1 * images) < 5 * np.sqrt(0.1 * images)


def test_same_generator_same_result_and_the_input_stays() -> None:
    pixels = picture(9)
    before = pixels.copy()
    for seed in range(50):
        first, second = (random_augment(pixels, np.random.default_rng(seed), 5.0) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        assert (first.shape, first.dtype) == (pixels.shape, np.uint8)
    np.testing.assert_array_equal(pixels, before)
