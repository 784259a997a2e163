"""Whether a run that goes on in fewer processes, each time with another mesh, learns what one process learns.

    python benchmarks/change_processes.py     # some minutes on one core

Four processes with a mesh of 2 x 2 begin the run of kill_and_resume.py. SIGTERM to the last of them stops all at one
step; two with a mesh of 1 x 2 go on and are stopped in the same way, and one goes to the end. Compared with what one
process does alone are every figure of metrics.jsonl but for the speeds, and every array of the final state, by the norm
of the difference. Counted is how often each image comes in an epoch, over all processes. Fails, with exit status 1,
where a relative difference is above 1e-5, a part ends at another step than the other processes of it, or an image is
missing or comes twice.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from kill_and_resume import environment, left_behind, tiny_config, write_data
from ml_collections import ConfigDict

from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.launch.program import parse, run
from r2d2_jax.processes import join

FLAGS = flags.FlagValues()
CHILD = flags.DEFINE_string("child", None, "Internal: what a process of a part is given.", flag_values=FLAGS)

TOLERANCE = 1e-5  # relative
SMALLEST = 0.1  # figures below it are compared as if they were of this size
IMAGES, EPOCH, EPOCHS = 96, 6, 2  # steps in an epoch: batches of 16


@dataclass(frozen=True)
class Part:
    """A part of a run: how many processes, and their mesh of `data` x `fsdp`.

    stop_before: the batch of this part before which its last process gets SIGTERM; 0 for none.
    """

    processes: int
    data: int
    fsdp: int
    stop_before: int = 0


PARTS = (Part(4, 2, 2, 3), Part(2, 1, 2, 3), Part(1, 1, 1))
ALONE = (Part(1, 1, 1),)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the parts, compares and prints, or is a process of a part; returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> int:
    parse(FLAGS, arguments, __doc__)
    if CHILD.value:
        print(json.dumps(trained(**json.loads(CHILD.value))))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "data"
        write_data(data)
        print("processes  mesh   ends after step", flush=True)
        changing, images = followed(PARTS, data, Path(folder) / "changing")
        alone, _ = followed(ALONE, data, Path(folder) / "alone")
    figures, arrays = differences(changing, alone)
    whole = [is_whole(images[first : first + EPOCH]) for first in range(0, EPOCHS * EPOCH, EPOCH)]
    print(f"largest relative difference: {figures:.1e} of a figure in the log, {arrays:.1e} of an array of the state")
    print(f"{sum(whole)} of {EPOCHS} epochs have every image once")
    return int(max(figures, arrays) > TOLERANCE or not all(whole))


def followed(parts: Sequence[Part], data: Path, workdir: Path) -> tuple[dict[str, Any], list[list[int]]]:
    """Lets one part of a run follow the other; what is left behind, and the images of every step.

    Raises:
        UserError: a process fails, or does not end where the others do.
    """
    images: list[list[int]] = []
    for part in parts:
        ends = together(part, data, workdir)
        steps = {end["step"] for end in ends}
        if len(steps) > 1 or any(end["finished"] == bool(part.stop_before) for end in ends):
            raise UserError(f"the processes of {part} ended as {[(end['step'], end['finished']) for end in ends]}")
        step = steps.pop()
        print(f"{part.processes:>9}  {part.data} x {part.fsdp}  {step:>15}", flush=True)
        batches = zip(*(end["images"] for end in ends), strict=True)
        images += [sum(rows, []) for rows in batches][: step - len(images)]
    return left_behind(workdir), images


def together(part: Part, data: Path, workdir: Path) -> list[dict[str, Any]]:
    """Starts the processes of a part; how each ended.

    Raises:
        UserError: one of them fails.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running: list[subprocess.Popen[str]] = []
    outputs = [(data.parent / f"output{number}").open("w+", encoding="utf-8") for number in range(part.processes)]
    for number, output in enumerate(outputs):
        given = vars(part) | {"number": number, "port": port, "directory": str(data), "workdir": str(workdir)}
        command = [sys.executable, __file__, f"--child={json.dumps(given)}"]
        running.append(subprocess.Popen(command, stdout=output, stderr=output, text=True, env=environment(data)))
    ends = []
    for process, output in zip(running, outputs, strict=True):
        status = process.wait()
        with output:
            output.seek(0)
            printed = output.read()
        if status:
            raise UserError(f"a process of {part} ended with status {status}; it printed:\n{printed[-2000:]}")
        ends.append(json.loads(printed.splitlines()[-1]))
    return ends


def trained(
    processes: int, data: int, fsdp: int, stop_before: int, number: int, port: int, directory: str, workdir: str
) -> dict[str, Any]:
    """Trains in this process; the step after which it ended, whether that is the end, and its images of every step."""
    from r2d2_jax.train import loop

    original, images = loop.next_batch, list[list[int]]()

    def next_batch(batches: Any, progress: Any) -> Any:
        if len(images) + 1 == stop_before and number == processes - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        rows = original(batches, progress)
        images.append([int(high) << 32 | int(low) for high, low in rows["image_id"]])
        return rows

    loop.next_batch = next_batch
    jax.config.update("jax_num_cpu_devices", 1)
    if processes > 1:
        join(f"127.0.0.1:{port}", processes, number)
    outcome = loop.train(config(directory, data, fsdp), Path(workdir))
    return {"step": outcome.step, "finished": outcome.finished, "images": images}


def config(directory: str, data: int, fsdp: int) -> Config:
    """Two epochs of the whole method, evaluated at the end."""
    values = ConfigDict(tiny_config(directory))
    values.update(mesh=dict(data=data, fsdp=fsdp))
    # Where the true gradient is zero, Adam would scale rounding errors up to whole steps.
    values.optimizer.epsilon = 1e-2
    values.train.update(epochs=float(EPOCHS), log_every=2, checkpoint_every=0, evaluate_every=0)
    return Config.from_config_dict(values)


def differences(found: dict[str, Any], expected: dict[str, Any]) -> tuple[float, float]:
    """The largest relative difference of a figure in the log, and of an array of the state.

    Raises:
        UserError: one of the two has what the other lacks.
    """
    log = [(line, other) for line, other in zip(found["metrics.jsonl"], expected["metrics.jsonl"], strict=True)]
    for left, right in (*log, (found, expected)):
        if left.keys() != right.keys():
            raise UserError(f"one run alone has {', '.join(sorted(left.keys() ^ right.keys()))}")
    figures = [abs(line[name] - other[name]) / max(abs(other[name]), SMALLEST) for line, other in log for name in other]
    return max(figures), max(distance(found[name], expected[name]) for name in expected if is_compared(name))


def is_compared(name: str) -> bool:
    """Whether it is an array that is learnt: key biases start at zero and grow by rounding errors alone."""
    return "/" in name and not name.endswith("key/bias")


def distance(found: tuple[str, bytes], expected: tuple[str, bytes]) -> float:
    """The norm of the difference of two arrays over that of the second."""
    left, right = (np.frombuffer(data, jax.numpy.dtype(dtype)).astype(np.float64) for dtype, data in (found, expected))
    return float(np.linalg.norm(left - right)) / max(float(np.linalg.norm(right)), 1e-30)


def is_whole(steps: Sequence[Sequence[int]]) -> bool:
    """Whether the batches of an epoch have every image once."""
    counts = Counter(image for step in steps for image in step)
    return len(counts) == IMAGES and set(counts.values()) == {1}


if __name__ == "__main__":
    sys.exit(main())
