"""Whether one train step in float32 gives here what it gave on another device.

    JAX_PLATFORMS=cpu python benchmarks/same_step.py --config=configs/demo.py --write=step.npz
    python benchmarks/same_step.py --config=configs/demo.py --compare=step.npz

`--write` takes a few steps on random pairs, so that teacher, queue and moments are those of a run, then one more, and
keeps the state before it, the pairs, the metrics and the state after it. `--compare` takes the same step here, and
prints the relative differences: of each metric, and of each part of the state
|change here - change there| / |change there|. Fails, with exit status 1, where a metric differs by more than
`--tolerance`, or AdamW's moments, which hold the gradients, by ten times that. The change of parameters and teacher is
only shown: it is small beside their values, and their rounding large beside it.
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import app, flags
from planned_steps import planned

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.sharding import global_batch, path_name
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import abstract_state, sharded_init_state
from r2d2_jax.train.trial import random_rows

CONFIG = flags.DEFINE_string("config", None, "A config file, of a model that is small in float32.", required=True)
BATCH = flags.DEFINE_integer("batch_size", 16, "Pairs.", lower_bound=2)
BEFORE = flags.DEFINE_integer("steps_before", 3, "With --write: steps taken before the one that is kept.")
WRITE = flags.DEFINE_string("write", None, "Write the step to this .npz file.")
COMPARE = flags.DEFINE_string("compare", None, "Compare with the step in this .npz file.")
TOLERANCE = flags.DEFINE_float("tolerance", 1e-5, "Relative difference allowed of the metrics.", lower_bound=0)


def main(_: list[str]) -> None:
    """Writes or compares."""
    if bool(WRITE.value) == bool(COMPARE.value):
        raise UserError("expected one of --write and --compare")
    config = read_configuration(str(CONFIG.value))
    config.model.dtype = "float32"
    config.train.batch_size = BATCH.value
    plan = planned(config, jax.devices()[:1], MeshConfig(1, 1))
    if WRITE.value:
        write_step(plan, Path(WRITE.value), BEFORE.value)
        print(f"{WRITE.value}: one step of {Path(str(CONFIG.value)).stem}; --compare={WRITE.value} on another device")
        return
    print(f"{Path(str(CONFIG.value)).stem}, {BATCH.value} pairs, float32, {jax.devices()[0].device_kind}, JAX "
          f"{jax.__version__}: relative differences from {COMPARE.value}")  # fmt: skip
    found = differences(plan, Path(str(COMPARE.value)))
    for name, difference in found.items():
        print(f"{name:<40} {difference:>9.1e}")
    check(found, TOLERANCE.value)


def write_step(plan: StepPlan, path: Path, steps_before: int) -> None:
    """Takes some steps and keeps the last."""
    step = plan.compiled()
    state = sharded_init_state(plan.task, plan.optimizer, plan.mesh, jax.random.key(0))
    for number in range(steps_before):
        state, _ = step(state, global_batch(plan.mesh, random_rows(plan, number)), jax.random.key(1))
    before = jax.device_get(state)
    _, metrics, after = taken(step, plan, before, rows := random_rows(plan, steps_before))
    named = {"before": flat(before), "after": flat(after), "metrics": metrics, "rows": rows}
    np.savez(path, **{f"{part}:{name}": value for part, values in named.items() for name, value in values.items()})


def differences(plan: StepPlan, path: Path) -> dict[str, float]:
    """Takes the step that was kept; gives the relative differences of metrics and of parts of the state."""
    with np.load(path) as kept:
        before, after, metrics, rows = (part_of(kept, part) for part in ("before", "after", "metrics", "rows"))
    _, found_metrics, found = taken(plan.compiled(), plan, state_of(before, plan), rows)
    ours = flat(found)
    result = {name: relative(found_metrics[name], metrics[name]) for name in sorted(metrics)}
    for part in sorted({part_name(name) for name in after}):
        names = [name for name in after if part_name(name) == part]
        here, there = (np.concatenate([change(state, before, name) for name in names]) for state in (ours, after))
        result[f"change of {part}"] = relative(here, there)
    return result


def taken(step: jax.stages.Compiled, plan: StepPlan, before: Any, rows: dict[str, np.ndarray]) -> Any:
    """One step from a state in host memory: (state placed, metrics, state after), the last two in host memory."""
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(plan.task, plan.optimizer, plan.mesh))
    placed = jax.device_put(before, placement)
    after, metrics = jax.device_get(step(placed, global_batch(plan.mesh, rows), jax.random.key(1)))
    return placed, metrics, after


def check(found: dict[str, float], tolerance: float) -> None:
    """Raises UserError if a metric differs by more than the tolerance, or a moment of the optimizer by ten times it."""
    moments = ("change of opt_state mu", "change of opt_state nu")
    for name, difference in found.items():
        allowed = 10 * tolerance if name in moments else tolerance
        if (name in moments or not name.startswith("change of ")) and not difference <= allowed:
            raise UserError(f"{name} differs by {difference:.1e}; expected at most {allowed:.0e}")


def flat(tree: Any) -> dict[str, np.ndarray]:
    """Every array by its path."""
    return {path_name(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def state_of(leaves: dict[str, np.ndarray], plan: StepPlan) -> Any:
    """The inverse of `flat` for a train state."""
    shapes = abstract_state(plan.task, plan.optimizer, plan.mesh)
    return jax.tree_util.tree_map_with_path(lambda path, _: leaves[path_name(path)], shapes)


def part_of(kept: Any, part: str) -> dict[str, np.ndarray]:
    """What lies under a prefix of an .npz file."""
    return {name.removeprefix(f"{part}:"): kept[name] for name in kept.files if name.startswith(f"{part}:")}


def part_name(path: str) -> str:
    """The group of a leaf: moments by name, the queue's arrays one by one, everything else by two names of its path."""
    if moment := next((name for name in ("mu", "nu") if f"/{name}/" in path), None):
        return f"opt_state {moment}"
    names = path.split("/")
    return " ".join(names[: 1 if names[0] == "opt_state" else 3 if "queue" in names else 2])


def change(state: dict[str, np.ndarray], before: dict[str, np.ndarray], name: str) -> np.ndarray:
    """What a step added to a leaf, flat and in float64."""
    return (state[name].astype(np.float64) - before[name].astype(np.float64)).ravel()


def relative(here: Any, there: Any) -> float:
    """|here - there| / |there|; 0 where both are zero."""
    here, there = np.asarray(here, np.float64), np.asarray(there, np.float64)
    apart = np.linalg.norm(here - there)
    return float(apart / np.linalg.norm(there)) if apart else 0.0


if __name__ == "__main__":
    try:
        app.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
