"""Whether a checkpoint in a bucket needs more memory than one on a disk: a state is saved and restored in both.

    python benchmarks/bucket_memory.py                       # a state of 256 MiB, less than a minute on one core
    python benchmarks/bucket_memory.py --mebibytes=1024 --json=memory.json

The bucket is the emulator of the tests (extra `test`) in a process of its own, with objects in its memory. Each of the
four rows is a process of its own, too: it makes the state, or what tells its shapes, lets the kernel count its peak of
resident memory anew (VmHWM), and then saves or restores through `train/checkpoint.py`, as a run does. The state is of
random numbers, which do not compress; what was restored is compared with it. Fails, with exit status 1, where saving or
restoring in the bucket needs a whole checkpoint more than on the disk. Linux only.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from r2d2_jax.errors import UserError
from r2d2_jax.launch.json_file import check_json_path, write_json
from r2d2_jax.launch.program import parse, run

FLAGS = flags.FlagValues()
SIZE = flags.DEFINE_integer("mebibytes", 256, "Of the state.", lower_bound=1, flag_values=FLAGS)
JSON = flags.DEFINE_string("json", None, "Write everything to this file.", flag_values=FLAGS)
ACT = flags.DEFINE_enum("act", None, ["save", "restore"], "Internal: what a child does.", flag_values=FLAGS)
PLACE = flags.DEFINE_string("place", None, "Internal: the run's folder of a child.", flag_values=FLAGS)

SERVER = Path(__file__).resolve().parents[1] / "tests" / "bucket_server.py"
ARRAYS = 16  # of which the state consists
MIB = 2**20


def main(argv: Sequence[str] | None = None) -> int:
    """Measures in four children and prints, or is one of them; returns the exit status."""
    return run(_work, argv)


def _work(arguments: Sequence[str]) -> int:
    parse(FLAGS, arguments, __doc__)
    if ACT.value:
        print(json.dumps(measured(ACT.value, str(PLACE.value), SIZE.value)))
        return 0
    if JSON.value:
        check_json_path(JSON.value)
    found: dict[str, dict[str, float]] = {}
    print(f"a state of {SIZE.value} MiB   before (MiB)   peak (MiB)   more (MiB)")
    with bucket() as environment, tempfile.TemporaryDirectory() as folder:
        for place, address in (("disk", folder), ("bucket", f"gs://{environment.pop('BUCKET')}/run")):
            for act in ("save", "restore"):
                row = found[f"{act}, {place}"] = in_a_child(act, address, environment)
                numbers = row["before"], row["peak"], row["peak"] - row["before"]
                print(f"{act}, {place:<10} " + " ".join(f"{number:>13.0f}" for number in numbers), flush=True)
    more = {name: row["peak"] - row["before"] for name, row in found.items()}
    extra = {act: more[f"{act}, bucket"] - more[f"{act}, disk"] for act in ("save", "restore")}
    print(
        f"beside the disk, the bucket needs {extra['save']:+.0f} MiB to save and {extra['restore']:+.0f} MiB to "
        f"restore: "
        f"{extra['save'] / SIZE.value:+.2f} and {extra['restore'] / SIZE.value:+.2f} checkpoints"
    )
    if JSON.value:
        write_json({"mebibytes": SIZE.value, "rows": found, "more_in_the_bucket": extra}, JSON.value)
    return int(max(extra.values()) >= SIZE.value)


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """Starts the emulator; gives what makes clients find it, and the bucket's name as BUCKET."""
    with (
        tempfile.TemporaryFile("w+") as errors,  # a pipe that nobody reads would be full one day, and stop the emulator
        subprocess.Popen(
            [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as server,
    ):
        assert server.stdin is not None
        assert server.stdout is not None
        told = server.stdout.readline()
        if not told:
            errors.seek(0)
            said = errors.read().strip().splitlines()[-1]
            raise UserError(f"the emulator of a bucket does not start: {said}; install it: pip install -e .[test]")
        try:
            yield json.loads(told)
        finally:
            server.stdin.close()  # which ends it


def in_a_child(act: str, place: str, environment: dict[str, str]) -> dict[str, float]:
    """What a process of its own measures.

    Raises:
        UserError: it fails.
    """
    flags_of_it = [f"--act={act}", f"--place={place}", f"--mebibytes={SIZE.value}"]
    done = subprocess.run(
        [sys.executable, __file__, *flags_of_it],
        env=os.environ | environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise UserError(f"{act} in {place} ended with status {done.returncode}; it printed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measured(act: str, place: str, mebibytes: int) -> dict[str, float]:
    """Saves or restores a state in this process; resident memory before, and its peak meanwhile, in MiB."""
    import jax  # takes seconds, and the parent needs none of it
    import jax.numpy as jnp
    import numpy as np

    from r2d2_jax.config.reading import Config
    from r2d2_jax.config.run import TrainConfig
    from r2d2_jax.launch.configuration import read_configuration
    from r2d2_jax.paths import path_or_bucket
    from r2d2_jax.train.checkpoint import Checkpoints

    jax.config.update("jax_platforms", "cpu")
    config = Config.from_config_dict(read_configuration("demo"))
    size, on_device = mebibytes * MIB // 4 // ARRAYS, jax.sharding.SingleDeviceSharding(jax.devices()[0])
    numbers, abstract = np.random.default_rng(0), partial(jax.ShapeDtypeStruct, sharding=on_device)
    draw = lambda: jnp.asarray(numbers.random(size, np.float32))  # noqa: E731
    with closing(Checkpoints(path_or_bucket(place), TrainConfig(batch_size=8, epochs=1.0))) as checkpoints:
        if act == "save":
            state = jax.block_until_ready(state_of(jnp.int32(1), draw))
            before = resident_anew()
            checkpoints.save(state, config, {})
            checkpoints.wait()
            return {"before": before, "peak": memory("VmHWM")}
        shapes = state_of(abstract((), np.int32), lambda: abstract((size,), np.float32))
        before = resident_anew()
        restored = jax.block_until_ready(checkpoints.restore(shapes, config)[0])
        peak = memory("VmHWM")
    same = jax.tree.map(lambda saved, found: bool((saved == found).all()), state_of(jnp.int32(1), draw), restored)
    if not jax.tree.all(same):
        raise UserError(f"what was restored from {place} is not what was saved")
    return {"before": before, "peak": peak}


def state_of(step: Any, array: Callable[[], Any]) -> Any:
    """A train state whose parameters are what `array` makes, again and again."""
    from r2d2_jax.train.state import TrainState

    params = {f"array_{number}": array() for number in range(ARRAYS)}
    return TrainState(step=step, params=params, opt_state=(), memory=None)


def resident_anew() -> float:
    """Resident memory now, in MiB; the kernel counts the peak from here on."""
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    return memory("VmRSS")


def memory(name: str) -> float:
    """A line of /proc/self/status, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    found = re.search(rf"^{name}:\s+(\d+) kB", status, re.MULTILINE)
    assert found is not None
    return int(found.group(1)) / 1024


if __name__ == "__main__":
    sys.exit(main())
