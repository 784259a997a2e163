"""What each variant costs: multiply-adds of its forward, and the speed of its step beside that of the full method.

A program of its own, `python -m r2d2_jax.ablation.cost FOLDER`, so that no training's process or memory has a part in
what is measured, and that what compiles for hours can be killed and goes on.
"""

import dataclasses
import json
import logging
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from r2d2_jax.ablation.children import Child, Share, end_with_parent
from r2d2_jax.ablation.plan import FULL, Plan, kept_plan
from r2d2_jax.atomic import written_whole
from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.sharding import global_batch
from r2d2_jax.train.plan import StepPlan, forward_cost, step_plan
from r2d2_jax.train.state import abstract_state
from r2d2_jax.train.trial import random_rows, random_state

logger = logging.getLogger(__name__)

COSTS, OUTPUT = "costs.json", "costs.log"
# Steps of each that are timed, at most and at least, and the seconds after which the least is enough.
_MOST, _LEAST, _SECONDS = 40, 8, 60.0
_WARM_UP = 2


def read_costs(folder: Path) -> dict[str, Any]:
    """What was measured so far: `measured_on`, and `variants` by name; empty before, or if the file is damaged."""
    try:
        found = json.loads((folder / COSTS).read_text(encoding="utf-8"))
        return found if isinstance(found, dict) and isinstance(found.get("variants"), dict) else {}
    except (OSError, ValueError):
        return {}


def unmeasured(plan: Plan, folder: Path) -> list[str]:
    """The variants whose costs are not known yet."""
    return _missing(plan, read_costs(folder))


def _missing(plan: Plan, costs: Mapping[str, Any]) -> list[str]:
    known = costs.get("variants", {})
    return [name for name in plan.variants if name not in known]


def measure_costs(plan: Plan, folder: Path) -> None:
    """Measures what is not known yet, and keeps each variant's costs as soon as they are.

    On other devices than before everything is measured anew, for a table names one kind.

    Raises:
        UserError: the configuration does not fit the devices, or the file cannot be written.
    """
    measured_on = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    costs = read_costs(folder)
    if costs.get("measured_on") != measured_on:
        costs = {"measured_on": measured_on, "variants": {}}
    names = _missing(plan, costs)
    full = _Steps(plan, FULL) if set(names) - {FULL} else None
    for name in names:
        logger.info("%s: counting and timing", name)
        config = Config.from_config_dict(plan.config_of(name))
        counted = dataclasses.replace(config, model=config.model.without_dropout())  # its random bits are no products
        own = {"multiply_adds_per_pair": forward_cost(counted), "relative_speed": 1.0}
        if name != FULL and full is not None:
            own |= relative_speed(full.seconds, _Steps(plan, name).seconds)
        costs["variants"][name] = own
        with written_whole(folder / COSTS) as unfinished:
            unfinished.write_text(json.dumps(costs, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def relative_speed(full: Callable[[], float], variant: Callable[[], float]) -> dict[str, float]:
    """Steps per second of a variant over those of the full method: the median of the ratios of steps in turn.

    What disturbs the machine meets both alike. Which of the two is first changes from turn to turn.

    Args:
        full, variant: take a step and return its seconds.
    """
    pairs: list[tuple[float, float]] = []
    start = time.perf_counter()
    while len(pairs) < _MOST and (len(pairs) < _LEAST or time.perf_counter() - start < _SECONDS):
        if len(pairs) % 2:
            theirs = variant()
            pairs.append((full(), theirs))
        else:
            ours = full()
            pairs.append((ours, variant()))
    return {
        "relative_speed": statistics.median(ours / theirs for ours, theirs in pairs),
        "step_seconds": statistics.median(theirs for _, theirs in pairs),
        "full_step_seconds": statistics.median(ours for ours, _ in pairs),
        "turns": len(pairs),
    }


class _Steps:
    """A compiled step, its state, and one random batch that it is taken on again and again."""

    def __init__(self, plan: Plan, name: str) -> None:
        steps: StepPlan = step_plan(Config.from_config_dict(plan.config_of(name)), jax.devices())
        self._step = steps.compiled()
        placement = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(steps.task, steps.optimizer, steps.mesh))
        self._state = jax.device_put(random_state(steps), placement)
        self._batch, self._key = global_batch(steps.mesh, random_rows(steps)), jax.random.key(1)
        for _ in range(_WARM_UP):
            self.seconds()

    def seconds(self) -> float:
        """Takes a step."""
        start = time.perf_counter()
        self._state, _ = jax.block_until_ready(self._step(self._state, self._batch, self._key))
        return time.perf_counter() - start


def measure_in_child(plan: Plan, folder: Path) -> str:
    """Measures what is not known yet in a process of its own; returns what went wrong there, "" if nothing did."""
    if not (names := unmeasured(plan, folder)):
        return ""
    output = folder / OUTPUT
    logger.info("measuring what a step of %s costs; it prints into %s", ", ".join(names), output)
    child = Child([sys.executable, "-m", "r2d2_jax.ablation.cost", str(folder)], output, Share())
    try:
        status = child.wait()
    finally:
        child.kill()
    return f"the costs were not measured: {child.complaint()} (all that it printed: {output})" if status else ""


def main(folder: Path) -> None:
    """Measures the ablation in a folder; ends when the process that has started it does."""
    end_with_parent()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    logging.getLogger("jax").setLevel(logging.WARNING)
    plan = kept_plan(folder)
    assert plan is not None, f"{folder} has no plan yet"
    try:
        measure_costs(plan, folder)
    except UserError as error:
        sys.exit(f"error: {error}")  # as a training tells it, so that all of it is the child's complaint


if __name__ == "__main__":
    main(Path(sys.argv[1]))
