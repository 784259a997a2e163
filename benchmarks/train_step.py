"""Whole train steps on the first device at hand: pairs per second, share of its matrix rate, memory, compile time.

    python benchmarks/train_step.py --json=steps.json       # ViT-B and ViT-L, both tasks, until memory ends
    python benchmarks/train_step.py --config=configs/demo.py --task=pretraining --batch_sizes=16,32

Each row is one compiled step of one batch size: losses, gradients, AdamW, and the teacher and queue of pre-training, on
random pixels and texts of full length, from random weights. Batch sizes grow until the first for which memory ends.
XLA counts the multiply-adds of the same step before it optimises it, with the layers unrolled and nothing recomputed:
what recomputing adds is time, not work. The share of the matrix rate is two operations for each of them, over the rate
of one large bfloat16 product measured in the same process. On GPUs JAX hands out three quarters of the memory unless
XLA_PYTHON_CLIENT_MEM_FRACTION says otherwise. `--task=retrieval` keeps the sizes of the configuration, and its frozen
image tower, and takes the terms' defaults. What is left after `--seconds` is named and not measured.
"""

import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from absl import app, flags
from ml_collections import ConfigDict
from planned_steps import CONFIGS, check_listed, planned, with_dropout

from r2d2_jax.arrays import exact_if_float32
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.config.tasks import LossConfig
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.sharding import global_batch
from r2d2_jax.train.compiled import lower_train_step
from r2d2_jax.train.plan import StepPlan, step_memory
from r2d2_jax.train.state import abstract_state
from r2d2_jax.train.trial import random_rows, random_state

GIB = 2**30
TASKS = ("pretraining", "retrieval")


@dataclass(frozen=True)
class Kind:
    """How a step computes: dtype of the model, and what its backward pass computes again."""

    dtype: str
    remat: str = "none"


KINDS = {
    "bfloat16": Kind("bfloat16"),
    "bfloat16_products": Kind("bfloat16", remat="products"),
    "float32": Kind("float32"),
}

CONFIG = flags.DEFINE_multi_string(
    "config", [str(CONFIGS / "vitb_2m.py"), str(CONFIGS / "vitl_250m.py")], "A config file; may be repeated."
)
TASK = flags.DEFINE_list("task", list(TASKS), f"Of {', '.join(TASKS)}.")
KIND = flags.DEFINE_list("kind", list(KINDS), f"Of {', '.join(KINDS)}.")
BATCHES = flags.DEFINE_list("batch_sizes", ["32", "64", "128", "256", "512"], "Pairs per step, ascending.")
FLOAT32_BATCH = flags.DEFINE_integer("float32_batch_size", 32, "Pairs per step of the float32 kinds.", lower_bound=2)
DROPOUT = flags.DEFINE_float("dropout", None, "Rate of dropout; each configuration's unless given.")
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps of a row, after two that are not.", lower_bound=1)
MATRIX = flags.DEFINE_integer("matrix", 8192, "Side of the square product that gives the rate.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", None, "Begin no further row once so many seconds have passed.", lower_bound=0)
JSON = flags.DEFINE_string("json", None, "Write everything to this file, after every row.")


@dataclass(frozen=True)
class Row:
    """One compiled step and what was measured of it; what could not be is None.

    planned_gib: arguments and temporaries, as XLA says. peak_gib: what the device's allocator had given out at most,
    where this row raised it. step_ms: median; spread_ms: longest less shortest. share: of the matrix rate.
    first_step: the metrics of the first step, from the same weights on the same pairs in every row of a batch size.
    """

    config: str
    task: str
    kind: str
    batch_size: int
    outcome: str = "measured"
    compile_s: float | None = None
    planned_gib: float | None = None
    peak_gib: float | None = None
    step_ms: float | None = None
    spread_ms: float | None = None
    pairs_per_s: float | None = None
    share: float | None = None
    first_step: dict[str, float] | None = None


def main(_: list[str]) -> None:
    """Measures and prints row by row."""
    if JSON.value:
        check_json_path(JSON.value)
    device, start = jax.devices()[0], time.perf_counter()
    check_listed("kind", KIND.value, KINDS)
    check_listed("task", TASK.value, TASKS)
    kinds, tasks = KIND.value, TASK.value
    sizes = {kind: batch_sizes(kind) for kind in kinds}
    rates = {dtype: matrix_rate(device, MATRIX.value, dtype) for dtype in ("bfloat16", "float32")}
    report: dict[str, Any] = {
        "device": device.device_kind,
        "jax": jax.__version__,
        "matrix_tflops": {dtype: rate / 1e12 for dtype, rate in rates.items()},
        "g_multiply_adds_per_pair": {},
        "rows": [],
    }
    print(f"{device.device_kind}, JAX {jax.__version__}; TFLOP/s of one {MATRIX.value} x {MATRIX.value} product: "
          + ", ".join(f"{dtype} {rate / 1e12:.1f}" for dtype, rate in rates.items()))  # fmt: skip
    print(HEADER)
    for task, path in ((task, path) for task in tasks for path in CONFIG.value):
        name, config = Path(path).stem, for_task(with_dropout(read_configuration(path), DROPOUT.value), task)
        work = multiply_adds(config, sizes[kinds[0]][0])
        report["g_multiply_adds_per_pair"][f"{name} {task}"] = work / 1e9
        print(f"{name} {task}: {work / 1e9:.1f} G multiply-adds per pair")
        for row in rows_of(name, config, device, work, rates["bfloat16"], start):
            report["rows"].append(dataclasses.asdict(row))
            print(line(row), flush=True)
            if JSON.value:
                write_json(report, JSON.value)


def rows_of(name: str, config: ConfigDict, device: Any, work: float, rate: float, start: float) -> Iterator[Row]:
    """The rows of one configuration and task, kind by kind; all steps start from the same state."""
    plan = step_of(config, KIND.value[0], batch_sizes(KIND.value[0])[0], device)  # the state is the same for all
    placement = jax.tree.map(lambda leaf: leaf.sharding, abstract_state(plan.task, plan.optimizer, plan.mesh))
    # Kept by the host, because a step gives its state away, and one that fails may have lost it.
    state = random_state(plan)
    for kind in KIND.value:
        for batch_size in batch_sizes(kind):
            row = Row(name, config.task, kind, batch_size)
            if SECONDS.value is not None and time.perf_counter() - start > SECONDS.value:
                yield dataclasses.replace(row, outcome="no time left")
                continue
            plan = step_of(config, kind, batch_size, device)
            row = measured(row, plan, lambda: jax.device_put(state, placement), device)  # noqa: B023
            if row.pairs_per_s:
                row = dataclasses.replace(row, share=2 * work * row.pairs_per_s / rate)
            yield row
            if row.outcome != "measured":
                break


def measured(row: Row, plan: StepPlan, fresh_state: Callable[[], Any], device: Any) -> Row:
    """Compiles a step and times it, until memory ends."""
    try:
        row, step = compiled(row, plan)
        return timed(row, step, plan, fresh_state, device)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return dataclasses.replace(row, outcome="out of memory")


def compiled(row: Row, plan: StepPlan) -> tuple[Row, jax.stages.Compiled]:
    """The step, and the row with what compiling it tells."""
    start = time.perf_counter()
    step = plan.compiled()
    memory, seconds = step_memory(step), time.perf_counter() - start
    planned_gib = (memory.arguments + memory.temporaries) / GIB
    return dataclasses.replace(row, compile_s=seconds, planned_gib=planned_gib), step


def timed(row: Row, step: jax.stages.Compiled, plan: StepPlan, fresh_state: Callable[[], Any], device: Any) -> Row:
    """The row with what running the step tells."""
    peak_before = peak_bytes(device)
    times, first = step_times(step, fresh_state(), plan, STEPS.value)
    peak, seconds = peak_bytes(device), statistics.median(times)
    return dataclasses.replace(
        row,
        peak_gib=peak / GIB if peak > peak_before else None,
        step_ms=1e3 * seconds,
        spread_ms=1e3 * (max(times) - min(times)),
        pairs_per_s=row.batch_size / seconds,
        first_step=first,
    )


def step_times(
    step: jax.stages.Compiled, state: Any, plan: StepPlan, steps: int
) -> tuple[list[float], dict[str, float]]:
    """Seconds of each step, after two that are not counted, and the metrics of the first."""
    batch, key = global_batch(plan.mesh, random_rows(plan)), jax.random.key(1)
    state, metrics = step(state, batch, key)
    first = {name: float(value) for name, value in jax.device_get(metrics).items()}
    state, _ = jax.block_until_ready(step(state, batch, key))
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        state, _ = jax.block_until_ready(step(state, batch, key))
        times.append(time.perf_counter() - start)
    return times, first


def multiply_adds(config: ConfigDict, pairs: int) -> float:
    """Per pair of a train step of so many, as XLA counts them before it optimises the program: every layer once.

    Optimizer and teacher average are counted too; from 32 pairs on they are less than a thousandth. Dropout is not: its
    random bits are no products.
    """
    counted = with_dropout(config.copy_and_resolve_references(), 0.0)
    counted.model.update(unroll=True, remat="none")
    counted.train.batch_size = pairs
    plan = planned(counted, jax.devices("cpu")[:1], MeshConfig(1, 1))
    lowered = lower_train_step(plan.task, plan.optimizer, plan.mesh, pairs)
    cost = lowered.cost_analysis()
    assert cost is not None
    return cost["flops"] / 2 / pairs


def matrix_rate(device: Any, side: int, dtype: str, products: int = 10, rounds: int = 5) -> float:
    """Operations per second of a product of two random square matrices: the median of rounds of several each."""
    keys = jax.random.split(jax.random.key(0))
    left, right = (jax.device_put(jax.random.normal(key, (side, side), jnp.dtype(dtype)), device) for key in keys)
    product = jax.jit(lambda a, b: jnp.matmul(a, b, precision=exact_if_float32(dtype)))
    product(left, right).block_until_ready()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        jax.block_until_ready([product(left, right) for _ in range(products)][-1])
        times.append((time.perf_counter() - start) / products)
    return 2 * side**3 / statistics.median(times)


def for_task(config: ConfigDict, task: str) -> ConfigDict:
    """The configuration with its sizes and another task; the terms of a task that is not its own are the defaults."""
    if config.task != task:
        config.task = task
        if task == "retrieval":
            config.loss = ConfigDict(dataclasses.asdict(LossConfig()))
    return config


def step_of(config: ConfigDict, kind: str, batch_size: int, device: Any) -> StepPlan:
    """The plan of a step on one device."""
    changed = config.copy_and_resolve_references()
    changed.model.update(dtype=KINDS[kind].dtype, remat=KINDS[kind].remat)
    changed.train.batch_size = batch_size
    return planned(changed, [device], MeshConfig(1, 1))


def batch_sizes(kind: str) -> list[int]:
    """The batch sizes of a kind, ascending.

    Raises:
        UserError: they are no numbers above 1.
    """
    if KINDS[kind].dtype == "float32":
        return [FLOAT32_BATCH.value]
    if not all(size.strip().isdigit() and int(size) > 1 for size in BATCHES.value):
        raise UserError(f"--batch_sizes={','.join(BATCHES.value)}: expected numbers above 1, such as 32,64")
    return sorted(int(size) for size in BATCHES.value)


def peak_bytes(device: Any) -> int:
    """The most that the device's allocator has given out so far; 0 where it does not say."""
    return (device.memory_stats() or {}).get("peak_bytes_in_use", 0)


HEADER = (
    f"{'config':<12} {'task':<12} {'kind':<16} {'pairs':>5} {'pairs/s':>8} {'step ms':>8} {'spread':>7} {'share':>6} "
    f"{'XLA GiB':>8} {'peak GiB':>8} {'compile s':>9}  first loss"
)


def line(row: Row) -> str:
    """A row of the table."""
    cells = [
        *(f"{text:<{width}}" for text, width in ((row.config, 12), (row.task, 12), (row.kind, 16))),
        f"{row.batch_size:>5}",
        *(
            f"{'-' if value is None else format(value, f'.{digits}f'):>{width}}"
            for value, digits, width in (
                (row.pairs_per_s, 1, 8),
                (row.step_ms, 1, 8),
                (row.spread_ms, 1, 7),
                (row.share, 3, 6),
                (row.planned_gib, 2, 8),
                (row.peak_gib, 2, 8),
                (row.compile_s, 1, 9),
            )
        ),
        f" {row.first_step['loss']:.6f}" if row.first_step else f" {row.outcome}",
    ]
    return " ".join(cells)


if __name__ == "__main__":
    try:
        app.run(main)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
