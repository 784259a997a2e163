"""The end of a fine-tuning: the best epoch on validation, one test of its weights, and whose weights are read later."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_model import RETRIEVAL, assert_bitwise_equal, log_lines, named_leaves, saved_state, small_config
from small_runs import Left, before_batch, kept, run

from r2d2_jax.convert.conversion import open_model
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.progress import Progress
from r2d2_jax.runs import load_state
from r2d2_jax.train import loop, setup
from r2d2_jax.train.choice import best_of, epoch_ends, scores_of
from r2d2_jax.train.loop import RunOutcome

SCORES = (30.0, 50.0, 40.0)  # of the three epochs; each has four steps
CONFIG: tuple[dict[str, Any], ...] = (
    RETRIEVAL,
    {"model": {"cross": {"layers": 0}}, "retrieval": {"fgr": False}, "evaluation": {"rerank_candidates": 0}},
    {"data": {"test_split": "swapped"}, "train": {"epochs": 3.0, "evaluate_every_epochs": 1.0, "keep_last": 1}},
)


@dataclass
class Found:
    """A report with the figures that a test gave it, and a number that tells the weights apart."""

    role: str
    score: float
    weights: float

    def metrics(self) -> dict[str, float]:
        return {f"{self.role}/dual/mean": self.score, f"{self.role}/weights": self.weights}

    def scores(self) -> dict[str, float]:
        return {"dual": self.score}

    def table(self) -> str:
        return f"{self.role} {self.score}"


class Evaluator:
    """Gives the first weights that it sees the first of `SCORES`, and the same weights always the same."""

    has_test = True

    def __init__(self) -> None:
        self.seen: dict[float, float] = {}
        self.tests: list[float] = []
        self.leave = self.stop = False

    def evaluate(self, params: Any, *, final: bool) -> Found:
        weights = number_of(params)
        self.seen.setdefault(weights, SCORES[len(self.seen) % len(SCORES)])
        return Found("validation", self.seen[weights], weights)

    def test(self, params: Any, validation: Found) -> Found:
        if self.leave:
            raise Left
        if self.stop:
            signal.raise_signal(signal.SIGTERM)
            list(Progress("images", 1).over([np.zeros(1)]))
        assert validation.weights == number_of(params)
        self.tests.append(validation.weights)
        return Found("test", validation.score - 5, validation.weights)


def number_of(params: Any) -> float:
    return float(sum(np.abs(leaf).sum(dtype=np.float64) for leaf in jax.tree.leaves(jax.device_get(params))))


@pytest.fixture
def evaluator(monkeypatch: pytest.MonkeyPatch) -> Evaluator:
    evaluator = Evaluator()
    monkeypatch.setattr(setup, "build_evaluator", lambda *_: evaluator)
    return evaluator


def chosen(prepared: Path, workdir: Path) -> RunOutcome:
    return run(prepared, workdir, *CONFIG)


def left_behind(workdir: Path) -> tuple[Any, ...]:
    """All that a run says about its evaluations."""
    return json.loads((workdir / "evaluation.json").read_text()), log_lines(workdir), kept(workdir)


def test_the_best_epoch_is_tested_once_and_is_what_others_read(
    prepared: Path, tmp_path: Path, evaluator: Evaluator
) -> None:
    outcome = chosen(prepared, tmp_path)
    assert outcome.choice is not None
    assert (outcome.step, outcome.choice.step, kept(tmp_path)) == (12, 8, [8, 12])
    assert outcome.choice.scores == ((4, 1.0, 30.0), (8, 2.0, 50.0), (12, 3.0, 40.0))
    (best,) = evaluator.tests
    assert evaluator.seen[best] == 50
    values = json.loads((tmp_path / "evaluation.json").read_text())
    assert (values["step"], values["last_step"], values["test/dual/mean"]) == (8, 12, 45)
    assert values["validation/weights"] == values["test/weights"] == best
    assert values["validations"][1] == {"step": 8, "epoch": 2.0, "dual": 50.0}
    lines = [line for line in log_lines(tmp_path) if "loss" not in line]
    assert [line.get("validation/dual/mean") for line in lines] == [30, 50, 40, None]
    assert (lines[-1]["step"], lines[-1]["best_step"], lines[-1]["test/dual/mean"]) == (12, 8, 45)
    table = outcome.choice.table()
    assert "chosen: these weights" in table.splitlines()[2]
    assert table.endswith("validation 50.0\nthe same weights on the test split, measured once\ntest 45.0")
    read = load_state(tmp_path)
    assert (int(read.state["step"]), read.note) == (8, "step 8, the best on validation by dual; the newest is 12")
    model = open_model(tmp_path)
    assert number_of(model.params) == pytest.approx(best)
    assert "read step 8, the best on validation by dual; the newest is 12" in model.notes
    assert int(load_state(tmp_path, 12).state["step"]) == 12
    with pytest.raises(UserError, match=r"there is no checkpoint of step 4 in .*; there are 8, 12"):
        open_model(tmp_path, step=4)


def test_a_kill_at_any_time_changes_nothing_and_a_finished_run_trains_no_more(
    prepared: Path, tmp_path: Path, evaluator: Evaluator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed within the second epoch, stopped at its very end, where it is due, and killed and stopped in the test."""
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    chosen(prepared, whole)

    def killed(call: int) -> None:
        if call == 6:
            raise Left

    with monkeypatch.context() as context:
        before_batch(context, killed)
        with pytest.raises(Left):
            chosen(prepared, broken)
    with monkeypatch.context() as context:
        before_batch(context, lambda call: signal.raise_signal(signal.SIGTERM) if call == 4 else None)
        assert not chosen(prepared, broken).finished
    assert kept(broken) == [4, 8]
    evaluator.leave = True
    with pytest.raises(Left):
        chosen(prepared, broken)
    evaluator.leave, evaluator.stop = False, True
    assert not chosen(prepared, broken).finished
    assert not (broken / "evaluation.json").exists()
    evaluator.stop = False
    for _ in range(2):  # the second time it is finished
        outcome = chosen(prepared, broken)
        assert outcome.choice is not None
        assert (outcome.finished, outcome.choice.step) == (True, 8)
        assert left_behind(broken) == left_behind(whole)
        monkeypatch.setattr(loop, "compile_train_step", None)
    assert_bitwise_equal(saved_state(broken), saved_state(whole))
    assert len(set(evaluator.tests)) == 1


def test_without_a_test_split_the_best_epoch_is_still_chosen(
    prepared: Path, tmp_path: Path, evaluator: Evaluator, caplog: pytest.LogCaptureFixture
) -> None:
    """And a way up that is longer than the run is remarked on."""
    evaluator.has_test = False
    outcome = run(prepared, tmp_path, *CONFIG, {"data": {"test_split": ""}, "optimizer": {"warmup_steps": 500}})
    assert "optimizer.warmup_steps is 500 and the run has 12 steps, so the rate rises to the end" in caplog.text
    assert outcome.choice is not None
    assert (outcome.choice.step, outcome.choice.test, evaluator.tests) == (8, None, [])
    assert named_leaves(load_state(tmp_path).state)["step"] == 8


def test_a_best_checkpoint_that_is_damaged_or_gone_is_not_passed_over_in_silence(
    prepared: Path, tmp_path: Path, evaluator: Evaluator, caplog: pytest.LogCaptureFixture
) -> None:
    """A finished run is started again, for its pictures or another test split."""
    chosen(prepared, tmp_path)
    best = tmp_path / "checkpoints" / "8"
    damaged = max((path for path in best.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = bytearray(damaged.read_bytes())
    content[len(content) // 2] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(UserError, match=r"step 8 in .* is damaged: .* other bytes .*, or rename 8 to 8.damaged to do"):
        chosen(prepared, tmp_path)
    best.rename(best.with_name("8.damaged"))
    outcome = chosen(prepared, tmp_path)
    assert "the weights of step 8 were the best on validation, and their checkpoint is not there" in caplog.text
    assert outcome.choice is not None
    assert (outcome.choice.step, len(evaluator.tests)) == (12, 2)
    assert [line["best_step"] for line in log_lines(tmp_path) if "best_step" in line] == [12], "as in evaluation.json"


def test_a_stage_that_was_not_always_measured_has_no_score_there() -> None:
    """A run may be resumed with or without re-ranking."""
    validations = [(4, {"dual": 60.0}), (8, {"dual": 40.0, "reranked": 50.0}), (12, {"dual": 30.0, "reranked": 50.0})]
    scores = scores_of(validations, "reranked", small_config(), 32)
    assert scores == ((8, 2.0, 50.0), (12, 3.0, 50.0))
    assert best_of(scores) == 12


def test_when_an_epoch_ends() -> None:
    config = small_config({"train": {"batch_size": 8, "evaluate_every_epochs": 1.0}})
    assert [step for step in range(15) if epoch_ends(config, 30, step)] == [4, 8, 11]  # 3.75, 7.5, 11.25
    half = small_config({"train": {"batch_size": 8, "evaluate_every_epochs": 0.5}})
    assert [step for step in range(9) if epoch_ends(half, 32, step)] == [2, 4, 6, 8]
    assert not any(epoch_ends(small_config(), 32, step) for step in range(9))
    often = small_config({"train": {"batch_size": 8, "evaluate_every_epochs": 0.01}})
    assert [step for step in range(4) if epoch_ends(often, 32, step)] == [1, 2, 3]


def test_a_test_split_that_is_not_there_is_said_before_training(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no split 'test'"):
        run(prepared, tmp_path, *CONFIG, {"data": {"test_split": "test"}})
