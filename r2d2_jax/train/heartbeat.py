"""Two threads of a run: one says from time to time how it is, one ends it where nothing moves any more."""

import dataclasses
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

import jax

from r2d2_jax.errors import UserError, first_line
from r2d2_jax.processes import leave_at_once
from r2d2_jax.status import (
    BEAT_SECONDS,
    EVALUATING,
    FAILED,
    FINISHED,
    SAVING,
    STARTING,
    STOPPED,
    TRAINING,
    Status,
    read_status,
    write_status,
)

logger = logging.getLogger(__name__)

# What the run waits for. The two of training alone have a time limit: nobody knows how long the others may take.
BATCH, STEP = "batch", "step"
STALLED = 1  # exit status
# A process that waits for another in a step lets that one speak first, which may be waiting for its batch.
OTHERS_FIRST_SECONDS = 30.0
LAST_WORDS_SECONDS = 10.0  # for the status of a run that hangs, whose folder may hang as well
_TICK = 1.0  # seconds between two looks at the clock


class Heartbeat:
    """A context in which `status.json` is written again and again, and a run that hangs is ended.

    Args:
        workdir: of the run; process 0 alone writes there.
        total_steps: of the whole run.
        batch_size: global.
        stall_seconds: how long a batch or a step may take; 0 for ever.
    """

    def __init__(self, workdir: Path, total_steps: int, batch_size: int, stall_seconds: float) -> None:
        self._workdir, self._batch_size = workdir, batch_size
        before = _before(workdir)
        self._status = Status(
            state=STARTING,
            step=0,
            total_steps=total_steps,
            pairs_per_second=None,
            remaining_seconds=None,
            error=before.error if before else "",
            error_time=before.error_time if before else None,
            host=socket.gethostname(),
            pid=os.getpid(),
            processes=jax.process_count(),
            time=time.time(),
        )
        patience = OTHERS_FIRST_SECONDS if jax.process_count() > 1 else 0.0
        self._limits = {BATCH: stall_seconds, STEP: stall_seconds + patience} if stall_seconds else {}
        self._waits_for, self._waited = "", 0.0
        self._writes, self._told = jax.process_index() == 0, False
        self._ended, self._writing = threading.Event(), threading.Lock()
        # Apart, because a folder in a bucket or on a network may keep the one that writes waiting.
        work = {"heartbeat": self._beat, "watch": self._watch}
        self._threads = [threading.Thread(target=each, name=name, daemon=True) for name, each in work.items()]

    def __enter__(self) -> "Heartbeat":
        self._write()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        if error is not None:
            self._fail(first_line(error))

    def batch(self) -> None:
        """The run waits for its next batch."""
        self._go_on(TRAINING, BATCH)

    def stepping(self) -> None:
        """It has the batch and computes a step, or waits for the one that is being computed."""
        self._go_on(TRAINING, STEP)

    def evaluating(self) -> None:
        """It evaluates, which may take as long as it likes."""
        self._go_on(EVALUATING, "")

    def saving(self) -> None:
        """It hands its state to Orbax, or waits until that has written an earlier one."""
        self._go_on(SAVING, "")

    def stepped(self, step: int) -> None:
        """So many steps are completed."""
        self._change(step=step)

    def report(self, pairs_per_second: float) -> None:
        """The speed since the last line of the log."""
        steps = self._status.total_steps - self._status.step
        remaining = steps * self._batch_size / pairs_per_second if pairs_per_second else None
        self._change(pairs_per_second=pairs_per_second, remaining_seconds=remaining)

    def end(self, *, finished: bool) -> None:
        """The run has come to its end, where no error matters any more, or was stopped."""
        self._waits_for = ""
        self._change(state=FINISHED if finished else STOPPED, **({"error": "", "error_time": None} if finished else {}))
        self._write()

    def _go_on(self, state: str, waits_for: str) -> None:
        self._waits_for, self._waited = waits_for, 0.0
        self._change(state=state)

    def _change(self, **values: object) -> None:
        self._status = dataclasses.replace(self._status, **values)  # type: ignore[arg-type]

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self._write()

    def _watch(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(_TICK):
            now = time.monotonic()
            self._waited += min(now - last, 2 * _TICK)  # a process that was stopped as a whole has waited for nothing
            last = now
            limit = self._limits.get(self._waits_for)
            if limit is not None and self._waited > limit:
                self._give_up(self._waits_for, limit)
                return

    def _give_up(self, waits_for: str, limit: float) -> None:
        """Ends this process, which cannot be asked to save: its main thread never comes back."""
        who = f"process {jax.process_index()} on {self._status.host}" if self._status.processes > 1 else "the run"
        what = {
            BATCH: f"has waited {limit:.0f} s for one batch, so its data loading hangs",
            STEP: f"has waited {limit:.0f} s for one step, so a device hangs, or another process, which then says so",
        }[waits_for]
        said = (
            f"{who} {what}, after step {self._status.step}; the same command goes on from the newest checkpoint; "
            "train.stall_seconds says how long is too long"
        )
        logger.error("error: %s. What each thread is doing:", said)
        faulthandler.dump_traceback(sys.__stderr__ or 2)
        last_words = threading.Thread(target=self._fail, args=(said,), daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_SECONDS)
        leave_at_once(STALLED)

    def _fail(self, error: str) -> None:
        self._change(state=FAILED, error=error, error_time=time.time())
        self._write()

    def _write(self) -> None:
        """What cannot be written is no reason to end a run."""
        if not self._writes:
            return
        with self._writing:  # what is written last has been read last
            try:
                write_status(dataclasses.replace(self._status, time=time.time()), self._workdir)
            except UserError as error:
                if not self._told:
                    logger.warning("the run goes on without telling how it is: %s", error)
                self._told = True


def _before(workdir: Path) -> Status | None:
    """What an earlier start of the run has left."""
    try:
        return read_status(workdir)
    except UserError as error:
        logger.warning("%s", error)
        return None
