"""Whether a run stays as it begins: memory, speed and compilations over some thousand steps.

    python benchmarks/soak.py --config=demo --config.data.directory=data/demo
    python benchmarks/soak.py --config=flickr8k_cn --steps=4000 --json=soak.json

Trains in a process of its own, with its evaluations and checkpoints, and stops it after `--steps` steps. Memory is
that of the process and of all its children, pages that several of them share counted once: the most within each quarter
of the steps. Speed is the median of the log's lines in each quarter. Fails, with exit status 1, where the last quarter
has over 2 % more memory than the second, by which every program has run; where it is over 5 % slower than the first; or
where the train step was compiled more than once. Linux only.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from absl import flags

from r2d2_jax.errors import UserError
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.program import STOPPED, parse_known, run

FLAGS = flags.FlagValues()
CONFIG = flags.DEFINE_string("config", "demo", "A configuration; --config.KEY=VALUE overrides.", flag_values=FLAGS)
STEPS = flags.DEFINE_integer("steps", 2000, "After which the run is stopped.", lower_bound=8, flag_values=FLAGS)
JSON = flags.DEFINE_string("json", None, "Write everything to this file.", flag_values=FLAGS)

TRAIN = Path(__file__).resolve().parents[1] / "launch" / "main.py"
STEP = "step"  # what `compile_train_step` compiles
MORE_MEMORY, SLOWER = 0.02, 0.05
COMPILED = re.compile(r"Finished XLA compilation of jit\((.+?)\) in")


@dataclass(frozen=True)
class Sample:
    """A line of the log: its step, pairs per second, and the most bytes of memory since the line before."""

    step: int
    speed: float
    memory: int


def main(argv: Sequence[str] | None = None) -> int:
    """Trains, measures and prints; returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> int:
    overrides = parse_known(FLAGS, arguments, __doc__)
    if JSON.value:
        check_json_path(JSON.value)
    with tempfile.TemporaryDirectory() as folder:
        samples, compiled = trained(Path(folder), overrides)
    quarters = [[each for each in samples if quarter_of(each.step) == number] for number in range(4)]
    if not all(quarters):
        raise UserError(f"the log has no line in a quarter of {STEPS.value} steps; raise --steps or log more often")
    memory = [max(each.memory for each in quarter) for quarter in quarters]
    speed = [statistics.median(each.speed for each in quarter) for quarter in quarters]
    print("quarter  memory (MiB)  pairs/s")
    for number, (most, median) in enumerate(zip(memory, speed, strict=True), start=1):
        print(f"{number:>7}  {most / 2**20:>12.1f}  {median:>7.1f}")
    grown, kept = memory[3] / memory[1] - 1, speed[3] / speed[0]
    print(f"memory of the last quarter over the second: {grown:+.1%}; speed of the last over the first: {kept:.3f}")
    print("compiled: " + ", ".join(f"{name} {count}" for name, count in compiled.most_common()))
    if JSON.value:
        write_json({"memory": memory, "pairs_per_second": speed, "compiled": dict(compiled)}, JSON.value)
    return int(grown > MORE_MEMORY or kept < 1 - SLOWER or compiled[STEP] != 1)


def quarter_of(step: int) -> int:
    """0 to 3; 3 also for what comes after the last step."""
    return min(3, 4 * (step - 1) // STEPS.value)


def trained(folder: Path, overrides: Sequence[str]) -> tuple[list[Sample], Counter[str]]:
    """Runs the program until it has made the steps; how often it compiled what."""
    workdir, output = folder / "run", folder / "output"
    command = [sys.executable, str(TRAIN), f"--config={CONFIG.value}", f"--workdir={workdir}", *overrides]
    with output.open("wb") as file:
        process = subprocess.Popen(["env", "JAX_LOG_COMPILES=1", *command], stderr=file, stdout=file)
    try:
        samples = list(sampled(process, workdir / "metrics.jsonl"))
    finally:
        process.terminate()
        process.wait()
    said = output.read_text(encoding="utf-8", errors="replace")
    if process.returncode not in (0, STOPPED) or not samples:
        raise UserError(f"the run ended with status {process.returncode}; it printed:\n{said[-2000:]}")
    return samples, Counter(COMPILED.findall(said))


def sampled(process: subprocess.Popen[bytes], log: Path) -> Iterator[Sample]:
    """A sample for each new line of the log, until the run has made its steps or ends."""
    lines, most, step = 0, 0, 0
    while process.poll() is None and step < STEPS.value:
        time.sleep(0.2)
        most = max(most, memory_of(process.pid))
        written = log.read_bytes().splitlines(keepends=True) if log.exists() else []
        for line in (json.loads(each) for each in written[lines:] if each.endswith(b"\n")):
            lines += 1
            if "pairs_per_second" in line:
                step = line["step"]
                yield Sample(step, line["pairs_per_second"], most)
                most = 0


def memory_of(pid: int) -> int:
    """Bytes of a process and all that it has started; 0 once it has ended."""
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    own = re.search(r"^Pss:\s+(\d+) kB", rollup, re.MULTILINE)
    return (1024 * int(own.group(1)) if own else 0) + sum(memory_of(int(child)) for child in children)


if __name__ == "__main__":
    sys.exit(main())
