"""A whole fine-tuning for matching on labelled pairs: it learns, is measured, and resumes bit by bit."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
from small_data import example
from small_model import MATCHING, RETRIEVAL, assert_bitwise_equal, log_lines, saved_state, write_vocabulary
from small_runs import before_batch, run

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.writer import write_dataset
from r2d2_jax.train.loop import RunOutcome

NAMES = ("no match", "match")
CONFIG: tuple[dict[str, Any], ...] = (
    MATCHING,
    {"data": {"test_split": "test"}, "optimizer": {"schedule": "triangular", "warmup_steps": 6}},
    {"train": {"epochs": 2.0, "log_every": 4, "evaluate_every_epochs": 1.0, "keep_last": 1}},
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of every image one text that matches and one that does not."""
    folder = tmp_path_factory.mktemp("pairs")
    splits = {"train": range(16), "validation": range(100, 106), "test": range(200, 206)}

    def labelled(number: int) -> list[Any]:
        one = example(number, f"{number}只狗")
        return [dataclasses.replace(one, label=1), dataclasses.replace(one, captions=("红球",), label=0)]

    examples = {name: [pair for n in numbers for pair in labelled(n)] for name, numbers in splits.items()}
    write_dataset(folder, examples, class_names=NAMES)
    return write_vocabulary(folder)


@pytest.fixture(scope="module")
def whole(pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(pairs, workdir, *CONFIG)


def test_what_is_measured_and_said(whole: tuple[Path, RunOutcome]) -> None:
    workdir, outcome = whole
    assert outcome.choice is not None
    assert outcome.choice.stage == "match"
    validation, test = outcome.choice.validation, outcome.choice.test
    assert test is not None
    found = validation.metrics() | test.metrics()
    assert json.loads((workdir / "evaluation.json").read_text()).items() >= found.items()
    assert found["test/match/threshold"] == found["validation/match/threshold"], "chosen on validation"
    assert found["test/dual/threshold"] == found["validation/dual/threshold"]
    lines = log_lines(workdir)
    aucs = [line["validation/match/auc"] for line in lines if "validation/match/auc" in line]
    assert [score for _, _, score in outcome.choice.scores] == aucs
    assert len(aucs) == 2
    table = outcome.choice.table()
    assert "matching on validation, 12 pairs of 6 images, 6 match" in table
    assert "matching on test, 12 pairs of 6 images, 6 match" in table
    assert {"loss", "match_accuracy", "no_match_accuracy"} <= set(lines[0])


def test_a_stopped_run_resumes_bitwise(
    pairs: Path, whole: tuple[Path, RunOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as context:
        before_batch(context, lambda call: signal.raise_signal(signal.SIGTERM) if call == 6 else None)
        assert not run(pairs, tmp_path, *CONFIG).finished
    assert run(pairs, tmp_path, *CONFIG).finished
    assert_bitwise_equal(saved_state(tmp_path), saved_state(whole[0]))
    assert log_lines(tmp_path) == log_lines(whole[0])
    assert (tmp_path / "evaluation.json").read_text() == (whole[0] / "evaluation.json").read_text()


@pytest.mark.parametrize("other", [{}, RETRIEVAL])
def test_pairs_that_may_not_match_are_for_this_task_alone(
    other: dict[str, Any], pairs: Path, prepared: Path, tmp_path: Path
) -> None:
    """As training data, and as the test split of another data set."""
    message = "has labels, which say whether image and text match, and to this task every pair is a right one; set task"
    with pytest.raises(UserError, match=f"split 'train' of .* {message}"):
        run(pairs, tmp_path, other)
    with pytest.raises(UserError, match=f"split 'test' of .* {message}"):
        run(prepared, tmp_path, other, {"data": {"test_split": "test", "test_directory": str(pairs)}})


def test_a_corpus_without_labels_cannot_be_trained_on(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="split 'train' of .* has no labels, which say whether image and text match"):
        run(prepared, tmp_path, *CONFIG)
