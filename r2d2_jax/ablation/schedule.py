"""Runs the trainings of an ablation, one after the other or several at once, and survives whatever ends one."""

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from r2d2_jax.ablation.children import Child, Share
from r2d2_jax.ablation.progress import Progress
from r2d2_jax.ablation.runs import AblationRun
from r2d2_jax.errors import UserError
from r2d2_jax.lock import held

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.1
_PREDECESSOR_SECONDS = 300.0  # for a run of an ablation that was killed: it compiles to the end, saves and leaves


@dataclass(frozen=True)
class Failure:
    """A run that did not come to its end, and what it said."""

    run: AblationRun
    reason: str


def train_all(
    runs: Sequence[AblationRun],
    command: Callable[[AblationRun], Sequence[str]],
    shares: Sequence[Share],
    finished: Callable[[], object],
) -> list[Failure]:
    """Trains every run that has no result yet.

    A run that fails does not keep the others from being trained, except while no run at all has come to its end: then
    it is probably the data or the configuration. KeyboardInterrupt makes all save and leave; a second one kills them.

    Args:
        runs: all runs of the ablation, in the order in which they are trained.
        command: the program of a run and its arguments.
        shares: of the machine; so many are trained at once.
        finished: called whenever another run has a result.

    Returns:
        The runs that failed; none that was not begun.
    """
    schedule = _Schedule(runs, command, shares, finished)
    try:
        return schedule.go()
    finally:
        schedule.close()


class _Schedule:
    def __init__(
        self,
        runs: Sequence[AblationRun],
        command: Callable[[AblationRun], Sequence[str]],
        shares: Sequence[Share],
        finished: Callable[[], object],
    ) -> None:
        self._command, self._finished, self._free = command, finished, list(shares)
        self._waiting = [run for run in runs if run.result() is None]
        self._done = len(runs) - len(self._waiting)
        self._working: dict[AblationRun, Child] = {}
        self._failures: list[Failure] = []
        self._progress = Progress(len(runs), self._done)

    def go(self) -> list[Failure]:
        while self._working or (self._waiting and not self._hopeless()):
            while self._free and self._waiting and not self._hopeless():
                self._start(self._waiting.pop(0), self._free.pop(0))
            for run, child in list(self._working.items()):
                if child.status() is not None:
                    self._ended(run, child)
            self._progress.show(self._done, list(self._working))
            time.sleep(_POLL_SECONDS)
        return self._failures

    def close(self) -> None:
        """Lets what is still at work save and leave."""
        self._progress.close()
        if not self._working:
            return
        logger.info("waiting for %s to save and leave", " and ".join(run.name for run in self._working))
        for child in self._working.values():
            child.leave()
        try:
            for child in self._working.values():
                child.wait()
        except KeyboardInterrupt:
            for child in self._working.values():
                child.kill()
                child.wait()
            raise

    def _hopeless(self) -> bool:
        return bool(self._failures) and not self._done

    def _start(self, run: AblationRun, share: Share) -> None:
        _wait_for_predecessor(run)
        self._working[run] = Child(self._command(run), run.output, share)
        logger.info("%s: at work; it prints into %s", run.name, run.output)

    def _ended(self, run: AblationRun, child: Child) -> None:
        del self._working[run]
        self._free.append(child.share)
        child.leave()  # closes the pipe
        if run.result() is not None:
            self._done += 1
            logger.info("%s: done", run.name)
            self._finished()
            return
        reason = child.complaint() if child.status() else "it was stopped before its end"
        logger.warning("%s has failed: %s", run.name, reason)
        self._failures.append(Failure(run, reason))


def _wait_for_predecessor(run: AblationRun) -> None:
    """Waits until the folder is free: a run whose ablation was killed notices that, saves and leaves by itself.

    Raises:
        UserError: it has not left in time, or somebody trains there by hand.
    """
    deadline, told = time.monotonic() + _PREDECESSOR_SECONDS, False
    while True:
        with contextlib.ExitStack() as tried:
            try:
                tried.enter_context(held(run.folder, "another run", "--workdir"))
            except UserError as error:
                if time.monotonic() > deadline:
                    raise
                if not told:
                    logger.info("waiting: %s", error)
                    told = True
            else:
                return
        time.sleep(_POLL_SECONDS)
