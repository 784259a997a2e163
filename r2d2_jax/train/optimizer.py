"""AdamW with warm-up, cosine decay and clipping, and what it does not decay."""

from typing import Any

import jax
import optax

from r2d2_jax.config.run import OptimizerConfig
from r2d2_jax.sharding import path_name

# Ends of the paths of parameters without weight decay: biases, norms, and the learned temperature.
NOT_DECAYED = ("bias", "scale", "temperature")


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Linear warm-up from 0, then a cosine to the final learning rate at `total_steps`."""
    warmup = min(config.warmup_steps, max(total_steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=0.0 if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(total_steps, 1),
        end_value=config.final_learning_rate,
    )


def decayed(params: Any) -> Any:
    """True for every parameter that weight decay applies to: not biases, norms or the temperature."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).split("/")[-1] not in NOT_DECAYED, params)


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """Clips the global gradient norm, then AdamW."""
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            schedule,
            b1=config.beta1,
            b2=config.beta2,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            mask=decayed,
        ),
    )
