"""A function in a process of its own, which is ended as soon as the function has returned."""

import multiprocessing
import signal
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
        UserError: the process ended before the function did, as libraries in C++ may end it.
        Exception: what the function raised, with the traceback of its process as a note.
    """
    spawning = multiprocessing.get_context("spawn")
    receiving, sending = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_send, args=(sending, function, arguments), daemon=True)
    process.start()
    sending.close()
    try:
        found, error = receiving.recv()
    except EOFError as ended:
        process.join()
        raise UserError(
            f"the process that was to {doing} ended with exit status {process.exitcode}; what it printed above may say "
            "why, and -9 is what the system does when memory ends"
        ) from ended
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise error
    return found  # type: ignore[no-any-return]


def _send(sending: Connection, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process when it is interrupted
    found, error = None, None
    try:
        found = function(*arguments)
    except Exception as raised:  # the parent's to handle
        error = raised
        if not isinstance(error, UserError):
            error.add_note(f"in a process of its own:\n{traceback.format_exc()}")
    sending.send((found, error))
