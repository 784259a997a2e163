"""AdamW with clipping and its schedules: what it does not decay, and which leaves have a rate of their own."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax

from r2d2_jax.arrays import Params
from r2d2_jax.config.run import OptimizerConfig
from r2d2_jax.errors import UserError
from r2d2_jax.sharding import path_name
from r2d2_jax.trees import path_end

# Ends of the paths of parameters without weight decay: biases, norms, and the learned temperature.
NOT_DECAYED = ("bias", "scale", "temperature")


@dataclass(frozen=True, eq=False)
class Optimizer:
    """How gradients become updates.

    Attributes:
        transformation: over the trainable parameters.
        learning_rate: the schedule of its common rate, for the log.
    """

    transformation: optax.GradientTransformation
    learning_rate: optax.Schedule


def make_optimizer(config: OptimizerConfig, total_steps: int) -> Optimizer:
    """Clips the global gradient norm, then AdamW, then the factors of `config.rates`.

    Args:
        config: the optimizer's settings.
        total_steps: length of the run; where the cosine ends.
    """
    schedule = learning_rate_schedule(config, total_steps)
    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=decayed,
    )
    if config.first_moment_dtype != "float32":
        adamw = with_first_moment_in(config.first_moment_dtype, adamw)
    steps = [optax.clip_by_global_norm(config.clip_norm), adamw]
    if config.rates:
        steps.append(scaled_by_path(config.rates))
    return Optimizer(optax.chain(*steps), schedule)


def with_first_moment_in(dtype: str, adam: optax.GradientTransformation) -> optax.GradientTransformation:
    """Keeps the mean of gradients in another dtype between steps; each step computes in float32.

    Optax's own `mu_dtype` multiplies in that dtype, where 0.9 is 0.8984 and steps come out more than 1 % too short.
    """

    def kept(state: optax.OptState, dtype: str) -> optax.OptState:
        return optax.tree.set(state, mu=optax.tree.cast(optax.tree.get(state, "mu"), dtype))

    def update(updates: Params, state: optax.OptState, params: Params | None = None) -> tuple[Params, optax.OptState]:
        updates, state = adam.update(updates, kept(state, "float32"), params)
        return updates, kept(state, dtype)

    return optax.GradientTransformation(lambda params: kept(adam.init(params), dtype), update)


def learning_rate_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """The rate of each step; see `OptimizerConfig`.

    Args:
        config: the optimizer's settings.
        total_steps: length of the run. A warm-up before a cosine is never longer, and takes no larger share of it than
            `config.warmup_share`; the sides of a triangle may be longer.
    """
    if config.schedule == "triangular":
        return triangular(config.initial_learning_rate, config.learning_rate, config.warmup_steps)
    warmup = min(config.warmup_steps, int(config.warmup_share * total_steps), max(total_steps - 1, 0))
    return optax.warmup_cosine_decay_schedule(
        init_value=config.initial_learning_rate if warmup else config.learning_rate,
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(total_steps, 1),
        end_value=config.final_learning_rate,
    )


def triangular(low: float, high: float, steps: int) -> optax.Schedule:
    """Rises from `low` to `high` in so many steps, falls in as many, and begins again (PyTorch's CyclicLR)."""

    def schedule(step: jax.typing.ArrayLike) -> jax.Array:
        share = jnp.asarray(jnp.mod(step, 2 * steps), jnp.float32) / steps
        return low + (high - low) * jnp.minimum(share, 2 - share)

    return schedule


def decayed(params: Any) -> Any:
    """True for every parameter that weight decay applies to: not biases, norms or the temperature."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path_name(path).split("/")[-1] not in NOT_DECAYED, params)


def scaled_by_path(rates: tuple[tuple[str, float], ...]) -> optax.GradientTransformation:
    """Multiplies each leaf's update, weight decay included, by the factor of the first pattern that matches its path.

    A pattern matches the end of a path, from a whole name on, as the sharding's rules do.
    """

    def scale(updates: Params, _: Params | None = None) -> Params:
        return jax.tree_util.tree_map_with_path(lambda path, leaf: leaf * _factor(path_name(path), rates), updates)

    return optax.stateless(scale)


def _factor(name: str, rates: tuple[tuple[str, float], ...]) -> float:
    return next((factor for pattern, factor in rates if path_end(pattern).search(name)), 1.0)


def check_rates(config: OptimizerConfig, trainable: Params) -> None:
    """Raises UserError if a pattern of `optimizer.rates` is the first to match no trainable parameter.

    It would change nothing.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(trainable)]
    left = names
    for pattern, _ in config.rates:
        matched = {name for name in left if path_end(pattern).search(name)}
        if not matched:
            raise UserError(
                f"optimizer.rates has a factor for {pattern!r}, which is the end of no trainable parameter's path, or "
                f"of none that an earlier pattern leaves; expected one such as 'bias' or '{names[0]}'"
            )
        left = [name for name in left if name not in matched]
