"""The processes of a run: how they join, what they tell each other, and how one that cannot go on leaves."""

import contextlib
import json
import os
import sys
import threading
import uuid
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from r2d2_jax.errors import UserError, first_line

# How long a process that leaves is waited for by the others, or waits for them. Long enough for one that is slower to
# end a run in good order, short enough that none is left waiting for one that is gone.
LEAVING_SECONDS = 20
_PAGE = 1024  # bytes; messages fill whole pages, so that nearly all of them have a shape that is compiled already


def join(coordinator_address: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes; on a TPU pod or a known cluster None stands for what the surroundings tell.

    Raises:
        UserError: something is missing that nothing tells, or a number is out of range.
    """
    try:
        jax.distributed.initialize(
            coordinator_address, num_processes, process_id, shutdown_timeout_seconds=LEAVING_SECONDS
        )
    except ValueError as error:
        raise UserError(
            f"cannot join the other processes: {first_line(error)} Give --coordinator_address, --num_processes and "
            "--process_id"
        ) from error


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


def check_shared(folder: Path) -> None:
    """Sees that all processes find in a folder, which is made if absent, what the first one puts there.

    Raises:
        UserError: on every process, if one of them does not.
    """
    if jax.process_count() == 1:
        return
    mark = folder / gather_json(f".shared-{uuid.uuid4().hex}")[0]
    if jax.process_index() == 0:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
    gather_json("there it is")
    blind = [number for number, seen in enumerate(gather_json(mark.exists())) if not seen]
    if jax.process_index() == 0:
        mark.unlink()
    if blind:
        raise UserError(
            f"process {', '.join(map(str, blind))} does not see what process 0 writes to {folder.absolute()}; "
            "--workdir must lie on a file system that all processes share, under the same path"
        )


def leave(status: int) -> NoReturn:
    """Ends a process that cannot go on, and with it all others, which might wait for it for ever.

    If all leave together, for the same reason, they do so in good order. If this one is alone, the others do not come
    to the barrier at which processes take their leave; it fails after `LEAVING_SECONDS`, and then the coordination
    service ends them, whatever they are doing. Nothing is run at exit: on a full disk that would only fail again.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if jax.distributed.is_initialized():
        # Before the service ends this one as well, with a status of its own.
        threading.Timer(0.9 * LEAVING_SECONDS, os._exit, [status]).start()
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()
    os._exit(status)
