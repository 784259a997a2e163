"""The rule of thumb for queue and teacher: when it warns, and that no shipped configuration makes it."""

from typing import Any

import pytest
from small_model import MATCHING, small_config

from r2d2_jax.config.reading import Config
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.tasks.queue import MOST_REPLACED, old_for_its_teacher

OLD: dict[str, Any] = {"loss": {"queue_length": 36864}, "train": {"batch_size": 128}}


def test_what_it_says() -> None:
    assert old_for_its_teacher(small_config(OLD)) == (
        "the text tower starts from scratch, and the queue is old for its teacher: the oldest entry is 288 steps old "
        "(loss.queue_length 36864 / train.batch_size 128) and weighs 0.055 (loss.queue_decay 0.99), and the teacher is "
        "another one after 200 steps (loss.teacher_momentum 0.995); set loss.queue_length to 5632 at most, or name "
        "initial weights"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"loss": {"queue_length": 5632}},  # as it says
        {"loss": {"queue_decay": 0.95}},  # what is old weighs nothing
        {"loss": {"teacher_momentum": 0.9995}},
        {"loss": {"teacher_momentum": 1.0}},
        {"loss": {"contrastive": "gcpr"}},
        {"initial": {"text": "hfl/chinese-roberta-wwm-ext"}},
        {"initial": {"model": "runs/first"}},
        MATCHING,
    ],
)
def test_when_it_is_silent(change: dict[str, Any]) -> None:
    assert old_for_its_teacher(small_config(OLD, change)) is None


def test_the_longest_queue_that_it_names_is_the_longest() -> None:
    """44 steps of the teacher replace less than its share, 45 more."""
    assert 1 - 0.995**44 < MOST_REPLACED < 1 - 0.995**45
    assert old_for_its_teacher(small_config(OLD, {"loss": {"queue_length": 45 * 128}})) is not None


@pytest.mark.parametrize("name", ["demo", "flickr8k_cn", "vitb_2m", "vitl_23m", "vitl_250m", "prd2_vitl_250m"])
def test_no_shipped_configuration_makes_it(name: str) -> None:
    assert old_for_its_teacher(Config.from_config_dict(read_configuration(name))) is None
