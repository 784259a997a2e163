"""What the benchmarks of train steps share: the plan of a configuration, and random pairs for it."""

import dataclasses
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.models.r2d2 import abstract_params
from r2d2_jax.sharding import path_name
from r2d2_jax.tasks.task import BERT_TOKENS, SpecialTokens
from r2d2_jax.train.plan import StepPlan, step_plan
from r2d2_jax.train.state import TrainState, trainable_of

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
# Of a vocabulary too small for BERT's ids, where they would index past the embedding table: those of the demonstration.
SMALL_TOKENS = SpecialTokens(mask_id=4, cls_id=2, sep_id=3, pad_id=0)


def planned(config: ConfigDict, devices: list[Any], mesh: MeshConfig | None = None) -> StepPlan:
    """The plan of a step whose special tokens lie inside the configured vocabulary."""
    plan = step_plan(Config.from_config_dict(config), devices, mesh)
    if not hasattr(plan.task, "tokens") or special_tokens(plan) == plan.task.tokens:
        return plan
    return dataclasses.replace(plan, task=dataclasses.replace(plan.task, tokens=special_tokens(plan)))


def with_dropout(config: ConfigDict, rate: float | None) -> ConfigDict:
    """The configuration with another rate of dropout in text tower and cross encoders; None leaves it."""
    if rate is not None:
        config.model.text.dropout = config.model.cross.dropout = rate
    return config


def special_tokens(plan: StepPlan) -> SpecialTokens:
    """BERT's, unless the vocabulary is too small for them."""
    return BERT_TOKENS if plan.task.model.config.text.vocabulary_size > BERT_TOKENS.mask_id else SMALL_TOKENS


def random_rows(plan: StepPlan, seed: int = 0) -> dict[str, np.ndarray]:
    """A global batch of random pixels and of texts of full length, every image another."""
    rng, pairs, sizes, tokens = (
        np.random.default_rng(seed),
        plan.batch_size,
        plan.task.model.config,
        special_tokens(plan),
    )
    length, side, vocabulary = sizes.text.text_length, sizes.image.image_size, sizes.text.vocabulary_size
    first_word = 1000 if vocabulary > 1000 else 5
    input_ids = rng.integers(first_word, vocabulary, (pairs, length), dtype=np.int32)
    input_ids[:, 0], input_ids[:, -1] = tokens.cls_id, tokens.sep_id
    rows = {
        "images": rng.integers(0, 256, (pairs, side, side, 3), dtype=np.uint8),
        "input_ids": input_ids,
        "attention_mask": np.ones_like(input_ids, bool),
        "image_id": rng.integers(0, 2**32, (pairs, 2), dtype=np.uint32),
    }
    if plan.task.reads_text_ids:
        rows["text_id"] = rng.integers(1, 2**32, (pairs, 2), dtype=np.uint32)
    if plan.task.reads_words:
        rows["word"] = np.tile(np.arange(length, dtype=np.int32) // 2, (pairs, 1))
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
        return jax.device_get(TrainState(np.zeros((), np.int32), params, moments, plan.task.init(params)))
