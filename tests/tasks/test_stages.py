"""The rows of ranking: how they are laid out, drawn, and taken apart again."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest
from small_model import BATCH_SIZE, random_state, small_batch, small_config, small_plan

from r2d2_jax.models.r2d2 import normalise_images
from r2d2_jax.sharding import apply_by_rows
from r2d2_jax.tasks.stages import (
    Negatives,
    Similarities,
    Towers,
    best_column,
    hard_negatives,
    hits,
    match_metrics,
    pre_ranking,
    ranking,
    rows_of,
    share_of,
    similarities,
    with_negatives,
)

PLAN = small_plan(small_config())
BATCH = small_batch(0)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.tree.map(jnp.asarray, random_state(PLAN).params)


@pytest.fixture(scope="module")
def towers(params: Any) -> Towers:
    forward = partial(apply_by_rows, PLAN.task.model, params, PLAN.mesh)
    text = forward("encode_text", BATCH.input_ids, BATCH.attention_mask)
    return Towers(forward("encode_image", normalise_images(BATCH.images)), text)


def drawn(towers: Towers) -> Negatives:
    """Hard negatives of the batch."""
    found = pre_ranking(PLAN.task, towers, BATCH, jnp.float32(0.07), PLAN.mesh, draw=jax.random.key(0))
    assert found.negatives is not None
    return found.negatives


def test_each_pair_stands_beside_its_negatives(towers: Towers) -> None:
    """Texts are similar to the next image alone and images to the text before, so these are the negatives drawn."""
    following = (np.arange(BATCH_SIZE) + 1) % BATCH_SIZE
    t2i = np.full((BATCH_SIZE, BATCH_SIZE), -1e9, np.float32)
    t2i[np.arange(BATCH_SIZE), following] = 0
    found = Similarities(jnp.asarray(t2i.T), jnp.asarray(t2i), jnp.eye(BATCH_SIZE, dtype=bool))
    negatives = hard_negatives(jax.random.key(0), found, jnp.arange(BATCH_SIZE))
    rows = with_negatives(towers, BATCH.attention_mask, negatives, PLAN.mesh)
    images, texts, mask = towers.image.tokens, towers.text.tokens, BATCH.attention_mask
    before = (np.arange(BATCH_SIZE) - 1) % BATCH_SIZE
    expected = {
        "image_tokens": (images, images[following]),
        "text_tokens": (texts, texts[before]),
        "attention_mask": (mask, mask[before]),
    }
    for name, parts in expected.items():
        for row, wanted in enumerate(parts):
            np.testing.assert_array_equal(getattr(rows, name)[row::2], wanted, err_msg=name)
    assert negatives.has_image.all()
    assert negatives.has_text.all()


def test_ranking_equals_the_match_stage_on_every_pair(params: Any, towers: Towers) -> None:
    """Of a pair without a negative text, which counts nowhere: its image is that of all other texts."""
    positive = np.eye(BATCH_SIZE, dtype=bool)
    positive[2] = True
    rows_compared = rows_of(towers, BATCH)
    found = similarities(rows_compared, rows_compared, jnp.float32(0.07)).replace(positive=jnp.asarray(positive))
    negatives = hard_negatives(jax.random.key(0), found, rows_compared.number)
    assert negatives.has_text.tolist() == [row != 2 for row in range(BATCH_SIZE)]
    forward = partial(apply_by_rows, PLAN.task.model, params, PLAN.mesh)
    ranked = ranking(forward, towers, BATCH, negatives, PLAN.mesh, (1.0, 2.0), BATCH.input_ids[:, :0])
    rows = with_negatives(towers, BATCH.attention_mask, negatives, PLAN.mesh)

    def logits(image: int, text: int) -> np.ndarray:
        inputs = (rows.text_tokens[text::2], rows.attention_mask[text::2], rows.image_tokens[image::2])
        return np.asarray(forward("match", *inputs))

    every = np.ones(BATCH_SIZE, bool)
    passes = ((0, 0, every, every), (1, 0, ~every, negatives.has_image), (0, 1, ~every, negatives.has_text))
    expected = oracles.match_loss(
        np.concatenate([logits(image, text) for image, text, _, _ in passes]),
        np.concatenate([label for _, _, label, _ in passes]),
        np.concatenate([np.asarray(has_negative) for _, _, _, has_negative in passes]),
        (1.0, 2.0),
    )
    np.testing.assert_allclose(ranked.loss, expected, rtol=1e-5)


@pytest.mark.parametrize("hardness", [0.0, 0.5, 1.0])
def test_softened_similarities_give_the_draw_of_a_higher_temperature(hardness: float) -> None:
    logits = 3 * np.random.default_rng(0).normal(size=(2, 4, 4)).astype(np.float32)
    positive, draws = np.eye(4, dtype=bool), 4000
    found = Similarities(jnp.asarray(logits[0]), jnp.asarray(logits[1]), jnp.asarray(positive)).softened(hardness)
    many = jax.jit(jax.vmap(hard_negatives, in_axes=(0, None, None)))
    negatives = many(jax.random.split(jax.random.key(0), draws), found, jnp.arange(4))
    for columns, before in zip((negatives.text, negatives.image), logits, strict=True):
        share = np.stack([(np.asarray(columns) == column).mean(axis=0) for column in range(4)], axis=1)
        expected = oracles.negative_weights(hardness * before, positive)
        np.testing.assert_allclose(share, expected, atol=4 * (0.25 / draws) ** 0.5)  # four standard errors


def test_positive_tokens_are_those_of_the_matching_pairs_alone(params: Any, towers: Towers) -> None:
    forward = partial(apply_by_rows, PLAN.task.model, params, PLAN.mesh)
    negatives = drawn(towers)
    wanted = jnp.asarray(np.random.default_rng(0).integers(0, 10, (BATCH_SIZE, 2)))
    ranked = ranking(forward, towers, BATCH, negatives, PLAN.mesh, (1.0, 2.0), wanted)
    alone = forward("cross_text_image", towers.text.tokens, BATCH.attention_mask, towers.image.tokens, wanted)
    assert ranked.positive_tokens.shape == (BATCH_SIZE, 2, 16)
    np.testing.assert_allclose(ranked.positive_tokens, alone, rtol=1e-5, atol=1e-5)
    none = ranking(forward, towers, BATCH, negatives, PLAN.mesh, (1.0, 2.0), wanted[:, :0])
    assert none.positive_tokens.shape == (BATCH_SIZE, 0, 16)
    np.testing.assert_allclose(none.loss, ranked.loss, rtol=1e-6)


def test_shares() -> None:
    logits = jnp.asarray([[1.0, 2.0], [5.0, 4.0]])
    assert hits(logits, jnp.eye(2, dtype=bool)).tolist() == [False, False]
    assert hits(logits, jnp.asarray([[False, True], [False, True]])).tolist() == [True, False]
    hit, among = jnp.asarray([True, True, False]), jnp.asarray([True, False, True])
    assert float(share_of(hit, among)) == 0.5
    assert float(share_of(hit, jnp.zeros(3, bool))) == 0


def test_nan_is_never_a_hit() -> None:
    """Neither as the largest similarity, which `argmax` makes of it, nor as a match that is not above one half."""
    logits = jnp.asarray([[jnp.nan, 0.0], [0.0, jnp.nan], [0.0, 1.0]])
    assert best_column(logits).tolist() == [-1, -1, 1]
    assert not hits(jnp.full((2, 2), jnp.nan), jnp.ones((2, 2), bool)).any()
    label, every = jnp.asarray([True, False]), jnp.ones(2, bool)
    assert match_metrics(jnp.full((2, 2, 2), jnp.nan), label, every) == {"match_accuracy": 0, "no_match_accuracy": 0}
    assert match_metrics(jnp.zeros((2, 2, 2)), label, every) == {"match_accuracy": 0, "no_match_accuracy": 1}
