"""Where the time of a train step goes: by kind of work, by part of the model, and the longest operations.

    python benchmarks/where_time_goes.py --config=vitl_250m --pairs=64          # a GPU
    python benchmarks/where_time_goes.py --config=demo --dtype=float32

Runs some steps on random pairs under JAX's profiler, and finds each measured operation in the compiled program, which
says what it computes and for which part of the model. Times are those of the threads or streams that work, added up.
Kernels of a GPU that the program does not name are shown as such; of a CPU's threads only what it names is counted.
"""

import collections
import dataclasses
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from absl import flags
from planned_steps import planned, with_pairs

from r2d2_jax.config.model import DTYPES
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.program import parse_known, run
from r2d2_jax.planning.hlo import Instruction, Program, parse
from r2d2_jax.planning.memory import readable
from r2d2_jax.planning.traffic import KINDS
from r2d2_jax.planning.work import operations
from r2d2_jax.sharding import global_batch
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import sharded_init_state
from r2d2_jax.train.trial import random_rows

FLAGS = flags.FlagValues()
CONFIG = flags.DEFINE_string("config", "vitl_250m", "A configuration.", flag_values=FLAGS)
PAIRS = flags.DEFINE_integer("pairs", 64, "Pairs in the batch.", lower_bound=2, flag_values=FLAGS)
DTYPE = flags.DEFINE_enum("dtype", None, DTYPES, "Of the model; the configuration's unless given.", flag_values=FLAGS)
REMAT = flags.DEFINE_string("remat", "none", "As that of launch/plan.py.", flag_values=FLAGS)
STEPS = flags.DEFINE_integer("steps", 3, "Profiled steps.", lower_bound=1, flag_values=FLAGS)
LONGEST = flags.DEFINE_integer("longest", 15, "Operations that are listed.", lower_bound=0, flag_values=FLAGS)
JSON = flags.DEFINE_string("json", None, "Write everything to this file.", flag_values=FLAGS)

PRODUCTS, COLLECTIVES, COPIES, REST = (
    "matrix products",
    "collectives",
    "copies and transposes",
    "element by element, sums, sorting",
)
PARTS = ("image_encoder", "text_encoder", "text_image_encoder", "image_text_encoder", "masked_lm_head")
UNKNOWN = "not in the program"
# These run others, whose times are measured too.
_OUTER = {"while", "call", "conditional"}


@dataclass(frozen=True)
class Timed:
    """An operation of the program and what was measured of it, in one step.

    name: in the program. kind: see above. part: of the model, and the direction. place: where it was traced.
    seconds: of all its runs. products: multiply-adds of all its runs.
    """

    name: str
    kind: str
    part: str
    place: str
    seconds: float
    products: float


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the tables; returns the exit status."""
    return run(_work, argv, stopped="stopped before the table")


def _work(arguments: Sequence[str]) -> int:
    overrides = parse_known(FLAGS, arguments, __doc__)
    named = with_pairs(read_configuration(str(CONFIG.value), overrides), PAIRS.value)
    named.model.update(dtype=DTYPE.value or named.model.dtype, remat=REMAT.value)
    if JSON.value:
        check_json_path(JSON.value)
    plan = planned(named, jax.devices()[:1], MeshConfig(1, 1))
    compiled = plan.compiled()
    measured = profiled(compiled, plan, STEPS.value)
    found = timed(parse(compiled.as_text() or ""), measured, STEPS.value)
    about = (
        f"{Path(str(CONFIG.value)).stem}, {PAIRS.value} pairs, {named.model.dtype}, rematerialisation {REMAT.value}, "
        f"{jax.devices()[0].device_kind}, JAX {jax.__version__}"
    )
    print(about)
    print("\n".join(tables(found, LONGEST.value)))
    if JSON.value:
        write_json({"about": about, "operations": [dataclasses.asdict(each) for each in found]}, JSON.value)
    return 0


def profiled(compiled: Any, plan: StepPlan, steps: int) -> dict[str, float]:
    """Seconds by name of what the profiler saw in so many steps, after two that it did not see."""
    state = sharded_init_state(plan.task, plan.optimizer, plan.mesh, jax.random.key(0))
    batch, key = global_batch(plan.mesh, random_rows(plan)), jax.random.key(1)
    for _ in range(2):
        state, _ = jax.block_until_ready(compiled(state, batch, key))
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(steps):
                state, _ = jax.block_until_ready(compiled(state, batch, key))
        (file,) = Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    seconds: dict[str, float] = collections.defaultdict(float)
    for name, duration in events(data):
        seconds[name] += duration
    return dict(seconds)


def events(data: Any) -> Iterator[tuple[str, float]]:
    """Yields name and seconds of every operation on a stream of a GPU or TPU, or on a thread of XLA's on a CPU."""
    devices = [plane for plane in data.planes if plane.name.startswith("/device:") and "CUSTOM" not in plane.name]
    for plane in devices or [plane for plane in data.planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            if not (line.name.startswith(("Stream", "XLA Ops")) if devices else line.name.startswith("tf_XLA")):
                continue
            for event in line.events:
                operation = dict(event.stats).get("hlo_op", event.name)
                yield str(operation).removeprefix("%"), event.duration_ns / 1e9


def timed(program: Program, measured: dict[str, float], steps: int) -> list[Timed]:
    """What was measured of a program, the longest first.

    Args:
        program: that was run.
        measured: seconds by name, of all steps together.
        steps: how many they were.
    """
    worked = {each.name: each.times * (each.products + each.exact_products) for each in operations(program)}
    known = {instruction.name: instruction for _, instruction, _ in program.executed(fused=False)}
    found, unknown = [], 0.0
    for name, seconds in measured.items():
        instruction = known.get(name)
        if instruction is None:
            unknown += seconds
        elif instruction.opcode not in _OUTER:
            work = worked.get(name, 0.0)
            kind, part = kind_of(instruction, work), part_of(instruction.op_name, program.stack(instruction))
            found.append(Timed(name, kind, part, readable(instruction.op_name), seconds / steps, work))
    if unknown and jax.default_backend() != "cpu":  # where threads also report what they do beside the program
        found.append(Timed(UNKNOWN, UNKNOWN, UNKNOWN, "", unknown / steps, 0.0))
    return sorted(found, key=lambda each: -each.seconds)


def kind_of(instruction: Instruction, products: float) -> str:
    """The kind of work."""
    opcode = instruction.opcode.removesuffix("-start").removesuffix("-done")
    if opcode in KINDS:
        return COLLECTIVES
    if products:
        return PRODUCTS
    moves = opcode in ("copy", "transpose", "concatenate", "slice", "dynamic-update-slice", "pad")
    return COPIES if moves or instruction.name.startswith(("copy", "transpose")) else REST


def part_of(op_name: str, stack: Sequence[str]) -> str:
    """The part of the model, and which pass.

    Args:
        op_name: where an instruction comes from.
        stack: names of the functions in which it was traced.
    """
    names = readable(op_name).removeprefix("backward of ").split("/")
    part = next((part for part in PARTS if part in names), "losses, optimizer and the rest")
    if part not in PARTS:
        return part
    if "transpose(" in op_name:
        return f"{part}, {'recomputed' if 'rematted' in op_name else 'backward'}"
    return f"{part}, {'teacher' if 'Pretraining._teacher' in stack else 'forward'}"


def tables(found: Sequence[Timed], longest: int) -> Iterator[str]:
    """Yields the lines of three tables: by kind, by part, and the longest operations with their rate."""
    whole = sum(each.seconds for each in found)
    yield f"{1e3 * whole:.1f} ms a step, all threads or streams together"
    for title, key in (("kind of work", "kind"), ("part", "part")):
        yield f"{title:<44} {'ms':>9} {'share':>7} {'TFLOP/s':>8}"
        groups: dict[str, list[Timed]] = {}
        for each in found:
            groups.setdefault(getattr(each, key), []).append(each)
        for name, members in sorted(groups.items(), key=lambda group: -sum(each.seconds for each in group[1])):
            yield _line(name, members, whole)
    yield f"{'the longest operations':<44} {'ms':>9} {'share':>7} {'TFLOP/s':>8}"
    for each in found[:longest]:
        yield f"{_line(each.name[:44], [each], whole)}  {each.place}"


def _line(name: str, members: Sequence[Timed], whole: float) -> str:
    seconds, products = sum(each.seconds for each in members), sum(each.products for each in members)
    rate = f"{2 * products / seconds / 1e12:.2f}" if products and seconds else "-"
    return f"{name:<44} {1e3 * seconds:>9.2f} {100 * seconds / whole:>6.1f}% {rate:>8}"


if __name__ == "__main__":
    sys.exit(main())
