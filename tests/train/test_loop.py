"""Whole runs on a tiny dataset: what they leave behind, what bad data and bad numbers do, what is compiled."""

import json
import logging
import math
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_data import encode, example
from small_model import CHEAPEST, log_lines, saved_state, small_batch, small_config, small_plan, write_vocabulary
from small_runs import NO_EVALUATION, STEPS, before_batch, kept, run

from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.report import EvaluationReport
from r2d2_jax.evaluation.retrieval import RetrievalReport
from r2d2_jax.preparation.writer import write_dataset
from r2d2_jax.train import compiled, loop, setup
from r2d2_jax.train.checkpoint import Checkpoints
from r2d2_jax.train.loop import RunOutcome
from r2d2_jax.train.metrics import MetricsLog
from r2d2_jax.train.progress import Progress
from r2d2_jax.train.state import sharded_init_state

# --- an undisturbed run ---------------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind(undisturbed: tuple[Path, RunOutcome]) -> None:
    workdir, outcome = undisturbed
    assert (outcome.step, outcome.finished) == (STEPS, True)
    # A second run that another test starts there, and that is refused, leaves an empty lock.
    assert {path.name for path in workdir.iterdir()} - {"lock"} == {
        "checkpoints", "evaluation.json", "lineage.json", "metrics.jsonl", "status.json", "tensorboard", "vocab.txt"
    }  # fmt: skip
    assert any((workdir / "tensorboard").iterdir())
    assert outcome.report is not None
    evaluation = json.loads((workdir / "evaluation.json").read_text())
    assert evaluation == {"step": STEPS, **outcome.report.metrics()}
    assert kept(workdir)[-2:] == [15, 16]
    assert len(kept(workdir)) in (2, 3)  # the best may be the last
    state = saved_state(workdir)
    assert state["step"] == STEPS
    assert all(np.isfinite(leaf).all() for leaf in state.values())


def test_log_of_a_run(undisturbed: tuple[Path, RunOutcome]) -> None:
    lines = [json.loads(line) for line in (undisturbed[0] / "metrics.jsonl").read_text().splitlines()]
    training = [line for line in lines if "loss" in line]
    evaluations = [line for line in lines if "validation/dual/mean" in line]
    assert [line["step"] for line in lines] == sorted(line["step"] for line in lines)
    assert [line["step"] for line in training] == [4, 8, 12, 16]
    assert [line["step"] for line in evaluations] == [6, 12, 16]
    assert len(lines) == 7
    assert all(math.isfinite(value) for line in lines for value in line.values())
    assert len({frozenset(line) for line in training}) == len({frozenset(line) for line in evaluations}) == 1
    expected = {"tgd", "fgr", "mlm", "fgd", "learning_rate", "queue_fill", "epoch", "broken_records",
                "pairs_per_second", "data_wait_share"}  # fmt: skip
    assert expected <= set(training[0])
    assert [line["epoch"] for line in training] == [1.0, 2.0, 3.0, 4.0]
    assert {"validation/reranked/i2t_r1", "validation/chance/t2i_r10", "foil/dual", "foil/match"} <= set(evaluations[0])


def test_the_last_checkpoint_is_not_the_best_only_because_it_was_reranked(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = [({"mean": 40.0}, None), ({"mean": 30.0}, None), ({"mean": 20.0}, {"mean": 90.0})]

    class Evaluator:
        def evaluate(self, params: Any, *, final: bool) -> EvaluationReport:
            return EvaluationReport(RetrievalReport(*reports.pop(0), {"mean": 1.0}), None, 1, 1, 0)

    monkeypatch.setattr(setup, "build_evaluator", lambda *_: Evaluator())
    monkeypatch.setattr(EvaluationReport, "table", lambda report: "")
    run(prepared, tmp_path, CHEAPEST, {"train": {"epochs": 1.5, "evaluate_every": 2, "keep_last": 1}})
    assert kept(tmp_path) == [2, 6]


# --- bad data and bad numbers ---------------------------------------------------------------------------------------


def spoil_from(monkeypatch: pytest.MonkeyPatch, step: int, spoil: Callable[[Any, Any], tuple[Any, Any]]) -> None:
    """From `step` on the train step's state and metrics pass through `spoil`."""

    def compile_step(*arguments: Any) -> Any:
        original = compiled.compile_train_step(*arguments)

        def one_step(state: Any, batch: Any, key: Any) -> Any:
            state, metrics = original(state, batch, key)
            return spoil(state, metrics) if int(state.step) >= step else (state, metrics)

        return one_step

    monkeypatch.setattr(loop, "compile_train_step", compile_step)


@pytest.mark.parametrize("name", ["loss", "gradient_norm"])
def test_metrics_that_are_not_finite_stop_the_run(
    name: str, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NaN at step 5 is seen before anything of it is saved or logged, and again after going on."""
    spoil_from(monkeypatch, 5, lambda state, metrics: (state, metrics | {name: metrics[name] * math.nan}))
    changes = (CHEAPEST, NO_EVALUATION, {"train": {"log_every": 8, "checkpoint_every": 3}})
    for _ in range(2):
        with pytest.raises(UserError) as stopped:
            run(prepared, tmp_path, *changes)
        assert str(stopped.value) == (
            f"what step 5 gave is not finite ({name}); the last good checkpoint is step 3 in {tmp_path}/checkpoints; "
            "lower optimizer.learning_rate or raise optimizer.warmup_steps, then start anew or resume from there"
        )
        assert kept(tmp_path) == [3]
        assert not (tmp_path / "metrics.jsonl").exists()


def test_a_state_that_is_not_finite_is_not_saved(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metrics are of before the update, and so still fine."""

    def spoil(state: Any, metrics: Any) -> tuple[Any, Any]:
        return state.replace(params=state.params | {"temperature": state.params["temperature"] * math.nan}), metrics

    spoil_from(monkeypatch, 6, spoil)
    with pytest.raises(UserError, match=r"train state after step 6 is not finite; the last good checkpoint is step 3"):
        run(prepared, tmp_path, CHEAPEST, NO_EVALUATION, {"train": {"log_every": 8, "checkpoint_every": 3}})
    assert kept(tmp_path) == [3]


def test_a_huge_learning_rate(prepared: Path, tmp_path: Path) -> None:
    changes = (CHEAPEST, NO_EVALUATION, {"optimizer": {"learning_rate": 1e30}, "train": {"log_every": 4}})
    with pytest.raises(UserError, match=r"step [23] gave is not finite \(.*loss.*\); there is no checkpoint yet"):
        run(prepared, tmp_path, *changes)


def test_an_error_leaves_nothing_open(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def batches(*_: Any) -> Iterator[Any]:
        try:
            yield from [{"problems": np.array(["a: bad"] * 11)}]
        finally:
            closed.append("batches")

    def close(name: str, original: Callable[[Any], None]) -> Callable[[Any], None]:
        return lambda thing: closed.append(name) or original(thing)

    monkeypatch.setattr(loop, "build_batches", batches)
    for kind in (Progress, MetricsLog, Checkpoints):
        monkeypatch.setattr(kind, "close", close(kind.__name__, kind.close))
    with pytest.raises(UserError, match="11 of the 22 training records read are unusable"):
        run(prepared, tmp_path, CHEAPEST, NO_EVALUATION)
    assert closed == ["batches", "Progress", "MetricsLog", "Checkpoints"]


@pytest.fixture(scope="module")
def spoiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training records of which 3 are unusable."""
    folder = tmp_path_factory.mktemp("spoiled")
    records = [example(number) for number in range(32)]
    for number in (3, 10, 20):
        records[number] = example(number, image=encode()[:-200])
    write_dataset(folder, {"train": records})
    return write_vocabulary(folder)


def test_broken_records_are_counted_and_shown(
    spoiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also over a stop: the count goes on where it was."""
    changes = (CHEAPEST, NO_EVALUATION, {"data": {"max_broken_share": 0.2}, "train": {"log_every": 4, "epochs": 2.0}})
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 5 else None)
        assert not run(spoiled, tmp_path, *changes).finished
    assert "unusable record, the next one takes its place: train-00000-of-00001#10: the image cannot be" in caplog.text
    assert run(spoiled, tmp_path, *changes).finished
    assert [line["broken_records"] for line in log_lines(tmp_path) if "loss" in line] == [3, 6]


def test_too_many_broken_records_stop_the_run(spoiled: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"3 of the 35 training records read are unusable, more than data.max_broken_"):
        run(spoiled, tmp_path, CHEAPEST, NO_EVALUATION, {"data": {"max_broken_share": 0.05}})


def test_a_batch_larger_than_the_dataset(prepared: Path, tmp_path: Path) -> None:
    changes = (CHEAPEST, NO_EVALUATION, {"train": {"batch_size": 40}})
    with pytest.raises(UserError, match="train.batch_size 40 is larger than the 32 records of split 'train'; lower it"):
        run(prepared, tmp_path, *changes)


def test_a_vocabulary_larger_than_the_embedding(prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has 29 tokens but model.text.vocabulary_size is 28; .* raise it"):
        run(prepared, tmp_path, CHEAPEST, {"model": {"text": {"vocabulary_size": 28}}})


# --- compilation ----------------------------------------------------------------------------------------------------


def test_the_step_is_compiled_once(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trace of the step in the whole run, and nothing at all is compiled after the first step."""
    monkeypatch.setattr(loop, "compile_train_step", compiled.compile_train_step)  # not what another run has compiled
    traces, compilations, seen = [], [], []
    original = compiled.train_step
    monkeypatch.setattr(compiled, "train_step", lambda *inputs: traces.append(1) or original(*inputs))
    listen = lambda event, seconds, **_: compilations.append(event) if "backend_compile" in event else None  # noqa: E731
    before_batch(monkeypatch, lambda call: seen.append(len(compilations)))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(prepared, tmp_path, CHEAPEST, NO_EVALUATION, {"train": {"epochs": 2.0, "checkpoint_every": 3}})
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(traces) == 1
    assert len(seen) == 8
    assert seen[0] > 0
    assert seen[1:] == [seen[1]] * 7


def test_another_shape_is_refused() -> None:
    config = small_config(CHEAPEST)
    plan, key = small_plan(config), jax.random.key(0)
    step = plan.compiled()
    with pytest.raises(TypeError, match="Argument types differ"):
        step(sharded_init_state(plan.task, plan.optimizer, plan.mesh, key), small_batch(0, rows=16), key)
