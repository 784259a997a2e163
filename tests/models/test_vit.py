"""The image tower against its oracle."""

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from r2d2_jax.config.model import ImageTowerConfig
from r2d2_jax.models.vit import ImageEncoder, VitLayer, patchify

SIZE = ImageTowerConfig(image_size=8, patch_size=4, width=12, layers=2, heads=3, mlp_width=20)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 4), (6, 9, 3), (4, 4, 4), (4, 6, 1)])
def test_patchify_equals_the_loops(height: int, width: int, size: int) -> None:
    images = normal(0, 2, height, width, 3)
    np.testing.assert_array_equal(patchify(jnp.array(images), size), oracles.patches(images, size))


def test_patches_come_row_by_row_and_their_pixels_too() -> None:
    image = np.arange(4 * 6 * 3, dtype=np.float32).reshape(1, 4, 6, 3)
    patches = np.asarray(patchify(jnp.array(image), 2))
    assert patches.shape == (1, 6, 12)
    np.testing.assert_array_equal(patches[0, 1], [6, 7, 8, 9, 10, 11, 24, 25, 26, 27, 28, 29])  # right of the first
    np.testing.assert_array_equal(patches[0, 3, :3], [36, 37, 38])  # below the first


@pytest.mark.parametrize("spread", [1.0, 3e-3])  # variance 1e-5 makes the epsilon half of the sum
def test_vit_layer_equals_oracle(spread: float) -> None:
    hidden = normal(1, 2, 5, 12) * np.float32(spread)
    module = VitLayer(SIZE, jnp.float32)
    shapes = jax.eval_shape(module.init, jax.random.key(0), hidden)["params"]
    parameters = oracles.random_parameters(shapes, 2)
    result, _ = jax.jit(module.apply)({"params": parameters}, hidden)
    np.testing.assert_allclose(result, oracles.vit_layer(parameters, hidden, 3), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("spread", [1.0, 3e-3])
def test_image_encoder_equals_oracle(spread: float) -> None:
    images = normal(3, 2, 8, 8, 3)
    module = ImageEncoder(SIZE, jnp.float32)
    parameters = oracles.random_parameters(jax.eval_shape(module.init, jax.random.key(0), images)["params"], 4)
    for name in ("class_embedding", "position_embedding"):
        parameters[name] *= np.float32(spread)
    parameters["patch_embedding"]["kernel"] *= np.float32(spread)
    tokens = jax.jit(module.apply)({"params": parameters}, images)
    assert tokens.shape == (2, 5, 12)  # CLS and four patches
    expected = oracles.image_encoder(parameters, images, 4, layers=2, heads=3)
    np.testing.assert_allclose(tokens, expected, rtol=1e-5, atol=2e-5)


def test_patches_have_no_bias_and_positions_count_cls() -> None:
    shapes = jax.eval_shape(ImageEncoder(SIZE, jnp.float32).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))["params"]
    assert set(shapes) == {"class_embedding", "patch_embedding", "position_embedding", "pre_norm", "layers"}
    assert set(shapes["patch_embedding"]) == {"kernel"}
    assert shapes["position_embedding"].shape == (5, 12)
