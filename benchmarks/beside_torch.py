"""Our train step, encoders and match stage beside the same in PyTorch: pairs per second, measured in turn.

    python benchmarks/beside_torch.py --config=vitb_2m --pairs=8 --dtype=float32        # a CPU
    python benchmarks/beside_torch.py --config=vitl_250m --pairs=64 --torch_compile     # a GPU

Both start from the same random weights, in one process, on the same device, on the same random pairs; PyTorch's side is
`torch_pretraining.py`. First both take one step without dropout, with the same masked tokens and hard negatives; the
program fails, with exit status 1, where a term of the two losses differs by more than rounding. Then each stage is
timed in `--rounds` rounds, ours and PyTorch's in turn, after one that is not counted. A ratio above 1 says that ours
makes more pairs per second; processor time is shown beside, which other programs on the machine disturb less. The first
call of each, which compiles, is not counted. On a CPU ViT-B takes 22 GiB at 8 pairs in float32.
"""

import ctypes
import dataclasses
import gc
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory of the same GPU

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from ml_collections import ConfigDict
from planned_steps import check_listed, planned, with_dropout, with_pairs
from torch_pretraining import Draws, Masked, TorchBatch, TorchPretraining, check_whole_method, torch_batch

from r2d2_jax.arrays import Batch
from r2d2_jax.config.model import DTYPES
from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.forwards import compiled_forwards
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.program import parse_known, run
from r2d2_jax.rng import stream
from r2d2_jax.sharding import global_batch
from r2d2_jax.tasks.pretraining import Pretraining
from r2d2_jax.tasks.stages import Similarities, hard_negatives
from r2d2_jax.tasks.task import LOSS
from r2d2_jax.train.plan import StepPlan
from r2d2_jax.train.state import TrainState, abstract_state
from r2d2_jax.train.trial import random_rows, random_state

FLAGS = flags.FlagValues()
CONFIG = flags.DEFINE_string("config", "vitb_2m", "A configuration of the whole method.", flag_values=FLAGS)
STAGES = ("train_step", "encode_image", "encode_text", "match")
STAGE = flags.DEFINE_list("stages", list(STAGES), f"Of {', '.join(STAGES)}.", flag_values=FLAGS)
PAIRS = flags.DEFINE_integer("pairs", 8, "Pairs in a batch.", lower_bound=2, flag_values=FLAGS)
DTYPE = flags.DEFINE_enum("dtype", "bfloat16", DTYPES, "Of the matrix products.", flag_values=FLAGS)
DROPOUT = flags.DEFINE_float("dropout", None, "Rate of dropout; the configuration's unless given.", flag_values=FLAGS)
REMAT = flags.DEFINE_bool("remat", False, "Recompute layers as the configuration does.", flag_values=FLAGS)
COMPILE = flags.DEFINE_bool("torch_compile", False, "PyTorch's step through torch.compile.", flag_values=FLAGS)
ROUNDS = flags.DEFINE_integer("rounds", 7, "Timed rounds.", lower_bound=1, flag_values=FLAGS)
JSON = flags.DEFINE_string("json", None, "Write everything to this file.", flag_values=FLAGS)

# How far a term of the two losses may lie apart: rounding of float32 and of bfloat16 products.
TOLERANCE = {"float32": 1e-4, "bfloat16": 3e-2}


@dataclass(frozen=True)
class Row:
    """One stage: pairs per second of both, medians; `ratio` of ours to PyTorch's; `processor_ratio` of processor time.

    seconds: of each round, ours and PyTorch's.
    """

    stage: str
    ours: float
    torch: float
    ratio: float
    processor_ratio: float
    seconds: list[tuple[float, float]]


class OurDraws(Draws):
    """Those that our step draws from a key on a batch."""

    def __init__(self, plan: StepPlan, batch: Batch, key: jax.Array) -> None:
        assert isinstance(plan.task, Pretraining)
        self.task, self.batch, self.key = plan.task, batch, key

    def masked(self, step: TorchPretraining, batch: TorchBatch) -> Masked:
        """The masked tokens of a step."""
        found = self.task.masked(self.batch, stream(self.key, "mask", step.steps))
        ids, position, label = (
            as_torch(array, step.device).long() for array in (found.input_ids, found.position, found.label)
        )
        return Masked(ids, position, label, as_torch(found.masked, step.device))

    def negatives(
        self, step: TorchPretraining, i2t: torch.Tensor, t2i: torch.Tensor, positive: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The negatives of a step."""
        found = Similarities(*(jnp.asarray(array.cpu().numpy()) for array in (i2t, t2i, positive)))
        drawn = hard_negatives(stream(self.key, "hard_negative", step.steps), found, jnp.arange(len(found.i2t)))
        return as_torch(drawn.text, step.device), as_torch(drawn.image, step.device)


def as_torch(array: jax.Array, device: str) -> torch.Tensor:
    """The same numbers in PyTorch."""
    return torch.from_numpy(np.array(array)).to(device)


def main(argv: Sequence[str] | None = None) -> int:
    """Prints the table; returns the exit status."""
    return run(_work, argv, stopped="stopped before the table")


def _work(arguments: Sequence[str]) -> int:
    overrides = parse_known(FLAGS, arguments, __doc__)
    named = read_configuration(str(CONFIG.value), overrides)
    check_listed("stages", STAGE.value, STAGES)
    check_whole_method(Config.from_config_dict(named))
    if JSON.value:
        check_json_path(JSON.value)
    remat = named.model.remat if REMAT.value else "none"
    with_pairs(named, PAIRS.value).model.update(dtype=DTYPE.value, remat=remat)
    apart = first_steps_apart(Sides(with_dropout(named.copy_and_resolve_references(), 0.0)))
    return_freed_memory()
    sides = Sides(with_dropout(named, DROPOUT.value), compiled=COMPILE.value)
    print(sides.described(), flush=True)
    print("one step of both, largest relative difference of a term: "
          + ", ".join(f"{name} {value:.1e}" for name, value in apart.items()), flush=True)  # fmt: skip
    if far := [name for name, value in apart.items() if not value <= TOLERANCE[DTYPE.value]]:
        print(f"error: {far[0]} is another in PyTorch, so the two are not the same work", file=sys.stderr)
        return 1
    print(HEADER, flush=True)
    rows = [measured(stage, *sides.stage(stage), PAIRS.value, ROUNDS.value) for stage in STAGE.value]
    if JSON.value:
        report = {"about": sides.described(), "apart": apart, "rows": [dataclasses.asdict(row) for row in rows]}
        write_json(report, JSON.value)
    return 0


class Sides:
    """Our step and PyTorch's, from the same weights and for the same pairs.

    Args:
        config: a configuration of pre-training, as it is measured.
        compiled: PyTorch's step through torch.compile.
    """

    def __init__(self, config: ConfigDict, *, compiled: bool = False) -> None:
        self.config, self.device = Config.from_config_dict(config), jax.devices()[0]
        self.plan = planned(config, [self.device], MeshConfig(1, 1))
        rows, self.params, self.key = random_rows(self.plan), random_state(self.plan).params, jax.random.key(1)
        self.batch = global_batch(self.plan.mesh, rows)
        self.torch_device = "cuda" if self.device.platform == "gpu" else "cpu"
        if self.torch_device == "cuda" and not torch.cuda.is_available():
            raise UserError("JAX has a GPU and PyTorch has none; install PyTorch for CUDA, or set JAX_PLATFORMS=cpu")
        self.torch_batch = torch_batch(rows, self.torch_device)
        self.torch_step = TorchPretraining(self.config, self.plan, self.params, self.torch_device, compiled=compiled)

    def described(self) -> str:
        """One line of what is compared on what."""
        return (
            f"{Path(str(CONFIG.value)).stem}, {self.plan.batch_size} pairs, {self.config.model.dtype}, dropout "
            f"{self.config.model.text.dropout}, {self.device.device_kind}: JAX {jax.__version__}, PyTorch "
            f"{torch.__version__} with {torch.get_num_threads()} threads"
        )

    def state(self) -> TrainState:
        """The state before the first step, on the device; a step gives it away, which it could not do with NumPy's."""
        abstract = abstract_state(self.plan.task, self.plan.optimizer, self.plan.mesh)
        placed = jax.device_put(random_state(self.plan), jax.tree.map(lambda leaf: leaf.sharding, abstract))
        return jax.tree.map(jnp.copy, placed)

    def stage(self, name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Ours and PyTorch's, each of which returns when it is done."""
        return self.train_steps() if name == "train_step" else self.forwards(name)

    def train_steps(self) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """A step of each; each goes on from its last."""
        step, state, draws = self.plan.compiled(), self.state(), Draws()

        def ours() -> None:
            nonlocal state
            state, metrics = step(state, self.batch, self.key)
            jax.block_until_ready(metrics)

        return ours, lambda: self.finished(self.torch_step.step(self.torch_batch, draws))

    def forwards(self, name: str) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """An encoder of each, or the match stage, as evaluation and search call them."""
        forwards = compiled_forwards(self.plan.task.model, self.plan.mesh)
        params = jax.device_put(self.params, self.device)
        model, images = self.torch_step.trained.model, self.torch_step.normalised(self.torch_batch.images)
        text = self.batch.input_ids, self.batch.attention_mask
        their_text = self.torch_batch.input_ids, self.torch_batch.attention_mask
        ours: Callable[[], Any]
        theirs: Callable[[], Any]
        if name == "encode_image":
            ours = partial(forwards.encode_image, params, self.batch.images)
            theirs = partial(model.encode_image, images)
        elif name == "encode_text":
            ours = partial(forwards.encode_text, params, *text)
            theirs = partial(model.encode_text, *their_text)
        else:
            tokens = forwards.encode_text(params, *text).tokens, forwards.encode_image(params, self.batch.images).tokens
            ours = partial(forwards.match, params, tokens[0], text[1], tokens[1])
            with torch.inference_mode(), self.torch_step.autocast():
                their_tokens = model.encode_image(images)[0], model.encode_text(*their_text)[0]
            theirs = partial(model.match, *their_tokens, their_text[1])

        def run_theirs() -> None:
            with torch.inference_mode(), self.torch_step.autocast():
                self.finished(theirs())

        return lambda: jax.block_until_ready(ours()), run_theirs

    def finished(self, result: Any) -> Any:
        """Waits for PyTorch's GPU."""
        if self.torch_device == "cuda":
            torch.cuda.synchronize()
        return result


def first_steps_apart(sides: Sides) -> dict[str, float]:
    """The relative difference of each term, and of the whole loss, between PyTorch's first step and ours."""
    metrics = sides.plan.compiled()(sides.state(), sides.batch, sides.key)[1]  # the state goes: PyTorch needs memory
    theirs = sides.torch_step.step(sides.torch_batch, OurDraws(sides.plan, sides.batch, sides.key))
    theirs[LOSS] = torch.stack(list(theirs.values())).sum()
    return {
        name: abs(float(term) - float(metrics[name])) / max(abs(float(term)), 1e-6) for name, term in theirs.items()
    }


def return_freed_memory() -> None:
    """Returns to the system what the check has freed and glibc keeps: 7 GiB at ViT-B on a CPU."""
    jax.clear_caches()
    gc.collect()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def measured(stage: str, ours: Callable[[], Any], theirs: Callable[[], Any], pairs: int, rounds: int) -> Row:
    """Times both in turn, prints the row and returns it."""
    for function in (ours, theirs, ours, theirs):  # the first call compiles, the second may allocate
        function()
    seconds, processor = [], []
    for _ in range(rounds):
        pair = timed(ours), timed(theirs)
        seconds.append((pair[0][0], pair[1][0]))
        processor.append(pair[1][1] / pair[0][1])
    median_ours, median_theirs = (statistics.median(column) for column in zip(*seconds, strict=True))
    row = Row(
        stage,
        pairs / median_ours,
        pairs / median_theirs,
        median_theirs / median_ours,
        statistics.median(processor),
        seconds,
    )
    print(
        f"{stage:<14} {row.ours:>10.2f} {row.torch:>10.2f} {row.ratio:>7.2f} {row.processor_ratio:>16.2f}", flush=True
    )
    return row


HEADER = f"{'stage':<14} {'pairs/s':>10} {'PyTorch':>10} {'ratio':>7} {'processor ratio':>16}"


def timed(function: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of a call."""
    start, processor = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - start, time.process_time() - processor


if __name__ == "__main__":
    sys.exit(main())
