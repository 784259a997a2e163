"""Initial weights: where a run's parameters come from before its first step."""

import dataclasses
from collections.abc import Iterable

import jax
import numpy as np

from r2d2_jax.arrays import Params
from r2d2_jax.buckets.transfer import on_disk
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import InitialWeightsConfig
from r2d2_jax.convert.conversion import open_model
from r2d2_jax.convert.huggingface import image_tower, located, text_tower
from r2d2_jax.convert.resize import interpolated, resized_positions
from r2d2_jax.errors import UserError, bulleted
from r2d2_jax.lineage import Lineage
from r2d2_jax.models.layers import EMBEDDING_INIT
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.tasks.task import Task
from r2d2_jax.train.state import TrainState
from r2d2_jax.trees import shape_differences
from r2d2_jax.vocabulary import Vocabulary, differences, vocabulary_in


def with_initial_weights(
    state: TrainState, task: Task, config: Config, vocabulary: Vocabulary
) -> tuple[TrainState, list[str], Lineage]:
    """Puts the configured weights into a fresh state; what the task carries is made anew from them.

    Args:
        state: a fresh state.
        task: what is learned.
        config: `initial` says what is read.
        vocabulary: the run's.

    Returns:
        The state, every leaf placed as before; notes for the log, one line each; and the whole model's lineage, empty
        where none is named.

    Raises:
        UserError: weights are absent, damaged, of another size or another vocabulary; lists what differs.
    """
    loaded, notes, lineage = initial_params(config, vocabulary, masked_lm=task.model.masked_lm)
    if left_out := [part for part in loaded if part not in state.params]:
        notes.append(f"left out, since {config.task} does not train it: {', '.join(left_out)}")
    scratch = [part for part in state.params if part not in loaded]
    if scratch:
        named = ", ".join(scratch) if loaded else "all of the model"
        notes.append(f"start from scratch, with random weights: {named}")
    if not loaded:
        return state, notes, lineage
    params = state.params | _placed(loaded, _parts(state.params, loaded))
    placement = jax.tree.map(lambda leaf: leaf.sharding, state.memory)
    memory = jax.jit(task.init, out_shardings=placement)(params)
    return dataclasses.replace(state, params=params, memory=memory), notes, lineage


def initial_params(config: Config, vocabulary: Vocabulary, *, masked_lm: bool) -> tuple[Params, list[str], Lineage]:
    """The parameters that the configuration names, in host memory, by parts of the model; notes; their lineage."""
    initial = config.initial
    params: Params = {}
    notes: list[str] = []
    lineage: Lineage = ()
    if initial.model:
        params, notes, lineage = _whole_model(initial, config, vocabulary)
    if initial.image:
        with on_disk(initial.image) as name:
            weights = image_tower(name, config.model, resize_positions=initial.resize_positions)
        params |= weights.params
        notes += [f"image tower from {initial.image}", *weights.notes]
    if initial.text:
        with on_disk(initial.text) as name:
            unknown = same_tokens(vocabulary_in(located(name).parent), vocabulary, initial.text, initial)
            weights = text_tower(name, config.model, masked_lm=masked_lm, fewer_tokens=initial.longer_vocabulary)
        params |= weights.params
        notes += [f"text tower from {initial.text}", *unknown, *weights.notes]
    if initial.longer_vocabulary:
        params, added = with_new_tokens(params, config.model.text.vocabulary_size, config.train.seed)
        notes += added
    return params, notes, lineage


def same_tokens(there: Vocabulary | None, here: Vocabulary, source: str, initial: InitialWeightsConfig) -> list[str]:
    """Checks that every word embedding becomes that of the token that it was trained for.

    Args:
        there: the vocabulary beside the weights; None if there is none.
        here: the run's vocabulary.
        source: where the weights are.
        initial: whether `here` may be `there` and more.

    Returns:
        A note for the log if this cannot be told.

    Raises:
        UserError: the vocabularies differ; names the first lines that do.
    """
    if there is None:
        return [f"{source} came without a vocabulary: its tokens are taken to be those of {here.name}"]
    longer = here[: len(there)] == there
    if there == here or (longer and initial.longer_vocabulary):
        return []
    allow = "initial.longer_vocabulary = True to start the new tokens at random, or set " if longer else ""
    raise UserError(
        f"{source} was trained with another vocabulary, {there.name}, than {here.name}: its word embeddings would be "
        f"those of other tokens; set {allow}data.vocabulary to {there.name}. What differs first:\n"
        f"{differences(there, here)}"
    )


def with_new_tokens(params: Params, size: int, seed: int) -> tuple[Params, list[str]]:
    """Adds rows for new tokens to the word embeddings and the bias of the masked-language-model head.

    Rows are drawn, and biases zero, as in a text tower that starts at random; our decision.

    Args:
        params: by parts of the model; their arrays have at most `size` rows.
        size: `v`, of the run.
        seed: of the rows.

    Returns:
        The parameters, and a note for the log if there are new rows.
    """
    if "text_encoder" not in params:
        return params, []
    text, head = params["text_encoder"], params.get("masked_lm_head")
    table = text["word_embedding"]["embedding"]
    count = size - len(table)
    if count <= 0:
        return params, []
    rows = EMBEDDING_INIT(jax.random.key(seed), (count, table.shape[1]), table.dtype)
    text = text | {"word_embedding": {"embedding": np.concatenate([table, np.asarray(rows)])}}
    params = params | {"text_encoder": text}
    if head is not None:
        params |= {"masked_lm_head": head | {"bias": np.pad(head["bias"], (0, count))}}
    return params, [f"word embeddings of {count} new tokens start random"]


def _whole_model(
    initial: InitialWeightsConfig, config: Config, vocabulary: Vocabulary
) -> tuple[Params, list[str], Lineage]:
    path = path_or_bucket(initial.model)
    try:
        model, notes = open_model(path), [f"whole model from {initial.model}"]
    except UserError as error:
        raise UserError(f"initial.model: {error}") from error
    there = vocabulary_in(path.parent) if path.is_file() else model.vocabulary  # a published file keeps none
    notes += same_tokens(there, vocabulary, initial.model, initial)
    notes += model.notes
    params, patches = model.params, config.model.image.patches
    if model.maps_punctuation != config.data.map_punctuation:
        notes.append(_other_punctuation(config.data.map_punctuation))
    positions = params["image_encoder"]["position_embedding"]
    if len(positions) != patches + 1:
        _check_resizing(initial, config, len(positions) - 1)
        resized = resized_positions(positions, patches, initial.model)
        params = params | {"image_encoder": params["image_encoder"] | {"position_embedding": resized}}
        notes.append(interpolated(len(positions) - 1, patches))
    return params, notes, model.lineage


def _check_resizing(initial: InitialWeightsConfig, config: Config, patches: int) -> None:
    """Raises UserError unless position embeddings for so many patches may be interpolated."""
    image = config.model.image
    if not initial.resize_positions:
        raise UserError(
            f"{initial.model} reads images of {patches} patches, and model.image.image_size {image.image_size} with "
            f"patches of {image.patch_size} makes {image.patches}; set initial.resize_positions = True to interpolate "
            "the position embeddings, or go back to the model's image_size"
        )


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
