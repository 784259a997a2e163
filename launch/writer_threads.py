"""Tracebacks of Orbax's writer threads, which would bury the one message that is made of them."""

import contextlib
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from types import TracebackType


@contextlib.contextmanager
def quiet_writer_threads() -> Iterator[None]:
    """A context in which a failed write of Orbax is not reported by its threads.

    Orbax raises in the main thread what fails in its background writer. Before that each of its threads, tasks and
    callbacks reports the same, in hundreds of lines. Whatever fails elsewhere is reported as ever.
    """
    thread_hook, object_hook = threading.excepthook, sys.unraisablehook
    reporters = [logging.getLogger(name) for name in ("absl", "asyncio")]
    threading.excepthook = lambda failed: None if _of_writers(failed.exc_traceback) else thread_hook(failed)
    sys.unraisablehook = lambda failed: None if _of_writers(failed.exc_traceback) else object_hook(failed)
    for reporter in reporters:
        reporter.addFilter(_not_of_orbax)
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = thread_hook, object_hook
        for reporter in reporters:
            reporter.removeFilter(_not_of_orbax)


def _not_of_orbax(record: logging.LogRecord) -> bool:
    return not (record.exc_info and _of_writers(record.exc_info[2]))


def _of_writers(trace: TracebackType | None) -> bool:
    packages = {frame.f_globals.get("__name__", "").split(".")[0] for frame, _ in traceback.walk_tb(trace)}
    # asyncio alone: TensorStore's threads call back into the event loop of a writer thread that has ended. Nothing else
    # here uses asyncio.
    return "orbax" in packages or packages == {"asyncio"}
