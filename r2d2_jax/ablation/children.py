"""Processes that an ablation starts: each with its share of the machine, and none that outlives the ablation."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from r2d2_jax.errors import UserError

# What a process of its own says about the devices that a training would have; this process must take none of them.
_PROBE = "import jax; print(jax.default_backend(), jax.local_device_count())"
_VISIBLE = "CUDA_VISIBLE_DEVICES"


@dataclass(frozen=True)
class Share:
    """What one of several trainings at once may use: these CPU cores (None: all), and these variables beside ours."""

    cores: frozenset[int] | None = None
    environment: dict[str, str] = field(default_factory=dict)


def shares(at_once: int) -> list[Share]:
    """The machine in equal parts; a single training has all of it.

    Raises:
        UserError: it has fewer cores or GPUs than parts, or devices that only one process can use.
    """
    if at_once == 1:
        return [Share()]
    probe = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True)
    if probe.returncode:
        raise UserError(f"--at_once={at_once}: JAX finds no devices: {(probe.stderr.strip().splitlines() or [''])[-1]}")
    backend, count = probe.stdout.split()[-2:]
    if backend == "cpu":
        cores = (
            sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
        )
        return [Share(cores=frozenset(part)) for part in _parts(cores, at_once, "CPU cores")]
    if backend != "gpu":
        raise UserError(f"--at_once={at_once}: a {backend.upper()} belongs to one process; expected 1")
    visible = os.environ.get(_VISIBLE)
    gpus = visible.split(",")[: int(count)] if visible else [str(number) for number in range(int(count))]
    return [Share(environment={_VISIBLE: ",".join(part)}) for part in _parts(gpus, at_once, "GPUs")]


def _parts(whole: Sequence[Any], parts: int, name: str) -> list[Sequence[Any]]:
    each = len(whole) // parts
    if not each:
        raise UserError(f"--at_once={parts}: there are {len(whole)} {name}; expected that many at most")
    return [whole[number * each : (number + 1) * each] for number in range(parts)]


class Child:
    """A process that gets SIGTERM when this one closes its pipe, which it does in any case by ending.

    The program must call `end_with_parent`. Ctrl-C on the terminal does not reach it, only its parent.

    Args:
        command: program and arguments.
        output: the file that what it prints is appended to.
        share: of the machine.
    """

    def __init__(self, command: Sequence[str], output: Path, share: Share) -> None:
        output.parent.mkdir(parents=True, exist_ok=True)
        self._output = output
        self.share = share
        with output.open("ab") as file:
            self._begin = file.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | share.environment,
                process_group=0,
            )
        if share.cores is not None and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(self._process.pid, share.cores)  # before it has started a thread

    def status(self) -> int | None:
        """Its exit status, minus the number of the signal that killed it; None while it is at work."""
        return self._process.poll()

    def leave(self) -> None:
        """Asks it to save and leave."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def wait(self) -> int:
        """Waits for its end; returns its exit status."""
        return self._process.wait()

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def complaint(self) -> str:
        """Why it ended: the signal that killed it, or the message that it printed last."""
        status = self.status()
        if status is not None and status < 0:
            return f"killed by {signal.Signals(-status).name}" + (", as when memory ends" if status == -9 else "")
        with self._output.open("rb") as file:
            file.seek(self._begin)
            lines = file.read().decode(errors="replace").strip().splitlines() or ["it printed nothing"]
        first = next((number for number, line in enumerate(lines) if line.startswith("error: ")), -1)
        return "\n".join(lines[first:])


def end_with_parent() -> None:
    """From now on this process gets SIGTERM when its parent closes its end of standard input or is gone."""
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
