"""A run that loses a decoding process saves its state, says so in one message, and goes on exactly with less."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from small_model import assert_bitwise_equal, log_lines, saved_state
from small_runs import NO_EVALUATION, RUN, before_batch, kept, run

from r2d2_jax.errors import UserError
from r2d2_jax.train.loop import RunOutcome


def test_nothing_is_lost_with_a_decoding_process(
    prepared: Path, undisturbed: tuple[Path, RunOutcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(call: int) -> None:
        if call == 8:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid or 0, signal.SIGKILL)

    with monkeypatch.context() as patch:
        before_batch(patch, kill)
        with pytest.raises(UserError) as caught:
            run(prepared, tmp_path, RUN, {"data": {"workers": 1}})
    step = kept(tmp_path)[-1]
    assert 8 <= step < 12
    assert str(caught.value) == (
        "a decoding process was killed by SIGKILL, probably by the system because memory ran out; give the job more "
        "memory, or lower config.data.workers (0 decodes in the training process) or config.train.batch_size; then run "
        f"the same command again, which resumes: the last good checkpoint is step {step} in {tmp_path / 'checkpoints'}"
    )
    assert run(prepared, tmp_path, RUN).finished
    assert_bitwise_equal(saved_state(tmp_path), saved_state(undisturbed[0]))
    assert log_lines(tmp_path) == log_lines(undisturbed[0])


def test_a_signal_to_all_processes_is_no_loss(
    prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A terminal sends Ctrl-C to the workers, too, which leave that to the run; a batch system sends SIGTERM."""

    def stop(call: int) -> None:
        workers = multiprocessing.active_children()
        if call == 4:
            for worker in workers:
                os.kill(worker.pid or 0, signal.SIGINT)
        if call == 8:
            assert workers
            assert all(worker.is_alive() for worker in workers)
            signal.raise_signal(signal.SIGTERM)
            for worker in workers:
                os.kill(worker.pid or 0, signal.SIGTERM)
                worker.join()

    before_batch(monkeypatch, stop)
    outcome = run(prepared, tmp_path, RUN, NO_EVALUATION, {"data": {"workers": 1, "foil_split": ""}})
    assert (outcome.step, outcome.finished) == (kept(tmp_path)[-1], False)
    assert "decoding process was" not in caplog.text
