"""The processes of a run: how they join, gather values from each other, and exit after an error."""

import contextlib
import json
import logging
import multiprocessing
import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from r2d2_jax.errors import UserError, first_line

logger = logging.getLogger(__name__)

# Seconds that processes wait for each other at the shutdown barrier: long enough for the slowest clean exit, short
# enough not to wait for the dead.
LEAVING_SECONDS = 20
# Seconds without a sign of life after which JAX's coordination service takes a process for dead, names it to all others
# and ends them.
DEAD_SECONDS = 30
# How the messages of XLA's errors begin, "UNKNOWN: " for example.
_STATUS = re.compile(r"[A-Z]+(_[A-Z]+)*: ")
_PAGE = 1024  # bytes; messages are padded to whole pages, so that few shapes are compiled


def join(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes; on a TPU pod or a known cluster JAX finds out what is None.

    Raises:
        UserError: a value is None that JAX cannot find out, or a number is out of range.
    """
    try:
        jax.distributed.initialize(
            coordinator_address,
            num_processes,
            process_id,
            heartbeat_timeout_seconds=DEAD_SECONDS,
            shutdown_timeout_seconds=LEAVING_SECONDS,
        )
    except ValueError as error:
        raise UserError(
            f"cannot join the other processes: {first_line(error)} Give --coordinator_address, --num_processes and "
            "--process_id"
        ) from error
    if jax.process_index() > 0:
        # Said now: JAX ends this process itself when process 0 is gone, and speaks of it by these words alone.
        logger.info("what JAX calls the CoordinationService, or the leader, is process 0")


def gather_json(value: Any) -> list[Any]:
    """Gathers one JSON value from every process; each process gets the list, in the order of the process numbers.

    Args:
        value: plain JSON values. All processes must call this at the same point of the program.
    """
    if jax.process_count() == 1:
        return [value]
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = [int(size) for size in multihost_utils.process_allgather(np.int32(text.size))]
    room = -(-max(sizes) // _PAGE) * _PAGE
    rows = multihost_utils.process_allgather(np.pad(text, (0, room - text.size)))
    return [json.loads(np.asarray(row)[:size].tobytes()) for row, size in zip(rows, sizes, strict=True)]


def by_first_process(act: Callable[[], Any]) -> None:
    """Does something on process 0 alone; all processes must call this at the same point of the program.

    Raises:
        UserError: on every process, if it is raised on process 0.
    """
    refused = ""
    if jax.process_index() == 0:
        try:
            act()
        except UserError as error:
            if jax.process_count() == 1:
                raise
            refused = str(error)
    if refused := gather_json(refused)[0]:
        raise UserError(refused)


def check_shared(folder: Path) -> None:
    """Checks that all processes see the same folder: the first one writes a file, which all of them look for.

    Raises:
        UserError: on every process, if one of them does not.
    """
    if jax.process_count() == 1:
        return
    mark = folder / gather_json(f".shared-{uuid.uuid4().hex}")[0]
    if jax.process_index() == 0:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    gather_json("written")  # a barrier: nobody looks before the file is there
    blind = [number for number, seen in enumerate(gather_json(mark.exists())) if not seen]
    if jax.process_index() == 0:
        mark.unlink()
    if blind:
        raise UserError(
            f"process {', '.join(map(str, blind))} does not see what process 0 writes to {folder.absolute()}; "
            "--workdir must lie on a file system that all processes share, under the same path"
        )


def may_be_of_another(error: Exception) -> bool:
    """Whether an error may have its cause in another process, which has died.

    XLA has raised it: a collective that fails while it computes is a JaxRuntimeError, one that fails as it is started a
    ValueError.
    """
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    return isinstance(error, ValueError) and _STATUS.match(str(error)) is not None


def wait_for_verdict() -> None:
    """After a failed collective, waits until JAX has had time to notice that another process has died.

    It then names that process and ends this one. Otherwise the failure was this process's own.
    """
    if jax.distributed.is_initialized() and jax.process_count() > 1:
        seconds = DEAD_SECONDS + 5
        print(
            f"waiting {seconds} s for JAX to say which other process has died, if one has, by its number",
            file=sys.stderr,
            flush=True,
        )
        time.sleep(seconds)


def leave_at_once(status: int) -> NoReturn:
    """Ends this process and its decoding processes, which would stay: they do not listen, or are stopped themselves."""
    for worker in multiprocessing.active_children():
        worker.kill()
    os._exit(status)


def leave(status: int) -> NoReturn:
    """Ends this process after an error, and with it all others, which might wait for it for ever.

    If all processes end together, for the same reason, they meet at the shutdown barrier and exit cleanly. If this one
    is alone, the others never reach the barrier; it fails after `LEAVING_SECONDS`, and then JAX's coordination service
    kills them. No exit handlers run: on a full disk they would only fail again.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it may be closed, or its disk full
            stream.flush()
    if jax.distributed.is_initialized():
        # Exit just before the coordination service kills this process too, so that our status is the one reported.
        threading.Timer(0.9 * LEAVING_SECONDS, os._exit, [status]).start()
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
    os._exit(status)
