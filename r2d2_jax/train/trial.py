"""Random pairs and weights for a planned step: what is measured of a step does not depend on what they are."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from r2d2_jax.models.r2d2 import abstract_params
from r2d2_jax.sharding import path_name
from r2d2_jax.train.plan import StepPlan, planned_tokens
from r2d2_jax.train.state import TrainState, trainable_of


def random_rows(plan: StepPlan, seed: int = 0) -> dict[str, np.ndarray]:
    """A global batch of random pixels and of texts of full length, every image another."""
    rng, pairs, sizes = np.random.default_rng(seed), plan.batch_size, plan.task.model.config
    length, side, vocabulary = sizes.text.text_length, sizes.image.image_size, sizes.text.vocabulary_size
    tokens = planned_tokens(vocabulary)
    first_word = 1000 if vocabulary > 1000 else 5
    input_ids = rng.integers(first_word, vocabulary, (pairs, length), dtype=np.int32)
    input_ids[:, 0], input_ids[:, -1] = tokens.cls_id, tokens.sep_id
    rows: dict[str, np.ndarray] = {
        "images": rng.integers(0, 256, (pairs, side, side, 3), dtype=np.uint8),
        "input_ids": input_ids,
        "attention_mask": np.ones_like(input_ids, bool),
        "image_id": rng.integers(0, 2**32, (pairs, 2), dtype=np.uint32),
    }
    if plan.task.reads_text_ids:
        rows["text_id"] = rng.integers(1, 2**32, (pairs, 2), dtype=np.uint32)
    if plan.task.reads_words:
        rows["word"] = np.tile(np.arange(length, dtype=np.int32) // 2, (pairs, 1))
    if plan.task.reads_labels:
        rows["label"] = np.arange(pairs, dtype=np.int32) % 2
    return rows


def random_state(plan: StepPlan, seed: int = 0) -> TrainState:
    """A state before the first step in host memory, made without compiling the model's own initialisation.

    Norms scale by 1 and the temperature is the configured one; every other parameter has BERT's spread, 0.02.
    """
    noise = 0.02 * np.random.default_rng(seed).standard_normal(2**20, np.float32)

    def values(path: Any, leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        name = path_name(path)
        if name.endswith("scale"):
            return np.ones(leaf.shape, leaf.dtype)
        if name == "temperature":
            return np.full(leaf.shape, plan.task.model.config.temperature_init, leaf.dtype)
        return np.resize(np.roll(noise, zlib.crc32(name.encode())), leaf.shape)

    with jax.default_device(jax.devices("cpu")[0]):
        params = jax.tree_util.tree_map_with_path(values, abstract_params(plan.task.model))
        moments = plan.optimizer.transformation.init(trainable_of(params, plan.task))
        return jax.device_get(TrainState(jnp.zeros((), jnp.int32), params, moments, plan.task.init(params)))
