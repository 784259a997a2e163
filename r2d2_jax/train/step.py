"""One step of any task: loss, gradients, optimizer, and then the task's own memory."""

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from r2d2_jax.arrays import Batch, Params
from r2d2_jax.tasks.task import LOSS, LossResult, Metrics, Task
from r2d2_jax.train.optimizer import Optimizer
from r2d2_jax.train.state import TrainState, trainable_of


def train_step(
    state: TrainState, batch: Batch, key: jax.Array, task: Task, optimizer: Optimizer, mesh: Mesh
) -> tuple[TrainState, Metrics]:
    """Learns from one global batch.

    Args:
        state: donated when compiled by `compile_train_step`.
        batch: the global batch.
        key: the run's key; every draw depends on it and on `state.step` only.
        task: what is learned.
        optimizer: how gradients become updates.
        mesh: the devices.

    Returns:
        The state after the step, and float32 scalars for the log: the task's own, gradient norm and learning rate.
    """
    trainable = trainable_of(state.params, task)

    def loss_of(trainable: Params) -> tuple[jax.Array, LossResult]:
        result = task.loss({**state.params, **trainable}, state.memory, batch, state.step, key, mesh)
        return result.total(), result

    (loss, result), gradients = jax.value_and_grad(loss_of, has_aux=True)(trainable)
    updates, opt_state = optimizer.transformation.update(gradients, state.opt_state, trainable)
    trainable = optax.apply_updates(trainable, updates)
    if "temperature" in trainable:
        trainable["temperature"] = jnp.clip(trainable["temperature"], *task.model.config.temperature_range)
    params = {**state.params, **trainable}
    memory, more = task.after(state.memory, params, batch, result)
    metrics = {
        LOSS: loss,
        **result.terms,
        **result.metrics,
        **more,
        "gradient_norm": optax.tree.norm(gradients),
        "learning_rate": jnp.asarray(optimizer.learning_rate(state.step), jnp.float32),
    }
    return TrainState(state.step + 1, params, opt_state, memory), metrics
