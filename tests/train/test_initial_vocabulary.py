"""Initial weights are taken only where each word embedding is that of the run's token, or of a new one."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import transformers
from small_model import VOCABULARY, small_config, small_plan
from transformers_models import bert_config

from r2d2_jax.config.reading import Config
from r2d2_jax.convert.conversion import open_model, write_model
from r2d2_jax.errors import UserError
from r2d2_jax.models.store import Model
from r2d2_jax.train.initial import with_initial_weights
from r2d2_jax.train.state import TrainState, sharded_init_state
from r2d2_jax.vocabulary import Vocabulary, write_vocabulary

TOKENS = Vocabulary(VOCABULARY)
SWAPPED = Vocabulary((*VOCABULARY[:5], VOCABULARY[6], VOCABULARY[5], *VOCABULARY[7:]))
OTHER = Vocabulary((*VOCABULARY[:-1], "猫"))
SHORTER = Vocabulary(VOCABULARY[:-2])
ROWS = 32  # of the word embeddings of a small model, three of them without a token


def fresh_state(config: Config) -> TrainState:
    plan = small_plan(config)
    return sharded_init_state(plan.task, plan.optimizer, plan.mesh, jax.random.key(config.train.seed))


def started(config: Config, vocabulary: Vocabulary = TOKENS) -> tuple[TrainState, list[str]]:
    return with_initial_weights(fresh_state(config), small_plan(config).task, config, vocabulary)[:2]


def configured(rows: int = ROWS, **initial: Any) -> Config:
    return small_config({"model": {"text": {"vocabulary_size": rows}}, "initial": initial})


@pytest.fixture
def weights(tmp_path: Path, request: pytest.FixtureRequest) -> tuple[str, str, Path]:
    """The key of `initial`, the weights that it names, and the vocabulary beside them."""
    key, folder = request.param, tmp_path / "weights"
    if key == "model":
        config = configured()
        params = jax.tree.map(np.asarray, fresh_state(configured()).params)
        sizes = dataclasses.replace(config.model, dtype="float32")
        write_model(Model(sizes, params, vocabulary=TOKENS), folder)
    else:
        torch.manual_seed(0)
        transformers.BertForMaskedLM(bert_config(configured().model.text)).save_pretrained(folder)
    return key, str(folder), folder / "vocab.txt"


both = pytest.mark.parametrize("weights", ["model", "text"], indirect=True)


@both
@pytest.mark.parametrize(
    "there, line",
    [
        (SWAPPED, "line 6: '狗' there, '只' here"),
        (OTHER, "line 29: '猫' there, '##9' here"),
        (Vocabulary((*VOCABULARY, "猫")), "line 30: '猫' there, nothing here"),
    ],
)
@pytest.mark.parametrize("allowed", [False, True])
def test_other_tokens_are_refused(weights: tuple[str, str, Path], there: Vocabulary, line: str, allowed: bool) -> None:
    key, folder, path = weights
    write_vocabulary(there, path)
    with pytest.raises(UserError, match="was trained with another vocabulary, .*vocab.txt, than in memory") as refused:
        started(configured(**{key: folder}, longer_vocabulary=allowed))
    assert line in str(refused.value)
    assert f"; set data.vocabulary to {path}. What differs first:" in str(refused.value)


@both
def test_the_same_tokens_in_another_file_are_taken(weights: tuple[str, str, Path]) -> None:
    key, folder, path = weights
    path.write_bytes(b"\xef\xbb\xbf" + TOKENS.content.replace(b"\n", b"\r\n") + b"\r\n")
    _, notes = started(configured(**{key: folder}))
    assert not [note for note in notes if "came without" in note or "new tokens" in note]


@both
def test_a_longer_vocabulary_is_refused_unless_allowed(weights: tuple[str, str, Path]) -> None:
    key, folder, path = weights
    write_vocabulary(SHORTER, path)
    with pytest.raises(UserError, match=r"longer_vocabulary = True(.|\n)*line 28: nothing there, '##8' here"):
        started(configured(**{key: folder}))
    state, notes = started(configured(**{key: folder}, longer_vocabulary=True))
    assert state.params["text_encoder"]["word_embedding"]["embedding"].shape == (ROWS, 16)
    assert not [note for note in notes if "new tokens" in note], "there were rows for them"


@both
def test_new_tokens_start_at_random(weights: tuple[str, str, Path]) -> None:
    key, folder, path = weights
    write_vocabulary(TOKENS, path)
    longer = Vocabulary((*VOCABULARY, *"甲乙丙丁戊"))
    with pytest.raises(UserError, match=r"line 30: nothing there, '甲' here"):
        started(configured(34, **{key: folder}), longer)
    was, _ = started(configured(**{key: folder}))
    config = configured(34, **{key: folder}, longer_vocabulary=True)
    (state, notes), (again, _) = started(config, longer), started(config, longer)
    assert "word embeddings of 2 new tokens start random" in notes
    old, new, same = (
        np.asarray(of.params["text_encoder"]["word_embedding"]["embedding"]) for of in (was, state, again)
    )
    np.testing.assert_array_equal(new[:ROWS], old)
    np.testing.assert_array_equal(new, same)
    assert 0.005 < new[ROWS:].std() < 0.05
    biases = [np.asarray(of.params["masked_lm_head"]["bias"]) for of in (was, state)]
    np.testing.assert_array_equal(biases[1], np.pad(biases[0], (0, 2)))
    assert state.memory.teacher is not None
    np.testing.assert_array_equal(state.memory.teacher["text_encoder"]["word_embedding"]["embedding"], new)


@both
def test_weights_without_a_vocabulary_are_taken_and_said(weights: tuple[str, str, Path]) -> None:
    key, folder, path = weights
    path.unlink(missing_ok=True)
    _, notes = started(configured(**{key: folder}))
    assert f"{folder} came without a vocabulary: its tokens are taken to be those of in memory" in notes


@pytest.mark.parametrize("weights", ["text"], indirect=True)
def test_a_file_of_weights_has_its_vocabulary_beside_it(weights: tuple[str, str, Path]) -> None:
    _, folder, path = weights
    write_vocabulary(SWAPPED, path)
    with pytest.raises(UserError, match="was trained with another vocabulary"):
        started(configured(text=f"{folder}/model.safetensors"))


@pytest.mark.parametrize("weights", ["text"], indirect=True)
def test_fewer_embeddings_are_refused(weights: tuple[str, str, Path]) -> None:
    _, folder, path = weights
    write_vocabulary(TOKENS, path)
    with pytest.raises(UserError, match=r"word_embeddings.weight is \[32, 16\], expected \[40, 16\]"):
        started(configured(40, text=folder))


@pytest.mark.parametrize("weights", ["model"], indirect=True)
def test_a_published_file_has_its_vocabulary_beside_it(weights: tuple[str, str, Path], tmp_path: Path) -> None:
    _, folder, _ = weights
    (tmp_path / "published").mkdir()
    published = tmp_path / "published" / "r2d2.safetensors"
    write_model(open_model(Path(folder)), published)
    write_vocabulary(SWAPPED, published.with_name("vocab.txt"))
    with pytest.raises(UserError, match=r"was trained with another vocabulary, .*published/vocab.txt, than in memory"):
        started(configured(model=str(published)))
