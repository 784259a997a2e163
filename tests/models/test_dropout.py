"""What dropout drops: its share, its mean, its places in the model, and masks that no two layers share."""

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from random_models import random_model

from r2d2_jax.config.model import REMAT_WORDS, CrossEncoderConfig, ImageTowerConfig, TextTowerConfig
from r2d2_jax.convert.transformers_folder import config_json
from r2d2_jax.models.bert import TextEncoder
from r2d2_jax.models.cross_encoder import CrossEncoder
from r2d2_jax.models.dropout import Dropout, kept_mask
from r2d2_jax.models.layers import Attention, Mlp, scanned
from r2d2_jax.models.store import load_model, save_model
from r2d2_jax.models.vit import ImageEncoder

KEY = jax.random.key(0)
RATE = 0.25
TEXT = TextTowerConfig(30, 6, width=8, layers=3, heads=2, mlp_width=12, max_positions=6, dropout=RATE)
CROSS = CrossEncoderConfig(layers=3, width=8, heads=2, mlp_width=12, dropout=RATE)
IDS, MASK = jnp.ones((2, 6), jnp.int32), jnp.array(np.arange(6) < np.array([[6], [4]]))
PATCHES = jnp.ones((2, 5, 16))


def weights(module: nn.Module, *inputs: Any, seed: int = 1) -> Any:
    return oracles.random_parameters(jax.eval_shape(module.init, KEY, *inputs)["params"], seed)


@contextmanager
def masks_drawn() -> Iterator[list[tuple[int, ...]]]:
    """Lists the shape of every mask that is drawn while a module is traced."""
    shapes: list[tuple[int, ...]] = []

    def note(method: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if isinstance(context.module, Dropout) and context.method_name == "kept":
            shapes.append(args[0])
        return method(*args, **kwargs)

    with nn.intercept_methods(note):
        yield shapes


def traced(module: nn.Module, *inputs: Any, key: jax.Array | None = KEY) -> list[tuple[int, ...]]:
    parameters, rngs = weights(module, *inputs), None if key is None else {"dropout": key}
    with masks_drawn() as shapes:
        jax.eval_shape(lambda parameters: module.apply({"params": parameters}, *inputs, rngs=rngs), parameters)
    return shapes


@pytest.mark.parametrize("length", [1, 256, 257])
@pytest.mark.parametrize("levels", [1, 6554, 65535])
def test_the_share_that_is_kept(length: int, levels: int) -> None:
    """Within five deviations over all places, and over each half of the last axis by itself."""
    kept = np.asarray(kept_mask(KEY, (2048, 2, length), levels))
    assert kept.shape == (2048, 2, length)
    share = 1 - levels / 2**16
    for part in (kept, kept[..., : -(-length // 2)], kept[..., length // 2 :]):
        assert abs(part.mean() - share) < 5 * (share * (1 - share) / part.size) ** 0.5


def test_no_place_follows_another() -> None:
    """Neighbours on each axis, and the two that read one number, agree as often as chance has it."""
    kept = np.asarray(kept_mask(KEY, (512, 64, 64), 2**15)).astype(np.float64) - 0.5
    pairs = ((kept[1:], kept[:-1]), (kept[:, 1:], kept[:, :-1]), (kept[..., 1:], kept[..., :-1]))
    for one, other in (*pairs, (kept[..., :32], kept[..., 32:])):
        assert abs(np.mean(one * other)) < 5 * 0.25 / one.size**0.5


@pytest.mark.parametrize("rate", [RATE, 0.1, 1e-9, 1 - 1e-9])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_stays_is_scaled_by_the_share_that_is_drawn(rate: float, dtype: Any) -> None:
    """So is the mean kept, whatever the rate was rounded to: to 1/65,536, and neither to nothing nor to everything."""
    values = jnp.ones((64, 33), dtype)
    dropped = Dropout(rate).apply({}, values, rngs={"dropout": KEY})
    assert dropped.dtype == dtype
    share = np.clip(round(rate * 2**16), 1, 2**16 - 1) / 2**16
    expected = np.asarray(jnp.asarray(1 / (1 - share), dtype), np.float32)
    assert set(np.unique(np.asarray(dropped, np.float32))) <= {np.float32(0), expected.item()}
    if 0.05 < rate < 0.95:
        assert len(np.unique(np.asarray(dropped, np.float32))) == 2


def test_nothing_is_dropped_without_a_rate_or_without_a_key() -> None:
    values = jnp.array(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    for rate, rngs in ((0.0, {"dropout": KEY}), (0.9, None), (0.9, {"params": KEY})):
        np.testing.assert_array_equal(Dropout(rate).apply({}, values, rngs=rngs), values)
    text = TextEncoder(TEXT, jnp.float32)
    assert traced(text, IDS, MASK, key=None) == []


@pytest.mark.parametrize("masked", [False, True])
def test_the_mean_of_many_draws_is_the_undropped_result(masked: bool) -> None:
    """Attention is linear in what its dropout multiplies: weights, then values of the output."""
    module, context = Attention(8, 2, jnp.float32, RATE), jnp.array(np.random.default_rng(1).normal(size=(2, 5, 6)))
    queries = jnp.array(np.random.default_rng(0).normal(size=(2, 3, 8)))
    mask = jnp.array(np.arange(5) < np.array([[5], [2]])) if masked else None
    assert_mean_is_kept(module, queries, context, mask)


def test_the_mean_of_a_linear_mlp_is_kept() -> None:
    hidden = jnp.array(np.random.default_rng(2).normal(size=(2, 3, 8)))
    assert_mean_is_kept(Mlp(8, 12, lambda x: x, jnp.float32, RATE), hidden)


def assert_mean_is_kept(module: nn.Module, *inputs: Any) -> None:
    parameters = weights(module, *inputs)
    apply = lambda key: module.apply({"params": parameters}, *inputs, rngs=key)  # noqa: E731
    draws = jax.jit(jax.vmap(lambda key: apply({"dropout": key})))(jax.random.split(KEY, 4096))
    plain, spread = np.asarray(apply(None)), np.asarray(draws).std(axis=0) / 4096**0.5
    assert (spread > 1e-4).mean() > 0.9, "many values are dropped"
    np.testing.assert_array_less(np.abs(np.asarray(draws).mean(axis=0) - plain), 5 * spread + 1e-6)


def test_where_the_text_tower_drops() -> None:
    """Embeddings; and in a layer, which is traced once for all, weights, and what attention and MLP give."""
    tokens = (2, 6, 8)
    assert traced(TextEncoder(TEXT, jnp.float32, unroll=True), IDS, MASK)[:4] == [tokens, (2, 2, 6, 6), tokens, tokens]
    assert len(set(traced(TextEncoder(TEXT, jnp.float32), IDS, MASK))) == 2


def test_where_a_cross_encoder_drops() -> None:
    """Weights and results of both attentions, and what the MLP gives; it has no embeddings of its own."""
    encoder, inputs = CrossEncoder(CROSS, jnp.float32), (jnp.ones((2, 6, 8)), MASK, PATCHES, None)
    layer = [(2, 2, 6, 6), (2, 6, 8), (2, 2, 6, 5), (2, 6, 8), (2, 6, 8)]
    last = [(2, 2, 1, 6), (2, 1, 8), (2, 2, 1, 5), (2, 1, 8), (2, 1, 8)]
    shapes = traced(encoder, *inputs, jnp.zeros((2, 1), jnp.int32))
    assert (shapes[:5], shapes[-5:]) == (layer, last)


def test_the_image_tower_drops_nothing() -> None:
    tower = ImageEncoder(ImageTowerConfig(8, 4, width=8, layers=2, heads=2, mlp_width=12), jnp.float32)
    assert traced(tower, jnp.ones((2, 8, 8, 3))) == []


class Digits(nn.Module):
    """A layer that writes its mask into the next binary digit of every value."""

    @nn.compact
    def __call__(self, hidden: jax.Array, scale: jax.Array) -> tuple[jax.Array, None]:
        return 2 * hidden + Dropout(0.5)(scale) / 2, None


def test_every_layer_has_a_mask_of_its_own_in_value_and_gradient() -> None:
    """The same ones whether the loop is written out or not, and in what is recomputed backwards."""
    ones, found = jnp.ones(4096), []

    def digits(scale: jax.Array, remat: str, unroll: bool) -> tuple[jax.Array, jax.Array]:
        stack = scanned(Digits, 3, remat=remat, unroll=unroll)()
        hidden = stack.apply({}, jnp.zeros_like(scale), scale, rngs={"dropout": KEY})[0]
        return jnp.sum(hidden * hidden) / 2, hidden

    for remat in REMAT_WORDS:
        for unroll in (False, True):
            (_, hidden), gradient = jax.value_and_grad(digits, has_aux=True)(ones, remat, unroll)
            np.testing.assert_array_equal(gradient, hidden * hidden)
            found.append(np.asarray(hidden))
            np.testing.assert_array_equal(found[0], found[-1])
    counts = np.bincount(found[0].astype(int), minlength=8)
    assert len(counts) == 8
    assert np.abs(counts - 512).max() < 5 * (4096 * 7 / 64) ** 0.5


def test_a_model_on_disk_is_the_same_with_and_without_dropout_and_rematerialisation(tmp_path: Path) -> None:
    """They say how a run trains; so files stay what they were, and any run may start from them."""
    plain, dropped = random_model(), random_model()
    text, cross = (dataclasses.replace(part, dropout=0.1) for part in (dropped.config.text, dropped.config.cross))
    config = dataclasses.replace(dropped.config, text=text, cross=cross, remat="all")
    dropped = dataclasses.replace(dropped, config=config)
    assert dropped.config.has_dropout
    assert not plain.config.has_dropout
    for name, model in (("plain", plain), ("dropped", dropped)):
        save_model(model, tmp_path / name)
    described = (tmp_path / "dropped" / "model.json").read_bytes()
    assert described == (tmp_path / "plain" / "model.json").read_bytes()
    assert b"dropout" not in described
    assert b"remat" not in described
    assert load_model(tmp_path / "dropped").config == plain.config
    assert config_json(dropped) == config_json(plain)
