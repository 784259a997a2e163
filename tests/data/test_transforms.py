"""Images of every kind become upright RGB squares; what is no image is named as such."""

import io

import numpy as np
import pytest
from PIL import Image
from small_data import encode

from r2d2_jax.data.records import UnusableRecord
from r2d2_jax.data.transforms import draw_crop, evaluation_image, map_ahead, may_flip, train_image, verify_image


def save(image: Image.Image, kind: str = "PNG", **settings: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **settings)
    return file.getvalue()


def train(encoded: bytes, seed: int = 0, *, flip: bool = False, scale: tuple[float, float] = (0.3, 1.0)) -> np.ndarray:
    return train_image(encoded, np.random.default_rng(seed), image_size=32, crop_scale=scale, flip=flip)


def test_evaluation_squeezes_the_whole_image() -> None:
    image = Image.new("RGB", (80, 40), (255, 0, 0))
    image.paste((0, 0, 255), (40, 0, 80, 40))
    pixels = evaluation_image(save(image), 16)
    assert (pixels.dtype, pixels.shape) == (np.uint8, (16, 16, 3))
    assert (pixels[:, 0] == (255, 0, 0)).all()
    assert (pixels[:, -1] == (0, 0, 255)).all()
    expected = np.asarray(image.resize((16, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(pixels, expected)


def test_crop_and_resize_agree_with_doing_one_after_the_other() -> None:
    encoded = encode((90, 70), kind="PNG")
    box = draw_crop((90, 70), np.random.default_rng(3), (0.3, 1.0))
    cropped = Image.open(io.BytesIO(encoded)).crop(box).resize((32, 32), Image.Resampling.BICUBIC)
    inside = np.s_[2:-2, 2:-2]  # at the edges the one-pass resize sees the pixels beside the crop
    np.testing.assert_allclose(train(encoded, 3)[inside].astype(int), np.asarray(cropped)[inside].astype(int), atol=1)


def test_large_jpeg_decoded_small_looks_the_same() -> None:
    image = Image.open(io.BytesIO(encode((1200, 900), kind="PNG"))).resize((1200, 900), Image.Resampling.BICUBIC)
    small, exact = train(save(image, "JPEG", quality=95), 5), train(save(image), 5)
    assert np.abs(small.astype(int) - exact.astype(int)).mean() < 3


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


def test_directions_forbid_mirroring() -> None:
    assert may_flip("一只狗")
    assert not may_flip("红球在左边")
    assert not may_flip("右侧的狗")


def test_exif_orientation() -> None:
    image = Image.new("RGB", (40, 20), (255, 0, 0))
    image.paste((0, 0, 255), (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # shown after a quarter turn clockwise: what is stored on the left comes to the top
    pixels = evaluation_image(save(image, "JPEG", exif=exif, quality=95), 16).astype(int)
    assert pixels[0, :, 0].min() > 200
    assert pixels[-1, :, 2].min() > 200
    turned = train(save(image, "JPEG", exif=exif, quality=95), scale=(1.0, 1.0)).astype(int)
    assert turned[0, :, 0].min() > 200
    assert turned[-1, :, 2].min() > 200


def test_modes() -> None:
    grey = Image.fromarray(np.full((8, 8), 128, np.uint8))
    assert (evaluation_image(save(grey), 8) == 128).all()
    deep = Image.fromarray(np.full((8, 8), 128 * 257, np.uint16))
    assert (evaluation_image(save(deep), 8) == 128).all()
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert (evaluation_image(save(clear), 8) == 255).all()
    palette = Image.new("RGB", (8, 8), (10, 200, 30)).quantize(4)
    assert (evaluation_image(save(palette, "GIF"), 8) == (10, 200, 30)).all()
    keyed = Image.new("P", (8, 8), 0)
    assert (evaluation_image(save(keyed, transparency=0), 8) == 255).all()
    print_colours = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
    red = evaluation_image(save(print_colours, "JPEG", quality=95), 8).astype(int)
    assert red[..., 0].min() > 240
    assert red[..., 1:].max() < 20


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_truncated_file(kind: str) -> None:
    encoded = encode((90, 70), kind=kind)
    for function in (verify_image, train, lambda image: evaluation_image(image, 32)):
        with pytest.raises(UnusableRecord, match="the image cannot be decoded: "):
            function(encoded[: len(encoded) * 2 // 3])


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_file_that_is_no_image(content: bytes) -> None:
    for function in (verify_image, train, lambda image: evaluation_image(image, 32)):
        with pytest.raises(UnusableRecord, match=f"not an image: {len(content)} bytes in no known format"):
            function(content)


def test_map_ahead_keeps_the_order_and_can_be_left() -> None:
    assert list(map_ahead(lambda item: item * item, range(100))) == [item * item for item in range(100)]
    for item in map_ahead(str, iter(range(10**9))):
        if item == "5":
            break
