"""What asks the loop to save and stop: SIGTERM or Ctrl-C, of which a second one exits at once, or a lost worker."""

import contextlib
import os
import signal
from types import FrameType, TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

from r2d2_jax.processes import leave_at_once

# Steps between the votes of several processes on whether to stop. A vote blocks until the devices have caught up, but a
# preempted machine has only about 30 s to save.
STEPS_BETWEEN_VOTES = 5
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopRequest:
    """A context that records stop signals; the default handlers are back when it ends.

    Attributes:
        received: the signal, if there was one.
        failure: what keeps this process from going on, if anything does; set by whoever notices it.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.failure: Exception | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            leave_at_once(128 + number)
        self.received = signal.Signals(number)
        # What runs now, such as compiling, may take a minute more. Neither print nor logging may be used in a handler.
        said = f"\n{self.received.name}: saving and leaving as soon as this step is done; another leaves at once\n"
        with contextlib.suppress(OSError):  # of a terminal that is gone
            os.write(2, said.encode())

    def agreed(self, step: int) -> bool:
        """Whether to stop after this step.

        One process alone stops after any step. Several must stop after the same step, so they vote every few steps.
        """
        asked = self.received is not None or self.failure is not None
        if jax.process_count() == 1:
            return asked
        if step % STEPS_BETWEEN_VOTES:
            return False
        return bool(np.any(multihost_utils.process_allgather(np.array(asked))))
