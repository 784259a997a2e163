"""A function in a process of its own, which is ended as soon as the function has returned."""

import faulthandler
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, TypeVar

from r2d2_jax.errors import UserError

Result = TypeVar("Result")


def in_child(doing: str, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function of a module returns, computed in a new process; what it leaves running there is ended with it.

    Args:
        doing: what the function does, for the message of an error.
        function: of a module; it, its arguments and its result can be pickled.
        arguments: of the function.

    Raises:
        UserError: the process was killed, as the system does where memory ends.
        RuntimeError: the process ended before the function did, as libraries in C++ may end it.
        Exception: what the function raised, with the traceback of its process as a note.
    """
    spawning = multiprocessing.get_context("spawn")
    receiving, sending = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_send, args=(sending, function, arguments), daemon=True)
    process.start()
    sending.close()
    try:
        found, error = receiving.recv()
    except (EOFError, OSError) as ended:
        process.join()
        raise _ended(doing, process.exitcode) from ended
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise error
    return found  # type: ignore[no-any-return]


def _ended(doing: str, status: int | None) -> Exception:
    if status == -signal.SIGKILL:
        return UserError(
            f"the process that was to {doing} was killed, perhaps because memory ended; compile something smaller, or "
            "with less beside it"
        )
    how = signal.Signals(-status).name if status is not None and status < 0 else f"exit status {status}"
    return RuntimeError(f"the process that was to {doing} ended with {how}; what it printed above may say why")


def _send(sending: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    if sys.stderr is not None:  # which may be closed
        faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process when it is interrupted
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        sent = pickle.dumps((function(*arguments), None))
    except Exception as error:  # the parent's to handle
        sent = pickle.dumps((None, _portable(error)))
    sending.send_bytes(sent)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _portable(error: Exception) -> Exception:
    """The error, or where it cannot be pickled one that says the same; with its traceback, unless it is bad input."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # whatever an error's own way of being pickled raises
        sent: Exception = RuntimeError(f"{type(error).__name__}: {error}")
    else:
        sent = error
    if not isinstance(error, UserError):
        sent.add_note("in a process of its own:\n" + "".join(traceback.format_exception(error)))
    return sent
