"""A run that loses a decoding process saves its state, says so in one message, and goes on exactly with less."""

import multiprocessing
import os
import signal
from pathlib import Path

import pytest
from small_model import assert_bitwise_equal, log_lines, saved_state
from small_runs import RUN, before_batch, kept, run

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
