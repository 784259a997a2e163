"""Decoding processes that the system kills or leaves without memory: how that is noticed, and what helps."""

import contextlib
import errno
import re
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from r2d2_jax.errors import UserError

SHARED_MEMORY = Path("/dev/shm")  # where workers leave their batches
# What the system says when memory, shared memory, processes or open files run out.
_EXHAUSTED = {errno.ENOSPC, errno.ENOMEM, errno.EAGAIN, errno.EMFILE, errno.ENFILE}
_ENDED = re.compile(r"terminated unexpectedly with exit code (-?\d+)")  # Grain's words
_FEWER = "lower config.data.workers (0 decodes in the training process) or config.train.batch_size"


class LostWorker(Exception):
    """A decoding process was killed or found no memory; the data has no part in it. Says why, and what to change."""


@contextlib.contextmanager
def lost_worker_told() -> Iterator[None]:
    """Raises LostWorker in place of what Grain raises when a worker is lost; all else passes."""
    try:
        yield
    except RuntimeError as error:
        if not (ended := _ENDED.search(str(error))):
            raise
        raise LostWorker(_killed(int(ended.group(1)))) from error
    except MemoryError as error:
        raise LostWorker(f"a decoding process found no memory; {_FEWER}") from error
    except OSError as error:
        if error.errno not in _EXHAUSTED:
            raise
        raise LostWorker(f"a decoding process failed: {error.strerror}{_shared_memory()}; {_FEWER}") from error


def check_shared_memory(workers: int, batch_bytes: int) -> None:
    """Refuses workers whose first batches alone do not fit into shared memory: they would be killed while writing.

    Args:
        workers: number of decoding processes.
        batch_bytes: size of the images of one batch of this process.

    Raises:
        UserError: it cannot hold one batch of each.
    """
    if SHARED_MEMORY.exists() and workers * batch_bytes > (free := shutil.disk_usage(SHARED_MEMORY).free):
        raise UserError(
            f"config.data.workers is {workers}, whose batches of {_mib(batch_bytes)} do not fit into {SHARED_MEMORY}, "
            f"where {_mib(free)} are free; enlarge it (docker: --shm-size), or {_FEWER}"
        )


def _killed(code: int) -> str:
    if code == -signal.SIGBUS:
        return (
            f"a decoding process was ended by SIGBUS, probably because shared memory is full{_shared_memory()}; "
            f"enlarge it (docker: --shm-size), or {_FEWER}"
        )
    if code == -signal.SIGKILL:
        return (
            f"a decoding process was killed by SIGKILL, probably by the system because memory ran out; give the job "
            f"more memory, or {_FEWER}"
        )
    if code < 0:
        return (
            f"a decoding process was ended by {signal.Signals(-code).name}; with config.data.workers=0 it shows where"
        )
    return f"a decoding process ended with exit status {code}; what it printed above says why"


def _shared_memory() -> str:
    if not SHARED_MEMORY.exists():
        return ""
    usage = shutil.disk_usage(SHARED_MEMORY)
    return f" ({SHARED_MEMORY} has {_mib(usage.total)}, {_mib(usage.free)} of them free)"


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
