"""A run starts from the weights that its configuration names, and says what starts random."""

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
import transformers
from small_model import VOCABULARY, assert_bitwise_equal, named_leaves, small_config, small_plan
from transformers_models import bert_config, clip_config

from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import InitialWeightsConfig
from r2d2_jax.convert.conversion import write_model
from r2d2_jax.convert.huggingface import image_tower, text_tower
from r2d2_jax.convert.resize import resized_positions
from r2d2_jax.errors import UserError
from r2d2_jax.models.store import Model
from r2d2_jax.train.checkpoint import Checkpoints
from r2d2_jax.train.initial import with_initial_weights
from r2d2_jax.train.state import TrainState, abstract_state, sharded_init_state
from r2d2_jax.vocabulary import Vocabulary

TOKENS = Vocabulary(VOCABULARY)


@functools.cache
def fresh_state(config: Config, seed: int) -> TrainState:
    plan = small_plan(config)
    return sharded_init_state(plan.task, plan.optimizer, plan.mesh, jax.random.key(seed))


def started(config: Config) -> tuple[TrainState, TrainState, list[str]]:
    """(fresh state, the same with initial weights, notes)."""
    fresh = fresh_state(config, 0)
    state, notes, _ = with_initial_weights(fresh, small_plan(config).task, config, TOKENS)
    return fresh, state, notes


def with_initial(config: Config, **initial: str) -> Config:
    return dataclasses.replace(config, initial=InitialWeightsConfig(**initial))


@pytest.fixture(scope="module")
def towers(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Folders of a CLIPVisionModel and a BertForMaskedLM of the small sizes."""
    image, text = small_config().model.image, small_config().model.text
    clip, bert = tmp_path_factory.mktemp("clip"), tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    transformers.CLIPVisionModel(clip_config(image)).save_pretrained(clip)
    transformers.BertForMaskedLM(bert_config(text)).save_pretrained(bert)
    return clip, bert


def test_towers_and_teacher_start_from_the_named_weights(towers: tuple[Path, Path]) -> None:
    clip, bert = map(str, towers)
    config = with_initial(small_config(), image=clip, text=bert)
    fresh, state, notes = started(config)
    want = image_tower(clip, config.model).params | text_tower(bert, config.model, masked_lm=True).params
    assert set(want) == {"image_encoder", "text_encoder", "masked_lm_head"}
    for part, params in want.items():
        assert_bitwise_equal(named_leaves(state.params[part]), named_leaves(params))
    assert state.memory.teacher is not None
    assert_bitwise_equal(named_leaves(state.memory.teacher["text_encoder"]), named_leaves(state.params["text_encoder"]))
    ours, theirs = (
        tree["text_encoder"]["word_embedding"]["embedding"] for tree in (state.params, state.memory.teacher)
    )
    assert ours.unsafe_buffer_pointer() != theirs.unsafe_buffer_pointer(), "the step gives both away"
    untouched = [part for part in fresh.params if part not in want]
    for part in untouched:
        assert_bitwise_equal(named_leaves({"": state.params[part]}), named_leaves({"": fresh.params[part]}))
    assert f"start from scratch, with random weights: {', '.join(untouched)}" in notes


def test_without_initial_weights_everything_is_said_to_be_random() -> None:
    fresh, state, notes = started(small_config())
    assert state is fresh
    assert notes == ["start from scratch, with random weights: all of the model"]


def test_a_whole_model_goes_on_from_another(tmp_path: Path) -> None:
    config = small_config()
    fresh = fresh_state(config, 5)
    sizes = dataclasses.replace(config.model, dtype="float32")
    write_model(Model(sizes, jax.tree.map(np.asarray, fresh.params), vocabulary=TOKENS), tmp_path / "model")
    _, state, notes = started(with_initial(config, model=str(tmp_path / "model")))
    assert_bitwise_equal(named_leaves(state.params), named_leaves(fresh.params))
    assert notes == [f"whole model from {tmp_path / 'model'}"]


@pytest.mark.parametrize(
    "maps, note",
    [
        (False, "as [UNK], in this run they are ASCII: data.map_punctuation is True"),
        (True, "as ASCII, in this run they are [UNK]: data.map_punctuation is False"),
    ],
)
def test_a_model_that_learned_other_punctuation_is_taken_and_said(tmp_path: Path, maps: bool, note: str) -> None:
    config = small_config({"data": {"map_punctuation": not maps}})
    fresh = fresh_state(config, 5)
    sizes = dataclasses.replace(config.model, dtype="float32")
    write_model(Model(sizes, jax.tree.map(np.asarray, fresh.params), {}, TOKENS, maps), tmp_path / "model")
    _, state, notes = started(with_initial(config, model=str(tmp_path / "model")))
    assert_bitwise_equal(named_leaves(state.params), named_leaves(fresh.params))
    assert notes[1:] == [f"the model learned Chinese quotation marks, ellipsis and dash {note}"]


def test_a_model_of_another_size_is_refused_leaf_by_leaf(tmp_path: Path) -> None:
    config = small_config()
    fresh = fresh_state(config, 5)
    write_model(Model(config.model, jax.tree.map(np.asarray, fresh.params)), tmp_path / "model")
    other = small_config({"model": {"embed_size": 8}})
    line = r"kernel: \[16, 16\] in the weights, \[16, 8\] in the model"
    with pytest.raises(UserError, match=rf"of another model(.|\n)*{line}"):
        started(with_initial(other, model=str(tmp_path / "model")))


def test_a_whole_model_of_another_image_size_is_interpolated_only_when_asked(tmp_path: Path) -> None:
    config = small_config()
    params = jax.tree.map(np.asarray, fresh_state(config, 5).params)
    write_model(Model(dataclasses.replace(config.model, dtype="float32"), params), tmp_path / "model")
    side, patch = config.model.image.image_size, config.model.image.patch_size
    larger = small_config({"model": {"image": {"image_size": side + patch}}})
    asked = with_initial(larger, model=str(tmp_path / "model"))
    with pytest.raises(
        UserError, match="reads images of . patches, and model.image.image_size .* set initial.resize_positions"
    ):
        started(asked)
    initial = dataclasses.replace(asked.initial, resize_positions=True)
    _, state, notes = started(dataclasses.replace(asked, initial=initial))
    old, new = config.model.image.patches, larger.model.image.patches
    want = resized_positions(params["image_encoder"]["position_embedding"], new, "model")
    np.testing.assert_array_equal(state.params["image_encoder"]["position_embedding"], want)
    assert f"position embeddings: interpolated from {old} to {new} patches" in notes


def test_a_model_and_towers_contradict_each_other() -> None:
    with pytest.raises(UserError, match=r"initial.model is set and so is initial.image or initial.text"):
        small_config({"initial": {"model": "a", "image": "b"}})


def test_a_run_goes_on_where_its_initial_weights_are_gone(tmp_path: Path, towers: tuple[Path, Path]) -> None:
    config = with_initial(small_config(), image=str(towers[0]))
    _, state, _ = started(config)
    checkpoints = Checkpoints(tmp_path, config.train)
    checkpoints.save(state, config, {})
    checkpoints.wait()
    moved = with_initial(config, image=str(tmp_path / "gone"))
    plan = small_plan(moved)
    restored, _ = checkpoints.restore(abstract_state(plan.task, plan.optimizer, plan.mesh), moved)
    assert_bitwise_equal(named_leaves(restored), named_leaves(state))
