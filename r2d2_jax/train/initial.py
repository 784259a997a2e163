"""Initial weights: where a run's parameters come from before its first step."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import InitialWeightsConfig
from r2d2_jax.convert.conversion import open_model
from r2d2_jax.convert.huggingface import image_tower, text_tower
from r2d2_jax.convert.resize import interpolated, resized_positions
from r2d2_jax.errors import UserError, bulleted
from r2d2_jax.tasks.task import Task
from r2d2_jax.train.state import TrainState
from r2d2_jax.trees import shape_differences


def with_initial_weights(state: TrainState, task: Task, config: Config) -> tuple[TrainState, list[str]]:
    """Puts the configured weights into a fresh state; what the task carries is made anew from them.

    Args:
        state: a fresh state.
        task: what is learned.
        config: `initial` says what is read.

    Returns:
        The state, every leaf placed as before, and notes for the log, one line each.

    Raises:
        UserError: weights are absent, damaged or of another size; lists every name that differs.
    """
    loaded, notes = initial_params(config, masked_lm=task.model.masked_lm)
    if left_out := [part for part in loaded if part not in state.params]:
        notes.append(f"left out, since {config.task} does not train it: {', '.join(left_out)}")
    scratch = [part for part in state.params if part not in loaded]
    if scratch:
        notes.append(f"start from scratch, with random weights: {', '.join(scratch)}")
    if not loaded:
        return state, notes
    params = state.params | _placed(loaded, _parts(state.params, loaded))
    placement = jax.tree.map(lambda leaf: leaf.sharding, state.memory)
    memory = jax.jit(task.init, out_shardings=placement)(params)
    return dataclasses.replace(state, params=params, memory=memory), notes


def initial_params(config: Config, *, masked_lm: bool) -> tuple[Params, list[str]]:
    """The parameters that the configuration names, in host memory, by parts of the model, and notes for the log."""
    initial = config.initial
    params: Params = {}
    notes: list[str] = []
    if initial.model:
        params, notes = _whole_model(initial, config)
    if initial.image:
        weights = image_tower(initial.image, config.model, resize_positions=initial.resize_positions)
        params |= weights.params
        notes += [f"image tower from {initial.image}", *weights.notes]
    if initial.text:
        weights = text_tower(initial.text, config.model, masked_lm=masked_lm)
        params |= weights.params
        notes += [f"text tower from {initial.text}", *weights.notes]
    return params, notes


def _whole_model(initial: InitialWeightsConfig, config: Config) -> tuple[Params, list[str]]:
    model, notes = open_model(Path(initial.model).expanduser()), [f"whole model from {initial.model}"]
    notes += model.notes
    params, patches = model.params, config.model.image.patches
    if model.maps_punctuation != config.data.map_punctuation:
        notes.append(_other_punctuation(config.data.map_punctuation))
    positions = params["image_encoder"]["position_embedding"]
    if initial.resize_positions and len(positions) != patches + 1:
        resized = resized_positions(positions, patches, initial.model)
        params = params | {"image_encoder": params["image_encoder"] | {"position_embedding": resized}}
        notes.append(interpolated(len(positions) - 1, patches))
    return params, notes


def _other_punctuation(now: bool) -> str:
    """Allowed, because a model learns the marks anew, and the published one never knew them (our decision)."""
    known, becomes = ("[UNK]", "ASCII") if now else ("ASCII", "[UNK]")
    return (
        f"the model learned Chinese quotation marks, ellipsis and dash as {known}, in this run they are {becomes}: "
        f"data.map_punctuation is {now}"
    )


def _parts(params: Params, names: Iterable[str]) -> Params:
    """The named parts, as far as there are such."""
    return {name: params[name] for name in names if name in params}


def _placed(loaded: Params, fresh: Params) -> Params:
    """The loaded leaves of the parts that `fresh` has, where the fresh ones are.

    Raises:
        UserError: lists the leaves that differ.
    """
    read = _parts(loaded, fresh)
    if differences := shape_differences(read, fresh):
        raise UserError(
            "the initial weights are of another model; choose weights of the configured sizes. What differs:\n"
            + bulleted(differences)
        )
    return jax.tree.map(lambda values, leaf: _global(np.asarray(values, leaf.dtype), leaf), read, fresh)


def _global(values: np.ndarray, like: jax.Array) -> jax.Array:
    # A copy, because JAX may take over the memory, and student and teacher must not share theirs.
    return jax.make_array_from_callback(values.shape, like.sharding, lambda index: values[index].copy())
