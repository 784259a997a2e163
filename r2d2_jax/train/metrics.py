"""The log of a run: means over windows of steps, in `metrics.jsonl` and in TensorBoard files."""

import json
import logging
import math
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from r2d2_jax.atomic import written_whole
from r2d2_jax.buckets.mirror import Mirror
from r2d2_jax.buckets.path import BucketPath
from r2d2_jax.errors import UserError, first_line

logger = logging.getLogger(__name__)

METRICS_LOG = "metrics.jsonl"


class Window:
    """The metrics of the steps since the last line of the log.

    Values stay on the devices until they are fetched, so that the step loop does not wait for them.
    """

    def __init__(self, steps: Iterable[dict[str, float]] = ()) -> None:
        self._steps: list[dict[str, Any]] = list(steps)

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Adds one step's metrics: float scalars, possibly still being computed."""
        self._steps.append(metrics)

    def wait(self, ahead: int) -> None:
        """Waits until no more than `ahead` of the added steps are still being computed."""
        if len(self._steps) > ahead:
            jax.block_until_ready(self._steps[-1 - ahead])

    def fetched(self) -> list[dict[str, float]]:
        """Every step's metrics as plain floats; waits for the devices."""
        self._steps = [{name: float(value) for name, value in step.items()} for step in jax.device_get(self._steps)]
        return self._steps

    def first_not_finite(self) -> tuple[int, list[str]] | None:
        """How many steps ago a metric was first NaN or infinite (1 is the newest step), and which ones; or None."""
        for index, step in enumerate(self.fetched()):
            if bad := [name for name, value in step.items() if not math.isfinite(value)]:
                return len(self._steps) - index, bad
        return None

    def means(self) -> dict[str, float]:
        """The mean of each metric over those steps of the window that have it; empties the window."""
        steps = self.fetched()
        self._steps = []
        names = dict.fromkeys(name for step in steps for name in step)
        return {name: float(np.mean([step[name] for step in steps if name in step])) for name in names}


class MetricsLog:
    """`metrics.jsonl` (one JSON object a line) and TensorBoard files below a run's folder.

    Of a run in a bucket they grow on this disk, and are copied there once a minute, before every checkpoint and at the
    end.

    Args:
        workdir: the run's folder.
        first_step: lines that a crashed run wrote after this step are dropped, so that the log is the one of an
            undisturbed run; so are figures of the test split, which the end of the run measures again.
        active: False on all processes but one, which then write nothing.
        evaluated: whether the evaluation of `first_step` is kept; otherwise it is made again.
    """

    def __init__(self, workdir: Path, first_step: int, active: bool, evaluated: bool = True) -> None:
        self._active = active
        self._board: SummaryWriter | None = None
        self._mirror: Mirror | None = None
        if active:
            folder = self._folder(workdir)
            self._path = folder / METRICS_LOG
            self._rewind(first_step, evaluated)
            self._board = _board(folder / "tensorboard", first_step)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line; values that are not finite become null, as JSON has no other form for them.

        Raises:
            UserError: the file cannot be written.
        """
        if not self._active:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, **finite}) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot write {self._path}: {first_line(error)}; make room or mend the folder, then run "
                "the same command again: it resumes from the newest checkpoint"
            ) from error
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Sees that a run that resumes from a checkpoint of now finds the lines so far.

        Raises:
            UserError: a bucket refuses them.
        """
        if self._mirror is not None:
            self._mirror.copy()

    def close(self) -> None:
        """Flushes the TensorBoard files; a failure is only logged, since nothing reads them again.

        Raises:
            UserError: a bucket refuses the log.
        """
        try:
            if self._board is not None:
                self._board.close()
        except OSError as error:
            logger.warning("the TensorBoard files are not complete: %s", first_line(error))
        finally:
            if self._mirror is not None:
                self._mirror.close()

    def _folder(self, workdir: Path) -> Path:
        """Where the files grow."""
        workdir.mkdir(parents=True, exist_ok=True)
        if not isinstance(workdir, BucketPath):
            return workdir
        self._mirror = Mirror(workdir)
        if (workdir / METRICS_LOG).exists():
            (self._mirror.folder / METRICS_LOG).write_bytes((workdir / METRICS_LOG).read_bytes())
        return self._mirror.folder

    def _rewind(self, last_step: int, evaluated: bool) -> None:
        """Drops the lines after `last_step`; what is damaged is dropped too, or set aside if nothing can be read."""
        try:
            lines = self._path.read_bytes().split(b"\n") if self._path.exists() else []
        except OSError as error:  # a folder of that name, a broken disk
            aside = self._path.with_name(f"{self._path.name}.damaged-{uuid.uuid4().hex}")
            logger.warning("%s cannot be read: %s; it is renamed to %s", self._path, first_line(error), aside.name)
            self._path.rename(aside)
            return
        if not lines:
            return
        *whole, rest = lines  # a killed run may leave half a line behind the last line end
        kept, damaged = [], int(bool(rest))
        for line in whole:
            values = _parsed(line)
            if values is None:
                damaged += 1
            elif _stays(values, last_step, evaluated):
                kept.append(line + b"\n")
        if damaged:
            logger.warning("%s: damaged lines that are dropped: %d", self._path, damaged)
        with written_whole(self._path) as unfinished:
            unfinished.write_bytes(b"".join(kept))


def _stays(values: dict[str, Any], last_step: int, evaluated: bool) -> bool:
    """Whether a line is one of an undisturbed run so far, which measures the test split at its end alone."""
    if any(name.startswith("test/") for name in values):
        return False
    # Training always has a loss, evaluations never have.
    return (values["step"], "loss" not in values and not evaluated) <= (last_step, False)


def _board(folder: Path, first_step: int) -> SummaryWriter | None:
    """A writer of a new file, whatever the files of earlier runs hold; None where there can be none."""
    try:
        # Absolute, because tensorboardX takes a name before a colon for a protocol.
        return SummaryWriter(str(folder.absolute()), purge_step=first_step + 1)
    except OSError as error:
        logger.warning("there will be no TensorBoard files: %s", first_line(error))
        return None


def _parsed(line: bytes) -> dict[str, Any] | None:
    """The values of a line of the log, None if it is no whole one."""
    try:
        values = json.loads(line.decode("utf-8"))
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) and type(values.get("step")) is int else None
