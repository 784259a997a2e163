"""Crops, mirrors and squares: what is drawn, and that nothing of the image is lost on the way."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_data import encode

from r2d2_jax.data.image import transforms
from r2d2_jax.data.image.decoding import EncodedImage
from r2d2_jax.data.image.random_augment import random_augment
from r2d2_jax.data.image.resizing import cropped_and_resized
from r2d2_jax.data.image.transforms import draw_crop, evaluation_image, map_ahead, may_flip, reduction_for, train_image


def save(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def train(encoded: bytes, seed: int = 0, *, flip: bool = False, magnitude: float | None = None) -> np.ndarray:
    generator = np.random.default_rng(seed)
    return train_image(encoded, generator, image_size=32, crop_scale=(0.3, 1.0), flip=flip, magnitude=magnitude)


def difference(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.abs(left.astype(int) - right.astype(int))


def test_evaluation_squeezes_the_whole_image() -> None:
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    image.paste((0, 0, 255), (40, 0, 80, 40))
    pixels = evaluation_image(save(image), 16)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (16, 16, 3))
    assert (pixels[:, 0] == (255, 0, 0)).all()
    assert (pixels[:, -1] == (0, 0, 255)).all()
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("size", [(90, 70), (40, 30), (24, 24)])
def test_crop_and_resize_are_pillows(size: tuple[int, int]) -> None:
    encoded = save(photograph(size, 0))
    box = draw_crop(size, np.random.default_rng(3), (0.3, 1.0))
    cropped = Image.open(io.BytesIO(encoded)).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
    assert difference(train(encoded, 3), np.asarray(cropped)).max() <= 3


def photograph(size: tuple[int, int], seed: int) -> Image.Image:
    """Noise of all scales, weaker the finer: as smooth as a photograph."""
    rng, pixels, scale = np.random.default_rng(seed), np.full((size[1], size[0], 3), 128.0), 2
    while scale < max(size):
        noise = Image.fromarray(rng.integers(0, 256, (scale, scale, 3)).astype(np.uint8))
        pixels += (np.asarray(noise.resize(size, Image.Resampling.BICUBIC)) - 127.5) * 0.7 / scale**0.35
        scale *= 2
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_large_jpeg_decoded_small_looks_the_same(reduction: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Near the limit, where the image has 2.25 times the pixels that are needed: less than 1 of 255 on average."""
    for seed in range(3):
        encoded = save(photograph((96 * reduction, 72 * reduction), seed), "JPEG", quality=92)
        settings = {"image_size": 32, "crop_scale": (1.0, 1.0), "flip": False}
        small = train_image(encoded, np.random.default_rng(0), **settings)
        with monkeypatch.context() as patch:
            patch.setattr(transforms, "reduction_for", lambda side, resized_side: 1)
            exact = train_image(encoded, np.random.default_rng(0), **settings)
        assert (small != exact).any()
        assert difference(small, exact).mean() < 1


def test_real_photographs_decoded_small_look_the_same(shared: Path) -> None:
    """The finest detail there is: thumbnails, of which half the pixels are left out; less than 2 of 255 on average."""
    differences = []
    for path in sorted((shared / "data" / "howtocook_zh" / "images").glob("*.jpg"))[:40]:
        encoded = path.read_bytes()
        image = EncodedImage(encoded)
        side = min(image.size) // 4
        squares = [
            cropped_and_resized(pixels, (0, 0, *pixels.shape[1::-1]), (side, side))[..., :3]
            for pixels in (image.pixels(2), image.pixels())
        ]
        differences.append(difference(*squares).mean())
    assert np.mean(differences) < 2


@pytest.mark.parametrize(
    "side, reduction", [(1, 1), (127, 1), (128, 2), (255, 2), (256, 4), (511, 4), (512, 8), (9999, 8)]
)
def test_reduction_keeps_twice_the_pixels(side: int, reduction: int) -> None:
    assert reduction_for(side, 32) == reduction


def test_crops_stay_inside_and_have_the_right_share() -> None:
    rng = np.random.default_rng(0)
    boxes = np.array([draw_crop((400, 300), rng, (0.5, 1.0)) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 400).all()
    assert (bottom <= 300).all()
    width, height = right - left, bottom - top
    share, ratio = width * height / (400 * 300), width / height
    assert share.min() > 0.49
    assert 0.65 < share.mean() < 0.80
    assert ratio.min() > 0.74
    assert ratio.max() < 1.35


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (1, 1)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    left, top, right, bottom = draw_crop(size, np.random.default_rng(0), (0.9, 1.0))
    assert 0 <= left < right <= size[0]
    assert 0 <= top < bottom <= size[1]
    assert train(encode(size)).shape == (32, 32, 3)


def test_same_generator_same_image() -> None:
    encoded = encode((90, 70))
    np.testing.assert_array_equal(train(encoded, 1, flip=True), train(encoded, 1, flip=True))
    assert (train(encoded, 1) != train(encoded, 2)).any()


def test_mirrored_half_of_the_time() -> None:
    encoded = encode((64, 64), kind="PNG")
    mirrored = 0
    for seed in range(200):
        plain, maybe = train(encoded, seed), train(encoded, seed, flip=True)
        assert (maybe == plain).all() or (maybe == plain[:, ::-1]).all()
        mirrored += bool((maybe == plain[:, ::-1]).all())
    assert 75 < mirrored < 125


def test_random_operations_come_last() -> None:
    encoded = encode((64, 64), kind="PNG")
    changed = 0
    for seed in range(50):
        generator = np.random.default_rng(seed)
        mirrored = train_image(encoded, generator, image_size=32, crop_scale=(0.3, 1.0), flip=True)
        result = train(encoded, seed, flip=True, magnitude=5.0)
        padded = np.dstack([mirrored, np.zeros((32, 32), np.uint8)])
        np.testing.assert_array_equal(result, random_augment(padded, generator, 5.0)[..., :3])
        changed += bool((result != mirrored).any())
    assert 20 < changed < 45


def test_directions_forbid_mirroring() -> None:
    assert may_flip("一只狗")
    assert not may_flip("红球在左边")
    assert not may_flip("右侧的狗")


def test_map_ahead_keeps_the_order_and_can_be_left() -> None:
    assert list(map_ahead(lambda item: item * item, range(100))) == [item * item for item in range(100)]
    for item in map_ahead(str, iter(range(10**9))):
        if item == "5":
            break
