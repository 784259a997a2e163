"""Orbax's writer threads do not report what the main thread will; everything else is reported as ever."""

import logging
import sys
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from r2d2_jax.launch.writer_threads import quiet_writer_threads


def failing_in(module: str) -> Callable[[], None]:
    """A function of that module, which raises an error."""
    names: dict[str, Any] = {"__name__": module}
    exec("def fail():\n    raise OSError('no space')", names)
    return names["fail"]


def test_a_thread_reports_its_error_unless_it_is_a_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda failed: seen.append(failed.thread.name))
    with quiet_writer_threads():
        for module in ("orbax.checkpoint._src.futures", "asyncio.base_events", "r2d2_jax.data", "orbaxes"):
            thread = threading.Thread(target=called_from_here(module), name=module)
            thread.start()
            thread.join()
    assert seen == ["asyncio.base_events", "r2d2_jax.data", "orbaxes"]


def called_from_here(module: str) -> Callable[[], None]:
    fail = failing_in(module)
    return lambda: fail()


def error_of(function: Callable[[], None]) -> BaseException:
    """What the function raises, with the function's own part of the traceback."""
    with pytest.raises(OSError, match="no space") as caught:
        function()
    trace = caught.value.__traceback__
    assert trace is not None
    return caught.value.with_traceback(trace.tb_next)


def test_what_nobody_can_catch_is_reported_unless_it_is_a_writer_s(monkeypatch: pytest.MonkeyPatch) -> None:
    """asyncio alone is a callback to the event loop of a writer that has ended."""
    seen: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda failed: seen.append(failed.object))
    with quiet_writer_threads():
        for module in ("orbax.checkpoint", "asyncio.base_events", "r2d2_jax.data"):
            trace = error_of(failing_in(module)).__traceback__
            sys.unraisablehook(SimpleNamespace(exc_traceback=trace, object=module))  # type: ignore[arg-type]
        sys.unraisablehook(SimpleNamespace(exc_traceback=None, object="no trace"))  # type: ignore[arg-type]
    assert seen == ["r2d2_jax.data", "no trace"]


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """Messages of absl's logger."""
    messages: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: messages.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("absl").addHandler(handler)
    yield messages
    logging.getLogger("absl").removeHandler(handler)


def test_log_records_with_a_traceback_are_dropped_if_it_is_a_writer_s(logged: list[str]) -> None:
    logger = logging.getLogger("absl")
    with quiet_writer_threads():
        logger.error("orbax", exc_info=error_of(failing_in("orbax.checkpoint")))
        logger.error("ours", exc_info=error_of(failing_in("r2d2_jax.data")))
        logger.error("no traceback")
    logger.error("afterwards", exc_info=error_of(failing_in("orbax.checkpoint")))
    assert logged == ["ours", "no traceback", "afterwards"]


def test_the_hooks_come_back_after_an_error() -> None:
    before = threading.excepthook, sys.unraisablehook, list(logging.getLogger("asyncio").filters)
    with pytest.raises(KeyError), quiet_writer_threads():
        raise KeyError
    assert (threading.excepthook, sys.unraisablehook, list(logging.getLogger("asyncio").filters)) == before
