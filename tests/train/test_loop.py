"""Whole runs on a tiny dataset: what they leave behind, and that a disturbed run ends as an undisturbed one does."""

import json
import logging
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from small_data import encode, example
from small_model import (
    CHEAPEST,
    RETRIEVAL,
    assert_bitwise_equal,
    config_values,
    log_lines,
    saved_state,
    small_batch,
    small_config,
    small_plan,
    write_small_dataset,
    write_vocabulary,
)

from r2d2_jax.convert.conversion import open_model
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.report import EvaluationReport
from r2d2_jax.evaluation.retrieval import RetrievalReport
from r2d2_jax.preparation.writer import write_dataset
from r2d2_jax.train import compiled, loop, setup, signals
from r2d2_jax.train.checkpoint import Checkpoints
from r2d2_jax.train.loop import RunOutcome, train
from r2d2_jax.train.metrics import MetricsLog
from r2d2_jax.train.progress import Progress
from r2d2_jax.train.state import sharded_init_state

ROOT = Path(__file__).resolve().parents[2]
STEPS = 16  # 4 epochs of 32 records in batches of 8
# Logs at 4, 8, 12, 16; evaluates at 6, 12, 16; saves at 5, 6, 10, 12, 15, 16.
RUN: dict[str, Any] = {
    "data": {"foil_split": "swapped"},
    "train": {"epochs": 4.0, "log_every": 4, "evaluate_every": 6, "checkpoint_every": 5},
}
NO_EVALUATION: dict[str, Any] = {"data": {"validation_split": ""}}


def run(prepared: Path, workdir: Path, *changes: Mapping[str, Any]) -> RunOutcome:
    return train(small_config(*changes, {"data": {"directory": str(prepared)}}), workdir)


class Left(BaseException):
    """Stands for the end of the process."""


def before_batch(monkeypatch: pytest.MonkeyPatch, act: Callable[[int], None]) -> None:
    """Calls `act` with 1, 2, ... before each batch that the loop asks for."""
    original, calls = loop.next_batch, iter(range(1, 10**6))

    def next_batch(batches: Iterator[Any], progress: Any) -> Any:
        act(next(calls))
        return original(batches, progress)

    monkeypatch.setattr(loop, "next_batch", next_batch)


@pytest.fixture(scope="module")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    return workdir, run(prepared, workdir, RUN)


@pytest.fixture(scope="module")
def undisturbed_retrieval(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    workdir = tmp_path_factory.mktemp("runs") / "retrieval"
    return workdir, run(prepared, workdir, RUN, RETRIEVAL)


def assert_as_undisturbed(workdir: Path, undisturbed: Path) -> None:
    """Same final state, same log (but for speed), same evaluation, same checkpoints kept."""
    assert_bitwise_equal(saved_state(workdir), saved_state(undisturbed))
    assert log_lines(workdir) == log_lines(undisturbed)
    assert (workdir / "evaluation.json").read_text() == (undisturbed / "evaluation.json").read_text()
    assert kept(workdir) == kept(undisturbed)


def kept(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir())


# --- an undisturbed run ---------------------------------------------------------------------------------------------


def test_what_a_run_leaves_behind(undisturbed: tuple[Path, RunOutcome]) -> None:
    workdir, outcome = undisturbed
    assert (outcome.step, outcome.finished) == (STEPS, True)
    assert {path.name for path in workdir.iterdir()} == {
        "checkpoints", "evaluation.json", "metrics.jsonl", "tensorboard", "vocab.txt"
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


# --- disturbed runs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [6, 7])
def test_a_stopped_run_goes_on_exactly(
    step: int,
    prepared: Path,
    undisturbed: tuple[Path, RunOutcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stopped in the middle of a window of the log; after step 6 there is also an evaluation due."""
    with monkeypatch.context() as patch:
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == step else None)
        outcome = run(prepared, tmp_path, RUN)
    assert (outcome.step, outcome.finished) == (step, False)
    assert kept(tmp_path)[-1] == step
    assert not (tmp_path / "evaluation.json").exists()
    assert run(prepared, tmp_path, RUN).finished
    assert_as_undisturbed(tmp_path, undisturbed[0])


@pytest.mark.parametrize("task, changes", [("undisturbed", {}), ("undisturbed_retrieval", RETRIEVAL)])
def test_a_killed_run_goes_on_exactly(
    task: str, changes: dict[str, Any], prepared: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """SIGKILL before step 10: what steps 7 to 9 did and logged is lost, and done again."""
    program = """
import json, os, signal, sys
from pathlib import Path
from ml_collections import ConfigDict
from r2d2_jax.config.reading import Config
from r2d2_jax.train import loop
original, calls = loop.next_batch, iter(range(1, 1000))
def next_batch(batches, progress):
    if next(calls) == 10:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(batches, progress)
loop.next_batch = next_batch
loop.train(Config.from_config_dict(ConfigDict(json.loads(sys.argv[1]))), Path(sys.argv[2]))
"""
    undisturbed: tuple[Path, RunOutcome] = request.getfixturevalue(task)
    values = config_values(RUN, changes, {"data": {"directory": str(prepared)}})
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(values), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [line["step"] for line in log_lines(tmp_path)] == [4, 6, 8]
    assert run(prepared, tmp_path, RUN, changes).finished
    assert_as_undisturbed(tmp_path, undisturbed[0])


def test_an_evaluation_is_logged_once(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped where one is due, killed after it was made up for and before the next checkpoint, and gone on with."""
    changes = (CHEAPEST, {"train": {"epochs": 1.0, "evaluate_every": 2}})
    with monkeypatch.context() as patch:
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 2 else None)
        assert run(prepared, tmp_path, *changes).step == 2

    def die(call: int) -> None:
        if call == 2:
            raise Left

    with monkeypatch.context() as patch:
        before_batch(patch, die)
        with pytest.raises(Left):
            run(prepared, tmp_path, *changes)
    assert [line["step"] for line in log_lines(tmp_path)] == [2, 2]
    assert run(prepared, tmp_path, *changes).finished
    steps = [(line["step"], "loss" in line) for line in log_lines(tmp_path)]
    assert steps == [(2, True), (2, False), (4, True), (4, False)]


def test_a_finished_run_started_again_changes_nothing(
    prepared: Path, undisturbed: tuple[Path, RunOutcome], tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0], tmp_path / "run")
    outcome = run(prepared, tmp_path / "run", RUN)
    assert (outcome.step, outcome.finished) == (STEPS, True)
    assert_as_undisturbed(tmp_path / "run", undisturbed[0])


def test_a_stop_after_the_last_step_finishes(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before_batch(monkeypatch, lambda call: signal.raise_signal(signal.SIGINT) if call == 4 else None)
    outcome = run(prepared, tmp_path, CHEAPEST, NO_EVALUATION, {"train": {"epochs": 1.0}})
    assert (outcome.step, outcome.finished) == (4, True)


@pytest.fixture
def signal_while_closing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """SIGTERM comes while the last checkpoint may still be written; lists it if nobody of ours takes it."""
    original, unguarded = Checkpoints.close, []

    def close(checkpoints: Checkpoints) -> None:
        signal.raise_signal(signal.SIGTERM)
        original(checkpoints)

    def leave(status: int) -> None:
        raise Left(status)

    monkeypatch.setattr(Checkpoints, "close", close)
    monkeypatch.setattr(signals.os, "_exit", leave)
    before = signal.signal(signal.SIGTERM, lambda number, frame: unguarded.append(number))
    yield unguarded
    signal.signal(signal.SIGTERM, before)


def test_a_first_signal_during_the_last_save_is_noted(
    prepared: Path, tmp_path: Path, signal_while_closing: list[int]
) -> None:
    assert run(prepared, tmp_path, CHEAPEST, NO_EVALUATION, {"train": {"epochs": 1.0}}).finished
    assert signal_while_closing == []
    assert kept(tmp_path) == [4]


def test_a_second_signal_during_the_last_save_leaves_at_once(
    prepared: Path, tmp_path: Path, signal_while_closing: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    before_batch(monkeypatch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 2 else None)
    with pytest.raises(Left, match="143"):
        run(prepared, tmp_path, CHEAPEST, NO_EVALUATION)
    assert signal_while_closing == []


def test_a_signal_before_the_first_step_leaves_nothing(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "keep_vocabulary", lambda *_, **__: signal.raise_signal(signal.SIGTERM))
    outcome = run(prepared, tmp_path, CHEAPEST, NO_EVALUATION)
    assert (outcome.step, outcome.finished, kept(tmp_path)) == (0, False, [])


def test_another_configuration_or_dataset_is_refused(
    prepared: Path, undisturbed: tuple[Path, RunOutcome], tmp_path: Path
) -> None:
    """Only looked at, so the undisturbed run can be used itself."""
    workdir, before = undisturbed[0], log_lines(undisturbed[0])
    with pytest.raises(UserError) as refused:
        run(prepared, workdir, RUN, {"loss": {"queue_length": 24}})
    assert "loss.queue_length: 20 in the checkpoint, 24 now" in str(refused.value)
    assert "queue/image_embed: float32[20, 16] in the checkpoint, float32[24, 16] now" in str(refused.value)
    fewer = write_small_dataset(tmp_path, train=30)
    with pytest.raises(UserError, match="made with 32 training records, .* has 30; the data position would be lost"):
        run(fewer, workdir, RUN)
    assert log_lines(workdir) == before


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


def test_processes_that_see_different_checkpoints(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup, "gather_json", lambda step: [step, 40])
    with pytest.raises(UserError, match=r"is another one to each process: \[None, 40\]; --workdir must lie on a file"):
        run(prepared, tmp_path, CHEAPEST, NO_EVALUATION)


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


def test_a_run_keeps_its_vocabulary_and_goes_on_with_no_other(prepared: Path, tmp_path: Path) -> None:
    changes = (CHEAPEST, NO_EVALUATION, {"train": {"epochs": 0.5}})
    run(prepared, tmp_path, *changes)
    vocabulary = (prepared / "vocab.txt").read_text(encoding="utf-8")
    assert (tmp_path / "vocab.txt").read_text(encoding="utf-8") == vocabulary
    assert open_model(tmp_path).vocabulary == tuple(vocabulary.split())
    *first, last, second_last = vocabulary.split()
    (tmp_path / "other.txt").write_text("\n".join([*first, second_last, last]) + "\n", encoding="utf-8")
    with pytest.raises(UserError, match="the run was started with the vocabulary .*vocab.txt .* names another one; go"):
        run(prepared, tmp_path, *changes, {"data": {"vocabulary": str(tmp_path / "other.txt")}})


def test_whole_words_are_masked_from_the_captions_on(prepared: Path, tmp_path: Path) -> None:
    """A run with them learns otherwise, goes on bitwise after a stop, and goes on with nothing else."""
    length = {"model": {"text": {"text_length": 12}}, "train": {"epochs": 1.0}}
    changes = (CHEAPEST, NO_EVALUATION, length, {"loss": {"whole_word_masking": True}})
    assert run(prepared, tmp_path / "whole", *changes).finished
    with pytest.MonkeyPatch.context() as patch:
        before_batch(patch, lambda call: signal.raise_signal(signal.SIGTERM) if call == 2 else None)
        assert not run(prepared, tmp_path / "stopped", *changes).finished
    tokens = {"loss": {"whole_word_masking": False}}
    with pytest.raises(UserError, match="loss.whole_word_masking: true in the checkpoint, false now"):
        run(prepared, tmp_path / "stopped", *changes, tokens)
    assert run(prepared, tmp_path / "stopped", *changes).finished
    assert_bitwise_equal(saved_state(tmp_path / "stopped"), saved_state(tmp_path / "whole"))
    run(prepared, tmp_path / "tokens", *changes, tokens)
    assert log_lines(tmp_path / "tokens") != log_lines(tmp_path / "whole")


def test_a_run_reads_punctuation_as_configured_and_goes_on_so(prepared: Path, tmp_path: Path) -> None:
    changes = (CHEAPEST, NO_EVALUATION, {"train": {"epochs": 0.5}})
    run(prepared, tmp_path, *changes, {"data": {"map_punctuation": False}})
    assert not open_model(tmp_path).maps_punctuation
    with pytest.raises(UserError, match="data.map_punctuation: false in the checkpoint, true now"):
        run(prepared, tmp_path, *changes)
    for mapped, unknown in ((True, 3), (False, 1)):
        config = small_config({"data": {"directory": str(prepared), "map_punctuation": mapped}})
        tokenizer = setup.build_tokenizer(config)
        assert (tokenizer(["…"])[0] == tokenizer.unk_id).sum() == unknown, "an ellipsis is three full stops"


# --- compilation ----------------------------------------------------------------------------------------------------


def test_the_step_is_compiled_once(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One trace of the step in the whole run, and nothing at all is compiled after the first step."""
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
