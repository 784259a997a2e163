"""Kills runs with SIGKILL at random moments and sees that each ends, once started again, as an undisturbed one.

    python benchmarks/kill_and_resume.py              # 10 kills, about five minutes on two cores
    python benchmarks/kill_and_resume.py --kills=30 --seed=1
    python benchmarks/kill_and_resume.py --bucket     # in an emulated bucket; half an hour on one core

The moments are drawn in seconds, over the whole of a run's training, evaluation and saving; every second kill waits for
the next checkpoint that is just being written. Compared are every array of the final state, bit by bit, every line of
metrics.jsonl but for the speeds, and evaluation.json. The undisturbed run lies on the disk, also with --bucket, where a
further one in the bucket is compared first. The bucket is the emulator of the tests (extra `test`). Exit status 1 if
anything differs.
"""

import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import flags
from bucket_memory import bucket
from ml_collections import ConfigDict
from PIL import Image

from r2d2_jax.config.reading import Config
from r2d2_jax.damage import steps_of
from r2d2_jax.errors import UserError
from r2d2_jax.launch.program import parse, run
from r2d2_jax.paths import path_or_bucket
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset

FLAGS = flags.FlagValues()
KILLS = flags.DEFINE_integer("kills", 10, "How many runs are killed.", lower_bound=1, flag_values=FLAGS)
SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.", flag_values=FLAGS)
BUCKET = flags.DEFINE_bool("bucket", False, "Kill runs whose folder lies in an emulated bucket.", flag_values=FLAGS)
CHILD = flags.DEFINE_string("child", None, "Internal: train in this folder.", flag_values=FLAGS)
DATA = flags.DEFINE_string("data", None, "Internal: the prepared dataset.", flag_values=FLAGS)

SPEED_KEYS = ("pairs_per_second", "data_wait_share")
CHARACTERS = "红蓝黄绿大小圆方块在左右"
STARTED = "the first batch is asked for"


@dataclass(frozen=True)
class Result:
    """One row of the table."""

    kill: int
    seconds: float
    aim: str
    newest: int
    resumed: int
    differences: tuple[str, ...]

    def line(self) -> str:
        """The row as text."""
        outcome = "equal" if not self.differences else f"DIFFERENT: {', '.join(self.differences)}"
        return f"{self.kill:>4}  {self.seconds:>7.2f} s  {self.aim:<9}  {self.newest:>6}  {self.resumed:>12}  {outcome}"


def tiny_config(data: str) -> dict[str, Any]:
    """The whole method in 60 steps, saving every 4 of them."""
    sizes = dict(width=32, layers=1, heads=2, mlp_width=64)
    return dict(
        model=dict(
            image=dict(image_size=16, patch_size=8, **sizes),
            text=dict(vocabulary_size=24, text_length=12, max_positions=12, **sizes),
            cross=sizes,
            embed_size=32,
            freeze_image_tower=False,
            dtype="float32",
        ),
        loss=dict(queue_length=100),
        data=dict(directory=data),
        optimizer=dict(learning_rate=1e-3, warmup_steps=10),
        train=dict(batch_size=16, epochs=10.0, log_every=5, checkpoint_every=4, evaluate_every=18, keep_last=2),
        evaluation=dict(rerank_candidates=4, batch_size=16),
    )


def write_data(folder: Path) -> None:
    """96 random pairs to train on and 16 for validation."""

    def examples(first: int, count: int) -> Iterator[Example]:
        for number in range(first, first + count):
            rng, file = np.random.default_rng(number), io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (20, 24, 3)).astype(np.uint8)).save(file, "PNG")
            text = "".join(rng.choice(list(CHARACTERS), int(rng.integers(2, 10))))
            yield Example(file.getvalue(), (text, text[::-1]), f"image{number}")

    write_dataset(folder, {"train": examples(0, 96), "validation": examples(1000, 16)})
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def train(data: str, workdir: Path) -> None:
    """What a child does: trains, and says when it is past compiling."""
    from r2d2_jax.train import loop

    original = loop.next_batch

    def next_batch(batches: Any, progress: Any) -> Any:
        loop.next_batch = original
        print(STARTED, file=sys.stderr, flush=True)
        return original(batches, progress)

    loop.next_batch = next_batch
    loop.train(Config.from_config_dict(ConfigDict(tiny_config(data))), workdir)


def environment(data: Path) -> dict[str, str]:
    """Of children, which would otherwise spend nearly all of their time on tracing and compiling the same step."""
    return os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(data / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false",
        "JAXTYPING_DISABLE": "1",
    }


class Child:
    """A run in a process of its own."""

    def __init__(self, data: Path, workdir: Path) -> None:
        self._log = Path(tempfile.mkstemp(dir=data.parent, suffix=".log")[1])
        command = [sys.executable, __file__, f"--child={workdir}", f"--data={data}"]
        with self._log.open("w") as log:
            self._process = subprocess.Popen(command, stderr=log, stdout=subprocess.DEVNULL, env=environment(data))

    def text(self) -> str:
        """What it has said so far."""
        return self._log.read_text(encoding="utf-8")

    def await_training(self) -> float:
        """Waits until it is past compiling; returns when that was."""
        while STARTED not in self.text():
            if self._process.poll() is not None:
                raise UserError(f"a run ended before it trained:\n{self.text()}")
            time.sleep(0.01)
        return time.perf_counter()

    def alive(self) -> bool:
        """Whether it is still running."""
        return self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL: nothing can be tidied up."""
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def finish(self) -> None:
        """Waits for a good end."""
        if self._process.wait():
            raise UserError(f"a run failed:\n{self.text()}")

    def resumed_from(self) -> int:
        """The step that it said it went on from; 0 for a fresh start."""
        found = re.search(r"resuming after step (\d+)", self.text())
        return int(found.group(1)) if found else 0


def is_saving(workdir: Path) -> bool:
    """Whether a checkpoint is just being written: under another name on a disk, without its last file in a bucket."""
    folder = workdir / "checkpoints"
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return names > {str(step) for step in steps_of(folder)}


def left_behind(workdir: Path) -> dict[str, Any]:
    """The final state by leaf, the log without speeds, and the last evaluation."""
    manager = ocp.CheckpointManager((workdir / "checkpoints").absolute())
    tree = manager.restore(manager.latest_step(), args=ocp.args.Composite(state=ocp.args.StandardRestore()))["state"]
    manager.close()
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    found: dict[str, Any] = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}
    found = {name: (str(leaf.dtype), np.asarray(leaf).tobytes()) for name, leaf in found.items()}
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
    found["metrics.jsonl"] = [{key: line[key] for key in line if key not in SPEED_KEYS} for line in lines]
    found["evaluation.json"] = (workdir / "evaluation.json").read_text(encoding="utf-8")
    return found


def kill_once(number: int, seconds: float, data: Path, workdir: Path, expected: dict[str, Any]) -> Result:
    """Kills a fresh run at a moment, starts it again, and compares."""
    child, aim = Child(data, workdir), "any time" if number % 2 else "writing"
    start = child.await_training()
    while child.alive() and time.perf_counter() - start < seconds:
        time.sleep(0.002)
    while aim == "writing" and child.alive() and not is_saving(workdir):
        time.sleep(0.01)
    seconds = time.perf_counter() - start
    child.kill()
    newest = max(steps_of(workdir / "checkpoints"), default=0)
    again = Child(data, workdir)
    again.finish()
    return Result(number, seconds, aim, newest, again.resumed_from(), differences(workdir, expected))


def differences(workdir: Path, expected: dict[str, Any]) -> tuple[str, ...]:
    """The first names of what a run has left behind otherwise than expected."""
    found = left_behind(workdir)
    return tuple(name for name in sorted(expected.keys() | found.keys()) if found.get(name) != expected.get(name))[:4]


def undisturbed(data: Path, workdir: Path) -> float:
    """Lets a run train to its end; the seconds that it took, without those of compiling."""
    child = Child(data, workdir)
    start = child.await_training()
    child.finish()
    return time.perf_counter() - start


def main(argv: Sequence[str] | None = None) -> int:
    """Kills, compares and prints, or is one of the runs; returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> int:
    parse(FLAGS, arguments, __doc__)
    if CHILD.value:
        train(str(DATA.value), path_or_bucket(CHILD.value))
        return 0
    with ExitStack() as ends:
        folder = ends.enter_context(tempfile.TemporaryDirectory())
        clients = ends.enter_context(bucket()) if BUCKET.value else {}
        name = clients.pop("BUCKET", "")
        os.environ.update(clients)  # and so those of the children
        results = killed(Path(folder), path_or_bucket(f"gs://{name}" if name else folder))
    different = sum(bool(result.differences) for result in results)
    print(f"{len(results) - different} of {len(results)} killed runs ended as the undisturbed one")
    return int(different > 0)


def killed(folder: Path, place: Path) -> list[Result]:
    """Lets one run go undisturbed in a folder on the disk, kills others in a place, and prints what it finds."""
    data = folder / "data"
    write_data(data)
    undisturbed(data, folder / "warm")  # fills the compilation cache, so that all others are alike
    duration, expected = undisturbed(data, folder / "undisturbed"), left_behind(folder / "undisturbed")
    print(f"undisturbed: {duration:.1f} s of training, {len(expected['metrics.jsonl'])} lines in its log", flush=True)
    if place != folder:
        duration = undisturbed(data, place / "undisturbed")
        if different := differences(place / "undisturbed", expected):
            raise UserError(f"an undisturbed run in the bucket differs from that on the disk: {', '.join(different)}")
        print(f"undisturbed in the bucket: {duration:.1f} s of training, equal", flush=True)
    print(f"{'kill':>4}  {'after':>9}  {'aimed at':<9}  {'newest':>6}  {'resumed from':>12}  result", flush=True)
    results = []
    for number, share in enumerate(np.random.default_rng(SEED.value).uniform(0, 0.95, KILLS.value)):
        results.append(kill_once(number, float(share) * duration, data, place / f"killed{number}", expected))
        print(results[-1].line(), flush=True)
    return results


if __name__ == "__main__":
    sys.exit(main())
