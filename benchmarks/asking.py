"""What the benchmarks of asking share: models of random weights at the published sizes, and the time of a question."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import numpy as np

from r2d2_jax import presets
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.config.reading import model_config
from r2d2_jax.convert.naming import our_shapes
from r2d2_jax.inference import Ranker
from r2d2_jax.models.store import Model
from r2d2_jax.trees import nested
from r2d2_jax.vocabulary import SPECIAL_TOKENS, Vocabulary

_TOWERS = {"vitb": presets.vit_base, "vitl": presets.vit_large}
SIZES = tuple(_TOWERS)
SENTENCE = "一只狗在草地上"


def published_sizes(name: str, dtype: str) -> ModelConfig:
    """The sizes of a published model, one of `SIZES`, which computes in `dtype`."""
    sizes = model_config(presets.article_model(_TOWERS[name]()).to_dict())
    return dataclasses.replace(sizes, dtype=dtype)


def random_ranker(sizes: ModelConfig, batch_size: int) -> Ranker:
    """A model of random weights, whose vocabulary has the characters of `SENTENCE`."""
    rng = np.random.default_rng(0)
    leaves = {path: 0.02 * rng.standard_normal(shape, np.float32) for path, shape in our_shapes(sizes).items()}
    known = (*SPECIAL_TOKENS, *dict.fromkeys(SENTENCE))
    others = (f"[unused{number}]" for number in range(sizes.text.vocabulary_size - len(known)))
    tokens = (*known, *others)[: sizes.text.vocabulary_size]
    return Ranker(Model(sizes, nested(leaves), vocabulary=Vocabulary(tokens)), batch_size=batch_size)


def median(work: Callable[[], object], repeats: int) -> float:
    """Seconds that the work takes once it is compiled; its results are in host memory when it returns."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)
