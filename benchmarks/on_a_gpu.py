"""What one GPU does with ViT-L, in one call of eight minutes: the other benchmarks in turn, most important first.

    python benchmarks/on_a_gpu.py --output=gpu
    python benchmarks/on_a_gpu.py --output=gpu --config=vitb_2m --only=train_step,where_time_goes

Each is a process of its own, which has the whole card; what it prints and its JSON file lie in `--output`. Programs
that XLA has compiled for one are read by the next. Matrix products go to cuBLAS without autotuning, which was no slower
on an H200 and compiles in less time. What has not ended after `--seconds` is stopped, what follows is not begun, and
both are named. Exit status 1 unless all have ended well.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from planned_steps import check_listed

from r2d2_jax.launch.program import parse, run
from r2d2_jax.paths import user_path

FLAGS = flags.FlagValues()
CONFIG = flags.DEFINE_string("config", "vitl_250m", "A configuration of pre-training.", flag_values=FLAGS)
PAIRS = flags.DEFINE_integer("pairs", 64, "Pairs in a batch, unless told otherwise below.", flag_values=FLAGS)
SECONDS = flags.DEFINE_float("seconds", 480, "After which nothing runs any more.", lower_bound=1, flag_values=FLAGS)
OUTPUT = flags.DEFINE_string("output", None, "Folder for what is measured.", flag_values=FLAGS)
flags.mark_flags_as_required(["output"], flag_values=FLAGS)

ROOT = Path(__file__).resolve().parents[1]
# Name: program and flags; {0} stands for the configuration, {1} for the pairs.
MEASUREMENTS = {
    "train_step": "benchmarks/train_step.py --config={0} --task=pretraining --kind=bfloat16 --batch_sizes={1}",
    "where_time_goes": "benchmarks/where_time_goes.py --config={0} --pairs={1}",
    "beside_torch": "benchmarks/beside_torch.py --config={0} --pairs={1} --torch_compile",
    "products": "benchmarks/train_step.py --config={0} --task=pretraining --kind=bfloat16_products --batch_sizes=128",
    "plan": "launch/plan.py --config={0} --batch_size={1}",
    "float32": "benchmarks/train_step.py --config={0} --task=pretraining --kind=float32",
}
ONLY = flags.DEFINE_list("only", list(MEASUREMENTS), f"Of {', '.join(MEASUREMENTS)}.", flag_values=FLAGS)
SETTINGS = {"XLA_FLAGS": "--xla_gpu_autotune_level=0 --xla_gpu_enable_triton_gemm=false"}
ENDED, NO_TIME = "ended", "no time left"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs all and prints how each has ended; returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> int:
    parse(FLAGS, arguments, __doc__)
    check_listed("only", ONLY.value, MEASUREMENTS)
    output = user_path(str(OUTPUT.value))
    output.mkdir(parents=True, exist_ok=True)
    end, outcomes = time.monotonic() + SECONDS.value, []
    with tempfile.TemporaryDirectory() as compiled:
        for name in ONLY.value:
            start = time.monotonic()
            outcomes.append(measured(name, output, compiled, end - start))
            print(f"{name:<16} {time.monotonic() - start:>6.1f} s  {outcomes[-1]}", flush=True)
    return int(set(outcomes) != {ENDED})


def measured(name: str, output: Path, compiled: str, seconds: float) -> str:
    """How a benchmark has ended, for which there are so many seconds."""
    if seconds <= 0:
        return NO_TIME
    program, *asked = MEASUREMENTS[name].format(CONFIG.value, PAIRS.value).split()
    command = [sys.executable, str(ROOT / program), *asked, f"--json={output / name}.json"]
    environment = os.environ | SETTINGS | {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": compiled}
    with (output / f"{name}.txt").open("wb") as said:
        try:
            ended = subprocess.run(command, env=environment, stdout=said, stderr=said, timeout=seconds, check=False)
        except subprocess.TimeoutExpired:
            return f"stopped after {seconds:.0f} s: {NO_TIME}"
    return f"failed with status {ended.returncode}" if ended.returncode else ENDED


if __name__ == "__main__":
    sys.exit(main())
