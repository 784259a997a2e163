"""Forward cost of pre-training per pair, counted by XLA from the compiled program.

    python benchmarks/step_cost.py                      # vitl_250m: multiply-adds per pair with and without ET
    python benchmarks/step_cost.py --run                # one real train step of it on this CPU, and the peak memory

Both fail, with exit status 1, where a figure is above what the project promises. What a whole step needs on each chip,
`launch/plan.py` says.

The forward is counted by `train.plan.forward_cost`. XLA counts random bits too, so it has no dropout unless `--dropout`
gives it one.
"""

import resource
import sys
import time
from pathlib import Path

import jax
from absl import app, flags
from ml_collections import ConfigDict
from planned_steps import CONFIGS, planned, with_dropout

from r2d2_jax import presets
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.sharding import global_batch
from r2d2_jax.train.plan import COUNTED_PAIRS, forward_cost
from r2d2_jax.train.state import sharded_init_state
from r2d2_jax.train.trial import random_rows

# G multiply-adds per pair of R2D2 ViT-L with enhanced training: as the article reports them, and what this project
# promises, which computes nothing twice.
ARTICLE, PROMISED = 154.0, 143.0
MEMORY_LIMIT = 24.0  # GiB that one step of the largest model may take on a CPU (our decision)

CONFIG = flags.DEFINE_string("config", str(CONFIGS / "vitl_250m.py"), "A config file.")
PAIRS = flags.DEFINE_integer("pairs", COUNTED_PAIRS, "Pairs in the batch whose forward is counted.", lower_bound=2)
RUN = flags.DEFINE_bool("run", False, "Run one train step of --pairs pairs in float32 on this CPU.")
DROPOUT = flags.DEFINE_float("dropout", None, "Rate of dropout; the configuration's unless given, 0 in the count.")


def main(_: list[str]) -> None:
    """Prints the asked-for table."""
    jax.config.update("jax_platforms", "cpu")
    if RUN.value:
        run_one_step(configuration())
        return
    with_et = forward_cost(Config.from_config_dict(configuration(0.0)), PAIRS.value) / 1e9
    without = presets.with_variant(configuration(0.0), "without_et")
    without_et = forward_cost(Config.from_config_dict(without), PAIRS.value) / 1e9
    print(f"{Path(CONFIG.value).stem}: G multiply-adds per pair, forward, counted by XLA {jax.__version__}")
    print(f"  with enhanced training     {with_et:7.1f}   (article, ViT-L: {ARTICLE})")
    print(f"  without enhanced training  {without_et:7.1f}   (x {without_et / with_et:.3f})")
    check_cost(with_et, without_et)


def configuration(dropout: float | None = None) -> ConfigDict:
    """What the flags name, with a rate of dropout where they name none; None keeps the configuration's."""
    return with_dropout(read_configuration(CONFIG.value), dropout if DROPOUT.value is None else DROPOUT.value)


def check_cost(with_et: float, without_et: float) -> None:
    """Raises UserError unless the G multiply-adds per pair are what is promised or less, and more without ET."""
    if with_et > PROMISED:
        raise UserError(f"{with_et:.1f} G multiply-adds per pair are more than the promised {PROMISED}")
    if without_et <= with_et:
        raise UserError(f"without enhanced training a pair costs {without_et:.1f} G multiply-adds, no more than with")


def check_peak(gib: float) -> None:
    """Raises UserError if a step's peak memory in GiB is above `MEMORY_LIMIT`."""
    if gib > MEMORY_LIMIT:
        raise UserError(f"the peak memory of {gib:.1f} GiB is above {MEMORY_LIMIT:.0f} GiB")


def run_one_step(config: ConfigDict) -> None:
    """Runs one step on random pixels and tokens and prints its loss terms and this process's peak memory."""
    config.model.dtype = "float32"
    config.train.batch_size = PAIRS.value
    plan = planned(config, jax.devices()[:1], MeshConfig(1, 1))
    state = sharded_init_state(plan.task, plan.optimizer, plan.mesh, jax.random.key(0))
    step, rows = plan.compiled(), random_rows(plan)
    start = time.perf_counter()
    state, metrics = step(state, global_batch(plan.mesh, rows), jax.random.key(0))
    metrics = jax.device_get(metrics)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # Linux counts in KiB
    print(f"{Path(CONFIG.value).stem}: one train step of {PAIRS.value} pairs in {time.perf_counter() - start:.0f} s, "
          f"peak memory {peak:.1f} GiB")  # fmt: skip
    print("  " + ", ".join(f"{name} {float(value):.3f}" for name, value in metrics.items()))
    check_peak(peak)


if __name__ == "__main__":
    try:
        app.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
