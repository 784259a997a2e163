"""The log of a run: means over windows of steps, in `metrics.jsonl` and in TensorBoard files."""

import json
import logging
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tensorboardX import SummaryWriter

from r2d2_jax.errors import UserError, first_line

logger = logging.getLogger(__name__)


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
        """The mean of each metric over the window; empties the window."""
        steps = self.fetched()
        self._steps = []
        return {name: float(np.mean([step[name] for step in steps])) for name in steps[0]} if steps else {}


class MetricsLog:
    """`metrics.jsonl` (one JSON object a line) and TensorBoard files below a run's folder.

    Args:
        workdir: the run's folder.
        first_step: lines that a crashed run wrote after this step are dropped, so that the log is the one of an
            undisturbed run.
        active: False on all processes but one, which then write nothing.
        evaluated: whether the evaluation of `first_step` is kept; otherwise it is made again.
    """

    def __init__(self, workdir: Path, first_step: int, active: bool, evaluated: bool = True) -> None:
        self._path = workdir / "metrics.jsonl"
        self._board: SummaryWriter | None = None
        if active:
            workdir.mkdir(parents=True, exist_ok=True)
            self._rewind(first_step, evaluated)
            self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=first_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one line; values that are not finite become null, as JSON has no other form for them.

        Raises:
            UserError: the file cannot be written.
        """
        if self._board is None:
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
        for name, value in values.items():
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes the TensorBoard files; a failure is only logged, since nothing reads them again."""
        if self._board is None:
            return
        try:
            self._board.close()
        except OSError as error:
            logger.warning("the TensorBoard files are not complete: %s", first_line(error))

    def _rewind(self, last_step: int, evaluated: bool) -> None:
        if not self._path.exists():
            return

        def kept(line: str) -> bool:
            values = json.loads(line)
            # Training always has a loss, evaluations never have.
            return values["step"] < last_step or (values["step"] == last_step and (evaluated or "loss" in values))

        lines = self._path.read_text(encoding="utf-8").splitlines(keepends=True)
        replacement = self._path.with_suffix(".rewound")
        replacement.write_text("".join(line for line in lines if line.endswith("\n") and kept(line)), encoding="utf-8")
        replacement.replace(self._path)
