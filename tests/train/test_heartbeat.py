"""The heartbeat of a run: what it writes while the run lives, and how it ends one that hangs."""

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import jax
import pytest
from small_corpus import until
from small_runs import NO_EVALUATION, RUN, STEPS, before_batch, run

from r2d2_jax.errors import UserError
from r2d2_jax.status import EVALUATING, FAILED, FINISHED, SAVING, STARTING, STATUS, STOPPED, TRAINING, read_status
from r2d2_jax.train import heartbeat, loop
from r2d2_jax.train.heartbeat import Heartbeat
from r2d2_jax.train.loop import RunOutcome


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heart that beats at every tick, of which there are a hundred a second."""
    monkeypatch.setattr(heartbeat, "_TICK", 0.01)
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)


@pytest.fixture
def left(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit statuses with which the process would have left; its heart then stops."""
    statuses: list[int] = []
    monkeypatch.setattr(heartbeat.os, "_exit", statuses.append)
    return statuses


def state_in(folder: Path) -> str:
    status = read_status(folder)
    return status.state if status else ""


def test_what_a_run_leaves(undisturbed: tuple[Path, RunOutcome]) -> None:
    status = read_status(undisturbed[0])
    assert status is not None
    assert (status.state, status.step, status.total_steps, status.error) == (FINISHED, STEPS, STEPS, "")
    assert status.pairs_per_second is not None
    assert status.pairs_per_second > 0
    assert status.remaining_seconds == 0


@pytest.mark.usefixtures("quick")
def test_a_run_tells_what_it_does(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, total_steps=40, batch_size=8, stall_seconds=0) as heart:
        assert state_in(tmp_path) == STARTING
        heart.stepped(30)
        heart.report(pairs_per_second=16.0)
        for act, state in (
            (heart.batch, TRAINING),
            (heart.evaluating, EVALUATING),
            (heart.saving, SAVING),
            (heart.stepping, TRAINING),
        ):
            act()
            until(lambda: state_in(tmp_path) == state)  # noqa: B023
        status = read_status(tmp_path)
        assert status is not None
        assert (status.step, status.remaining_seconds) == (30, 5.0)
        until(lambda: read_status(tmp_path).time > status.time)  # type: ignore[union-attr]
        heart.end(finished=False)
    assert state_in(tmp_path) == STOPPED


def test_an_error_stays_until_the_run_finishes(tmp_path: Path) -> None:
    with pytest.raises(UserError), Heartbeat(tmp_path, 4, 8, 0):
        raise UserError("no data\nin two lines")
    status = read_status(tmp_path)
    assert status is not None
    assert (status.state, status.error) == (FAILED, "no data")
    with Heartbeat(tmp_path, 4, 8, 0) as heart:
        heart.end(finished=False)
    again = read_status(tmp_path)
    assert again is not None
    assert (again.state, again.error, again.error_time) == (STOPPED, "no data", status.error_time)
    with Heartbeat(tmp_path, 4, 8, 0) as heart:
        heart.end(finished=True)
    last = read_status(tmp_path)
    assert last is not None
    assert (last.state, last.error, last.error_time) == (FINISHED, "", None)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("waits_for, why", [("batch", "its data loading hangs"), ("stepping", "a device hangs")])
def test_a_run_that_hangs_is_ended(
    waits_for: str,
    why: str,
    left: list[int],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with Heartbeat(tmp_path, 4, 8, stall_seconds=0.2) as heart:
        heart.stepped(3)
        getattr(heart, waits_for)()
        until(lambda: bool(left))
    assert left == [heartbeat.STALLED]
    assert f"error: the run has waited 0 s for one {heart._waits_for}, so {why}" in caplog.text
    assert "after step 3; the same command goes on from the newest checkpoint; train.stall_seconds" in caplog.text
    assert "test_a_run_that_hangs_is_ended" in capfd.readouterr().err  # what each thread is doing
    status = read_status(tmp_path)
    assert status is not None
    assert status.state == FAILED
    assert why in status.error


@pytest.mark.usefixtures("quick")
def test_a_folder_that_hangs_delays_nothing(
    left: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As one in a bucket does that does not answer: neither the look at the clock nor the end waits for it."""
    answers, asked = threading.Event(), threading.Event()

    def hang(status: Any, workdir: Path) -> None:
        asked.set()
        answers.wait(60)

    monkeypatch.setattr(heartbeat, "LAST_WORDS_SECONDS", 0.1)
    with Heartbeat(tmp_path, 4, 8, stall_seconds=0.2) as heart:
        monkeypatch.setattr(heartbeat, "write_status", hang)
        assert asked.wait(60)
        heart.batch()
        until(lambda: bool(left))
        answers.set()
    assert left == [heartbeat.STALLED]
    assert "its data loading hangs" in caplog.text


@pytest.mark.usefixtures("quick")
def test_of_several_processes_the_one_without_a_batch_speaks_first(
    left: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The other one waits for it in a step; neither writes but process 0."""
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(heartbeat.socket, "gethostname", lambda: "host1")
    with Heartbeat(tmp_path, 4, 8, stall_seconds=0.1) as waiting, Heartbeat(tmp_path, 4, 8, stall_seconds=0.1) as heart:
        waiting.stepping()
        heart.batch()
        until(lambda: bool(left))
        time.sleep(0.3)
        assert left == [heartbeat.STALLED]
    assert "error: process 1 on host1 has waited 0 s for one batch" in caplog.text
    assert not (tmp_path / STATUS).exists()


@pytest.mark.usefixtures("quick")
def test_evaluations_and_saving_take_as_long_as_they_like(left: list[int], tmp_path: Path) -> None:
    with Heartbeat(tmp_path, 4, 8, stall_seconds=0.05) as heart:
        for act in (heart.evaluating, heart.saving):
            act()
            time.sleep(0.3)
    assert not left


@pytest.mark.usefixtures("quick")
def test_the_time_of_a_process_that_was_stopped_does_not_count(
    left: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-Z and an hour later fg: the clock jumps between two ticks."""
    jump = 0.0
    clock = time.monotonic
    monkeypatch.setattr(heartbeat.time, "monotonic", lambda: clock() + jump)
    with Heartbeat(tmp_path, 4, 8, stall_seconds=10) as heart:
        heart.batch()
        jump = 3600.0
        written = (tmp_path / STATUS).stat().st_mtime_ns
        until(lambda: (tmp_path / STATUS).stat().st_mtime_ns > written)
        time.sleep(0.1)
    assert not left


@pytest.mark.usefixtures("quick")
def test_a_full_disk_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(status: Any, workdir: Path) -> None:
        raise UserError("cannot write status.json: No space left on device")

    monkeypatch.setattr(heartbeat, "write_status", full)
    with Heartbeat(tmp_path, 4, 8, 0) as heart:
        time.sleep(0.1)
        heart.end(finished=True)
    assert caplog.messages == [
        "the run goes on without telling how it is: cannot write status.json: No space left on device"
    ]


def test_a_damaged_status_of_before_is_told_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / STATUS).write_text("{", encoding="utf-8")
    with Heartbeat(tmp_path, 4, 8, 0):
        assert state_in(tmp_path) == STARTING
    assert "status.json cannot be read" in caplog.text


@pytest.mark.usefixtures("quick")
def test_a_run_whose_decoding_process_is_stopped(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Its batches never come. The run says so and kills it, which here, where nobody leaves, the loop then finds."""
    workers: list[Any] = []
    hearts: list[Heartbeat] = []

    class Known(Heartbeat):
        def __enter__(self) -> Heartbeat:
            hearts.append(self)
            return super().__enter__()

    def stop(call: int) -> None:
        if call == 3:
            workers.extend(multiprocessing.active_children())
            for worker in workers:
                os.kill(worker.pid, signal.SIGSTOP)
            hearts[0]._limits["batch"] = 1.0  # not before: the first batches may take longer

    before_batch(monkeypatch, stop)
    monkeypatch.setattr(loop, "Heartbeat", Known)
    with pytest.raises(UserError, match="a decoding process was killed by SIGKILL"):
        run(prepared, tmp_path, RUN, NO_EVALUATION, {"data": {"workers": 1, "foil_split": ""}})
    assert left == [heartbeat.STALLED]
    assert workers
    assert not any(worker.is_alive() for worker in workers)
    assert "error: the run has waited 1 s for one batch, so its data loading hangs" in caplog.text
