"""An ablation of `fake_run.py`: `python fake_ablation.py FOLDER` as a process to be killed, or called."""

import sys
from collections.abc import Callable
from pathlib import Path

from r2d2_jax.ablation.children import Share
from r2d2_jax.ablation.plan import Plan
from r2d2_jax.ablation.runs import AblationRun, runs_of
from r2d2_jax.ablation.schedule import Failure, train_all

PLAN = Plan(config={}, variants={"full": {}, "other": {"loss.fgd": False}}, seeds=(0, 1))


def fake_ablation(
    root: Path, *, plan: Plan = PLAN, at_once: int = 1, finished: Callable[[], object] = lambda: None
) -> list[Failure]:
    return train_all(list(runs_of(plan, root)), command, [Share()] * at_once, finished)


def command(run: AblationRun) -> list[str]:
    return [sys.executable, str(Path(__file__).with_name("fake_run.py")), str(run.folder), str(run.seed)]


if __name__ == "__main__":
    fake_ablation(Path(sys.argv[1]))
