"""Checkpoints of small states that no model has, which are written and read in a moment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from small_model import small_config

from r2d2_jax.config.run import TrainConfig
from r2d2_jax.tasks.pretraining import PretrainingMemory
from r2d2_jax.tasks.queue import empty_queue, enqueue
from r2d2_jax.train.checkpoint import Checkpoints
from r2d2_jax.train.state import TrainState

CONFIG = small_config()


def state_of(step: int, width: int = 3) -> TrainState:
    """A state with every kind of leaf; the step is written all over it."""
    rng = np.random.default_rng(step)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    identity = jnp.asarray(rng.integers(0, 2**32, (2, 2), dtype=np.uint32))
    return TrainState(
        step=jnp.int32(step),
        params={"text_projection": {"kernel": draw(width, 2), "bias": draw(2)}, "temperature": draw()},
        opt_state=({"mu": draw(width, 2)}, {"count": jnp.int32(step)}),
        memory=PretrainingMemory(
            teacher={"text_projection": {"kernel": draw(width, 2), "bias": draw(2)}},
            queue=enqueue(empty_queue(5, 2), draw(2, 2), draw(2, 2), identity),
            feature_mean=draw(2),
        ),
    )


def with_memory(state: TrainState, **changes: Any) -> TrainState:
    return state.replace(memory=state.memory.replace(**changes))


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def saved(
    workdir: Path, steps: dict[int, float | None], *, state: Callable[[int], TrainState] = state_of, **train: Any
) -> Checkpoints:
    """Saves a state for each step, with its recall if it has one."""
    checkpoints = Checkpoints(workdir, TrainConfig(batch_size=8, epochs=1.0, **train))
    for step, recall in steps.items():
        checkpoints.save(state(step), CONFIG, {"pairs": step}, None if recall is None else {"dual": recall})
    checkpoints.wait()
    return checkpoints
