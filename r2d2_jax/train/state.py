"""The train state: everything that a step changes, as arrays and nothing else."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from r2d2_jax.arrays import Params
from r2d2_jax.models.r2d2 import init_params
from r2d2_jax.rng import stream
from r2d2_jax.sharding import state_shardings
from r2d2_jax.tasks.task import Memory, Task
from r2d2_jax.train.optimizer import Optimizer


@struct.dataclass
class TrainState:
    """What is saved, restored and carried from step to step.

    step: int32 scalar, completed steps.
    params: every parameter of the model.
    opt_state: of the trainable parameters only.
    memory: what the task carries beside them, such as pre-training's teacher and queue; None if it carries nothing.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    memory: Memory


def trainable_of(params: Params, task: Task) -> Params:
    """The parameter groups that receive gradients."""
    return {part: params[part] for part in task.trainable_parts}


def init_state(task: Task, optimizer: Optimizer, key: jax.Array) -> TrainState:
    """A fresh state with random parameters."""
    params = init_params(task.model, stream(key, "init", 0))
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=optimizer.transformation.init(trainable_of(params, task)),
        memory=task.init(params),
    )


@functools.lru_cache(maxsize=4)
def abstract_state(task: Task, optimizer: Optimizer, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it; traced once for a run."""
    shapes = jax.eval_shape(lambda key: init_state(task, optimizer, key), jax.random.key(0))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        state_shardings(shapes, mesh),
    )


def sharded_init_state(task: Task, optimizer: Optimizer, mesh: Mesh, key: jax.Array) -> TrainState:
    """`init_state`, with every array created where it lives."""
    return _sharded_init(task, optimizer, mesh)(key)


@functools.lru_cache(maxsize=4)
def _sharded_init(task: Task, optimizer: Optimizer, mesh: Mesh) -> Callable[[jax.Array], TrainState]:
    """`init_state` compiled for the mesh, kept as `abstract_state` is."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(task, optimizer, mesh))
    return jax.jit(lambda key: init_state(task, optimizer, key), out_shardings=shardings)
