"""The fast bicubic resize beside Pillow's, and the same without the fast library."""

import numpy as np
import pytest
from PIL import Image

from r2d2_jax.data.image import resizing
from r2d2_jax.data.image.resizing import Box

NOISE = np.random.default_rng(0).integers(64, 192, (61, 83, 3)).astype(np.uint8)  # no overshoot beyond black or white
WHOLE = (0, 0, 83, 61)


@pytest.fixture(params=["fast library", "Pillow"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the fast library is not published, Pillow takes its place."""
    if request.param == "Pillow":
        monkeypatch.setattr(resizing, "cykooz_resizer", None)
    elif resizing.cykooz_resizer is None:
        pytest.skip("the fast library is not published for this machine")


def cropped_and_resized(rgb: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """The same with a fourth channel, which must not matter."""
    noise = np.random.default_rng(0).integers(0, 256, rgb.shape[:2]).astype(np.uint8)
    result = resizing.cropped_and_resized(np.dstack([rgb, noise]), box, size)
    assert result.shape == (size[1], size[0], 4)
    return result[..., :3]


def difference(pixels: np.ndarray, expected: object) -> int:
    return int(np.abs(pixels.astype(int) - np.asarray(expected).astype(int)).max())


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("size", [(32, 32), (83, 61), (200, 150), (5, 4), (83, 20), (1, 1)])
def test_white_noise_is_resized_as_by_pillow(size: tuple[int, int]) -> None:
    result = cropped_and_resized(NOISE, WHOLE, size)
    assert (result.dtype, result.shape) == (np.uint8, (size[1], size[0], 3))
    assert difference(result, Image.fromarray(NOISE).resize(size, Image.Resampling.BICUBIC)) <= 3


def bicubic_weights(length: int, resized: int) -> np.ndarray:
    """[resized length]; the cubic filter with a = -0.5 at (k + 0.5 - centre) / stretch, each row with sum 1."""
    scale = length / resized
    centres = (np.arange(resized) + 0.5) * scale
    x = np.abs(np.arange(length) + 0.5 - centres[:, None]) / max(scale, 1)
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(1, keepdims=True)


@pytest.mark.parametrize("size", [(32, 32), (200, 150), (83, 20)])
def test_as_close_to_the_equation_as_pillow_even_where_it_overshoots(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(1).integers(0, 256, (61, 83, 3)).astype(np.uint8)
    rows, columns = bicubic_weights(61, size[1]), bicubic_weights(83, size[0])
    exact = np.einsum("yh,hwc,xw->yxc", rows, noise, columns, optimize=True).clip(0, 255)
    ours = np.abs(cropped_and_resized(noise, WHOLE, size) - exact)
    pillows = np.abs(np.asarray(Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)) - exact)
    assert ours.mean() < 1.02 * pillows.mean() < 0.5


@pytest.mark.usefixtures("library")
def test_box_of_whole_pixels_is_cut_out_first() -> None:
    expected = Image.fromarray(NOISE).crop((7, 3, 70, 50)).resize((32, 32), Image.Resampling.BICUBIC)
    assert difference(cropped_and_resized(NOISE, (7, 3, 70, 50), (32, 32)), expected) <= 3
    surroundings = NOISE.copy()
    surroundings[:, 70:] = 0
    results = [cropped_and_resized(pixels, (7, 3, 70, 50), (32, 32)) for pixels in (surroundings, NOISE)]
    np.testing.assert_array_equal(*results)


@pytest.mark.usefixtures("library")
def test_box_between_pixels() -> None:
    box = (7.25, 3.5, 69.125, 49.75)
    touched = Image.fromarray(NOISE).crop((7, 3, 70, 50))
    expected = touched.resize((32, 32), Image.Resampling.BICUBIC, box=(0.25, 0.5, 62.125, 46.75))
    assert difference(cropped_and_resized(NOISE, box, (32, 32)), expected) <= 3


@pytest.mark.usefixtures("library")
def test_boxes_that_end_at_the_edge_never_leave_the_image() -> None:
    """Edges that are products of fractions, as they come from images decoded at reduced size."""
    for full in range(600, 700):
        across = 83 / full
        result = cropped_and_resized(NOISE, (full / 7 * across, 0, full * across, 61), (8, 8))
        assert result.shape == (8, 8, 3)


def test_shrinking_does_not_alias() -> None:
    """Stripes finer than the result can show become even grey, not a moire pattern."""
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    result = cropped_and_resized(stripes, (0, 0, 256, 256), (100, 100))[:, 5:-5]
    assert np.abs(result.astype(int) - 127).max() < 12


def test_every_processor_gives_the_same() -> None:
    if resizing.cykooz_resizer is None:
        pytest.skip("the fast library is not published for this machine")
    library = resizing.cykooz_resizer
    results = []
    for extensions in library.CpuExtensions:
        resizer, target = library.Resizer(), library.ImageData(32, 32, library.PixelType.U8x4)
        try:
            resizer.cpu_extensions = extensions
        except Exception:
            continue  # this processor lacks them
        convolution = library.ResizeAlg.convolution(library.FilterType.catmull_rom)
        source = library.ImageData(83, 61, library.PixelType.U8x4, np.dstack([NOISE, NOISE[..., 0]]).tobytes())
        resizer.resize(source, target, library.ResizeOptions(resize_alg=convolution, use_alpha=False))
        results.append(np.frombuffer(target.get_buffer(), np.uint8).reshape(32, 32, 4)[..., :3].tobytes())
    assert results
    assert set(results) == {cropped_and_resized(NOISE, WHOLE, (32, 32)).tobytes()}
