"""What a person sees of an ablation: a bar of runs on a terminal, lines in a log; both read the runs' own logs."""

import logging
import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from r2d2_jax.ablation.runs import AblationRun
from r2d2_jax.train.progress import clock

logger = logging.getLogger(__name__)

_BAR = "{l_bar}{bar}| {n:.2f}/{total_fmt} runs [{elapsed}<{remaining}{postfix}]"
_LOOK_SECONDS, _LINE_SECONDS = 2.0, 60.0  # between two looks at the logs, and two lines where there is no terminal


class Progress:
    """Which runs are done, which are at work, their steps and the time that each will still take.

    Args:
        total: number of runs.
        done: of them with a result already.
    """

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._bar = tqdm(
            total=total, initial=done, dynamic_ncols=True, bar_format=_BAR, disable=not sys.stderr.isatty()
        )
        self._next_look, self._next_line = 0.0, time.monotonic() + _LINE_SECONDS

    def show(self, done: int, working: Sequence[AblationRun]) -> None:
        """Shows it, if the last time is long enough ago."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _LOOK_SECONDS
        states = [state_of(run) for run in working]
        text = "; ".join(words for words, _ in states)
        if not self._bar.disable:
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.n = done + sum(share for _, share in states)
            self._bar.refresh()
        elif working and now >= self._next_line:
            self._next_line = now + _LINE_SECONDS
            logger.info("%s; %d of %d runs are done", text, done, self._total)

    def close(self) -> None:
        """Ends the bar."""
        self._bar.close()


def state_of(run: AblationRun) -> tuple[str, float]:
    """A run in words, and which share of it is done."""
    line, noted = run.last_line(), run.noted()
    total, step, rate = noted.get("planned_steps"), line.get("step", 0), line.get("pairs_per_second")
    if not line or not total:
        return f"{run.name} begins", 0.0
    if step >= total:
        return f"{run.name} evaluates", 1.0
    left = clock((total - step) * noted["batch_size"] / rate) if rate else "unknown"
    return f"{run.name} step {step}/{total}, {left} left", step / total
