"""The train step compiled ahead of time, for the devices at hand or for a topology that is only described."""

from typing import Any

import jax
import jax.numpy as jnp

from r2d2_jax.arrays import Batch
from r2d2_jax.config.reading import Config
from r2d2_jax.sharding import batch_sharding, replicated
from r2d2_jax.train.state import Recipe, TrainState, abstract_state
from r2d2_jax.train.step import train_step


def abstract_batch(config: Config, recipe: Recipe) -> Batch:
    """Shapes, dtypes and shardings of a global batch."""
    b, side, length = config.train.batch_size, config.model.image.image_size, config.model.text.text_length

    def rows(shape: tuple[int, ...], dtype: Any) -> Any:
        return jax.ShapeDtypeStruct((b, *shape), dtype, sharding=batch_sharding(recipe.mesh))

    return Batch(
        images=rows((side, side, 3), jnp.uint8),
        input_ids=rows((length,), jnp.int32),
        attention_mask=rows((length,), bool),
        image_id=rows((2,), jnp.uint32),
        word=rows((length,), jnp.int32) if config.loss.whole_word_masking else None,
    )


def lower_train_step(config: Config, recipe: Recipe) -> jax.stages.Lowered:
    """Traces `train_step` for the recipe's mesh; the state is donated."""
    state = abstract_state(recipe)
    key = jax.eval_shape(lambda: jax.random.key(0))
    step = jax.jit(
        lambda state, batch, key: train_step(state, batch, key, recipe),
        donate_argnums=0,
        out_shardings=(jax.tree.map(lambda leaf: leaf.sharding, state), replicated(recipe.mesh)),
    )
    return step.lower(state, abstract_batch(config, recipe), key)


def compile_train_step(config: Config, recipe: Recipe) -> jax.stages.Compiled:
    """The one executable of a run: `(state, batch, key) -> (state, metrics)`.

    It is compiled once and refuses, rather than recompiles for, arguments of another shape or placement.
    """
    return lower_train_step(config, recipe).compile()


def compile_all_finite(recipe: Recipe) -> jax.stages.Compiled:
    """The executable `state -> bool scalar` that says whether no number of a train state is NaN or infinite."""

    def all_finite(state: TrainState) -> jax.Array:
        numbers = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in numbers]))

    return jax.jit(all_finite, out_shardings=replicated(recipe.mesh)).lower(abstract_state(recipe)).compile()
