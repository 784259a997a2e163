"""A decoding process that the system kills: this process goes on alone, or one message says why and what to change."""

import errno
import itertools
import multiprocessing
import os
import re
import signal
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from r2d2_jax.config.data import DataConfig
from r2d2_jax.data import workers
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.data.train_batches import train_batches
from r2d2_jax.data.workers import LostWorker, check_shared_memory, lost_worker_told
from r2d2_jax.errors import UserError

BATCHES = 12


class Usage(NamedTuple):
    total: int
    used: int
    free: int


def stream(
    source: RecordSource, tokenizer: Tokenizer, count: int, on_loss: Callable[[LostWorker], None] | None = None
) -> Generator[dict[str, Any], None, None]:
    data = DataConfig(directory="", workers=count)
    return train_batches(
        Mixture([source]), tokenizer, data, image_size=16, batch_size=4, seed=1, first_step=3, on_loss=on_loss
    )


def kill_the_worker() -> None:
    (worker,) = multiprocessing.active_children()
    assert worker.pid
    os.kill(worker.pid, signal.SIGKILL)


def test_after_the_loss_of_a_worker_the_same_batches_come(source: RecordSource, tokenizer: Tokenizer) -> None:
    losses: list[LostWorker] = []
    disturbed = stream(source, tokenizer, 1, losses.append)
    undisturbed = itertools.islice(stream(source, tokenizer, 0), BATCHES)
    for number, (batch, expected) in enumerate(zip(disturbed, undisturbed, strict=False)):
        if number == 2:
            kill_the_worker()
        for key, value in expected.items():
            np.testing.assert_array_equal(batch[key], value, err_msg=key)
    disturbed.close()
    assert number == BATCHES - 1
    (loss,) = losses
    assert "killed by SIGKILL, probably by the system because memory ran out" in str(loss)


def test_without_on_loss_it_is_raised(source: RecordSource, tokenizer: Tokenizer) -> None:
    batches = stream(source, tokenizer, 1)
    next(batches)
    kill_the_worker()
    with pytest.raises(LostWorker, match="lower config.data.workers"):
        list(itertools.islice(batches, BATCHES))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Worker process was terminated unexpectedly with exit code -7. Search"), "SIGBUS, probably"),
        (RuntimeError("Worker process was terminated unexpectedly with exit code -11. Search"), "by SIGSEGV; with"),
        (RuntimeError("Worker process was terminated unexpectedly with exit code 3. Search"), "exit status 3; what"),
        (MemoryError(), "a decoding process found no memory; lower config.data.workers"),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            r"failed: No space left on device \(/dev/shm has [\d.]+ MiB",
        ),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "failed: Resource temporarily unavailable"),
    ],
)
def test_why_a_worker_was_lost_and_what_to_change(error: Exception, message: str) -> None:
    with pytest.raises(LostWorker, match=message), lost_worker_told():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError(errno.EIO, "Input/output error"), KeyError("a bug")])
def test_what_is_no_lost_worker_passes(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, lost_worker_told():
        raise error
    assert caught.value is error


def test_shared_memory_that_cannot_hold_the_first_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's 64 MiB, and sixteen workers with batches of 64 images of 224 pixels."""
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: Usage(64 << 20, 0, 64 << 20))
    batch = 64 * 224 * 224 * 3
    check_shared_memory(6, batch)
    message = (
        "config.data.workers is 16, whose batches of 9.2 MiB do not fit into /dev/shm, where 64.0 MiB are free; "
        "enlarge it (docker: --shm-size), or lower config.data.workers (0 decodes in the training process) or "
        "config.train.batch_size"
    )
    with pytest.raises(UserError, match=f"^{re.escape(message)}$"):
        check_shared_memory(16, batch)


def test_a_system_without_that_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workers, "SHARED_MEMORY", tmp_path / "absent")
    check_shared_memory(16, 1 << 60)
    with pytest.raises(LostWorker, match="because shared memory is full; enlarge it"), lost_worker_told():
        raise RuntimeError("terminated unexpectedly with exit code -7")
