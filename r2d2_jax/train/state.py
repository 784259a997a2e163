"""The train state: everything that a step changes, as arrays and nothing else."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from r2d2_jax.arrays import Params
from r2d2_jax.config.model import ModelConfig
from r2d2_jax.config.reading import Config
from r2d2_jax.config.tasks import LossConfig
from r2d2_jax.models.r2d2 import R2D2, abstract_params, init_params
from r2d2_jax.rng import stream
from r2d2_jax.sharding import state_shardings
from r2d2_jax.train.optimizer import learning_rate_schedule, make_optimizer
from r2d2_jax.train.queue import Queue, empty_queue


@struct.dataclass
class TrainState:
    """What is saved, restored and carried from step to step.

    step: int32 scalar, completed steps.
    params: the student, every parameter of the model.
    teacher: exponential moving average of the parts in `teacher_parts`; None when nothing distils.
    opt_state: of the trainable parameters only.
    queue: None unless target-guided distillation is on.
    feature_mean: float32 [e], running mean of the teacher's text features; None unless feature-guided distillation is
        on.
    """

    step: jax.Array
    params: Params
    teacher: Params | None
    opt_state: optax.OptState
    queue: Queue | None
    feature_mean: jax.Array | None


@dataclass(frozen=True)
class SpecialTokens:
    """Token ids that the step must know."""

    mask_id: int
    cls_id: int
    sep_id: int
    pad_id: int


@dataclass(frozen=True, eq=False)
class Recipe:
    """What a step needs beside arrays; compared by identity, so one recipe means one compilation.

    Attributes:
        model: the Linen module.
        loss: which terms there are.
        trainable_parts: names of the top-level parameter groups that receive gradients.
        teacher_parts: names of the groups that the teacher keeps an average of.
        temperature_range: bounds of the learned temperature.
        optimizer: over the trainable groups.
        learning_rate: schedule, for the log.
        soft_target_ramp_steps: steps over which the teacher's share of the target grows from 0.
        tokens: special token ids.
        mesh: the devices.
    """

    model: R2D2
    loss: LossConfig
    trainable_parts: tuple[str, ...]
    teacher_parts: tuple[str, ...]
    temperature_range: tuple[float, float]
    optimizer: optax.GradientTransformation
    learning_rate: optax.Schedule
    soft_target_ramp_steps: int
    tokens: SpecialTokens
    mesh: Mesh

    def teacher_sees_own_image(self) -> bool:
        """Whether the teacher has an image tower of its own, because the student's is trained."""
        return "image_encoder" in self.teacher_parts


def make_model(config: Config) -> R2D2:
    """The module with the parts that the configured losses train."""
    return R2D2(config.model, matching=config.loss.fgr, masked_lm=config.loss.mlm)


def make_recipe(config: Config, tokens: SpecialTokens, mesh: Mesh, *, total_steps: int, epoch_steps: int) -> Recipe:
    """Resolves a configuration into a recipe.

    Args:
        config: the whole configuration.
        tokens: special token ids of the vocabulary.
        mesh: the devices.
        total_steps: length of the run, for the learning rate.
        epoch_steps: steps per epoch, for the ramp of the soft targets.
    """
    model = make_model(config)
    parts = tuple(abstract_params(model))
    schedule = learning_rate_schedule(config.optimizer, total_steps)
    return Recipe(
        model=model,
        loss=config.loss,
        trainable_parts=tuple(part for part in parts if part not in _frozen_parts(config.model)),
        teacher_parts=_teacher_parts(config) if config.loss.has_teacher else (),
        temperature_range=config.model.temperature_range,
        optimizer=make_optimizer(config.optimizer, schedule),
        learning_rate=schedule,
        soft_target_ramp_steps=round(config.loss.soft_target_ramp_epochs * epoch_steps),
        tokens=tokens,
        mesh=mesh,
    )


def _frozen_parts(model: ModelConfig) -> tuple[str, ...]:
    return ("image_encoder",) if model.freeze_image_tower else ()


def _teacher_parts(config: Config) -> tuple[str, ...]:
    text = ("text_encoder", "text_projection")
    if config.loss.contrastive != "tgd":
        return text
    image = ("image_projection",) if config.model.freeze_image_tower else ("image_projection", "image_encoder")
    return text + image


def init_state(recipe: Recipe, key: jax.Array) -> TrainState:
    """A fresh state; the teacher starts as a copy of the student."""
    params = init_params(recipe.model, stream(key, "init", 0))
    embed_size, loss = recipe.model.config.embed_size, recipe.loss
    teacher = {part: jax.tree.map(jnp.copy, params[part]) for part in recipe.teacher_parts}
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        teacher=teacher or None,
        opt_state=recipe.optimizer.init({part: params[part] for part in recipe.trainable_parts}),
        queue=empty_queue(loss.queue_length, embed_size) if loss.contrastive == "tgd" else None,
        feature_mean=jnp.zeros((embed_size,)) if loss.fgd else None,
    )


def abstract_state(recipe: Recipe) -> TrainState:
    """Shapes, dtypes and shardings of the state, without computing it."""
    shapes = jax.eval_shape(lambda key: init_state(recipe, key), jax.random.key(0))
    shardings = state_shardings(shapes, recipe.mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )


def sharded_init_state(recipe: Recipe, key: jax.Array) -> TrainState:
    """`init_state`, with every array created where it lives."""
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(recipe))
    return jax.jit(lambda key: init_state(recipe, key), out_shardings=shardings)(key)
