"""The train step compiled ahead of time, for the devices at hand or for a topology that is only described."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from r2d2_jax.arrays import Batch
from r2d2_jax.sharding import batch_sharding, replicated, whole_kernels
from r2d2_jax.tasks.task import Metrics, Task
from r2d2_jax.train.optimizer import Optimizer
from r2d2_jax.train.state import TrainState, abstract_state
from r2d2_jax.train.step import train_step
from r2d2_jax.train.term_gradients import term_gradients


def abstract_batch(task: Task, batch_size: int, mesh: Mesh) -> Batch:
    """Shapes, dtypes and shardings of a global batch."""
    side, length = task.model.config.image.image_size, task.model.config.text.text_length

    def rows(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((batch_size, *shape), dtype, sharding=batch_sharding(mesh))

    return Batch(
        images=rows((side, side, 3), jnp.uint8),
        input_ids=rows((length,), jnp.int32),
        attention_mask=rows((length,), bool),
        image_id=rows((2,), jnp.uint32),
        word=rows((length,), jnp.int32) if task.reads_words else None,
        text_id=rows((2,), jnp.uint32) if task.reads_text_ids else None,
        label=rows((), jnp.int32) if task.reads_labels else None,
    )


def lower_train_step(task: Task, optimizer: Optimizer, mesh: Mesh, batch_size: int) -> jax.stages.Lowered:
    """Traces `train_step` for a mesh and a global batch; the state is donated."""
    state = abstract_state(task, optimizer, mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def step(state: TrainState, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        return train_step(state, batch, key, task, optimizer, mesh)

    placed = (jax.tree.map(lambda leaf: leaf.sharding, state), replicated(mesh))
    jitted = jax.jit(step, donate_argnums=0, out_shardings=placed, compiler_options=whole_kernels(mesh))
    return jitted.lower(state, abstract_batch(task, batch_size, mesh), key)


def compile_train_step(task: Task, optimizer: Optimizer, mesh: Mesh, batch_size: int) -> jax.stages.Compiled:
    """The one executable of a run: `(state, batch, key) -> (state, metrics)`.

    It is compiled once and refuses, rather than recompiles for, arguments of another shape or placement.
    """
    return lower_train_step(task, optimizer, mesh, batch_size).compile()


def compile_term_gradients(
    task: Task, optimizer: Optimizer, mesh: Mesh, batch_size: int, *, without: bool = False
) -> jax.stages.Compiled:
    """The executable `(state, batch, key) -> metrics` of `term_gradients`; it leaves the state to the step."""
    weigh = jax.jit(
        lambda state, batch, key: term_gradients(state, batch, key, task, mesh, without=without),
        out_shardings=replicated(mesh),
        compiler_options=whole_kernels(mesh),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    return weigh.lower(abstract_state(task, optimizer, mesh), abstract_batch(task, batch_size, mesh), key).compile()


def compile_all_finite(task: Task, optimizer: Optimizer, mesh: Mesh) -> jax.stages.Compiled:
    """The executable `state -> bool scalar` that says whether no number of a train state is NaN or infinite."""

    def all_finite(state: TrainState) -> jax.Array:
        numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers]))

    return jax.jit(all_finite, out_shardings=replicated(mesh)).lower(abstract_state(task, optimizer, mesh)).compile()
