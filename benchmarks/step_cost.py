"""Forward cost of pre-training per pair, counted by XLA from the compiled program, and what a step needs per device.

    python benchmarks/step_cost.py                      # vitl_250m: multiply-adds per pair with and without ET
    python benchmarks/step_cost.py --memory --devices=8 # its whole train step, compiled for 8 imitated devices
    python benchmarks/step_cost.py --memory --topology=v5e:4x4  # for TPU chips that need not be there; needs libtpu
    python benchmarks/step_cost.py --memory --dropout=0 # the same without dropout, to see what dropout adds
    python benchmarks/step_cost.py --run                # one real train step of it on this CPU, and the peak memory

The first and the last fail, with exit status 1, where a figure is above what the project promises.

The forward is the task's loss: student, teacher, all terms. XLA counts the body of a loop once, so the layers are
unrolled; it counts two operations per multiply-add. It counts random bits too, so the forward has no dropout unless
`--dropout` gives it one. The similarity with the queue is part of the count; it is the same
for every pair, so the queue keeps its configured length and the batch is small.
"""

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
from absl import app, flags
from ml_collections import ConfigDict
from planned_steps import CONFIGS, planned, random_rows, with_dropout

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.sharding import global_batch
from r2d2_jax.train.compiled import abstract_batch
from r2d2_jax.train.plan import step_memory, tpu_chips
from r2d2_jax.train.state import abstract_state, sharded_init_state

ARTICLE = 154.0  # G multiply-adds per pair of R2D2 ViT-L with enhanced training, as the article reports them
MEMORY_LIMIT = 24.0  # GiB that one step of the largest model may take on a CPU (our decision)

CONFIG = flags.DEFINE_string("config", str(CONFIGS / "vitl_250m.py"), "A config file.")
PAIRS = flags.DEFINE_integer("pairs", 2, "Pairs in the batch whose forward is counted.", lower_bound=2)
MEMORY = flags.DEFINE_bool("memory", False, "Compile the whole sharded step instead and print memory per device.")
RUN = flags.DEFINE_bool("run", False, "Run one train step of --pairs pairs in float32 on this CPU.")
DEVICES = flags.DEFINE_integer("devices", 8, "With --memory: devices to imitate.", lower_bound=1)
TOPOLOGY = flags.DEFINE_string("topology", None, "With --memory: a TPU topology to compile for, such as v5e:4x4.")
DROPOUT = flags.DEFINE_float("dropout", None, "Rate of dropout; the configuration's unless given, 0 in the count.")
BATCH = flags.DEFINE_integer("batch_size", 256, "With --memory: the global batch.", lower_bound=1)


def main(_: list[str]) -> None:
    """Prints the asked-for table."""
    jax.config.update("jax_platforms", "cpu")
    if MEMORY.value:
        jax.config.update("jax_num_cpu_devices", DEVICES.value)
        print_memory(configuration())
        return
    if RUN.value:
        run_one_step(configuration())
        return
    costs = (forward_cost(configuration(0.0), PAIRS.value, enhanced) for enhanced in (True, False))
    with_et, without_et = costs
    print(f"{Path(CONFIG.value).stem}: G multiply-adds per pair, forward, counted by XLA {jax.__version__}")
    print(f"  with enhanced training     {with_et:7.1f}   (article, ViT-L: {ARTICLE})")
    print(f"  without enhanced training  {without_et:7.1f}   (x {without_et / with_et:.3f})")
    check_cost(with_et, without_et)


def configuration(dropout: float | None = None) -> ConfigDict:
    """What the flags name, with a rate of dropout where they name none; None keeps the configuration's."""
    return with_dropout(read_configuration(CONFIG.value), dropout if DROPOUT.value is None else DROPOUT.value)


def check_cost(with_et: float, without_et: float) -> None:
    """Raises UserError unless the G multiply-adds per pair are the article's or less, and more without ET."""
    if with_et > ARTICLE:
        raise UserError(f"{with_et:.1f} G multiply-adds per pair are more than the article's {ARTICLE}")
    if without_et <= with_et:
        raise UserError(f"without enhanced training a pair costs {without_et:.1f} G multiply-adds, no more than with")


def check_peak(gib: float) -> None:
    """Raises UserError if a step's peak memory in GiB is above `MEMORY_LIMIT`."""
    if gib > MEMORY_LIMIT:
        raise UserError(f"the peak memory of {gib:.1f} GiB is above {MEMORY_LIMIT:.0f} GiB")


def forward_cost(config: ConfigDict, pairs: int, enhanced_training: bool) -> float:
    """G multiply-adds per pair of the configured task's loss on a batch of so many pairs."""
    config.loss.enhanced_training = enhanced_training
    config.model.update(unroll=True, remat=False)
    config.train.batch_size = pairs
    plan = planned(config, jax.devices()[:1], MeshConfig(1, 1))
    state = abstract_state(plan.task, plan.optimizer, plan.mesh)
    batch, key = abstract_batch(plan.task, pairs, plan.mesh), jax.eval_shape(lambda: jax.random.key(0))

    def forward(state: Any, batch: Any, key: Any) -> jax.Array:
        return plan.task.loss(state.params, state.memory, batch, state.step, key, plan.mesh).total()

    return multiply_adds(forward, state, batch, key) / pairs / 1e9


def multiply_adds(function: Callable[..., Any], *arguments: Any) -> float:
    """Half of XLA's count of floating-point operations in the compiled program, for (abstract) arguments."""
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"] / 2


def print_memory(config: ConfigDict) -> None:
    """Compiles the whole step ahead of time and prints what XLA says it needs."""
    config.train.batch_size = BATCH.value
    devices = tpu_chips(TOPOLOGY.value) if TOPOLOGY.value else jax.devices()
    plan = planned(config, devices)
    start = time.perf_counter()
    memory = step_memory(plan.compiled())
    gib, seconds = 2**30, time.perf_counter() - start
    print(f"{Path(CONFIG.value).stem}: train step for {len(devices)} x {devices[0].device_kind}, mesh "
          f"{dict(plan.mesh.shape)}, global batch {BATCH.value}, compiled in {seconds:.0f} s")  # fmt: skip
    print(f"  arguments {memory.arguments / gib:.2f} GiB, of them donated {memory.donated / gib:.2f} GiB, "
          f"temporaries {memory.temporaries / gib:.2f} GiB per device")  # fmt: skip


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
        sys.exit(f"error: {error}")
