"""planning/child.py: a function in a process that is ended as soon as it has returned."""

import os
import pickle
import signal
import sys
import threading
from types import SimpleNamespace

import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.planning import child
from r2d2_jax.planning.child import in_child


def leave_something_running() -> int:
    """A thread that would keep the process; returns the process's id."""
    threading.Thread(target=threading.Event().wait).start()
    return os.getpid()


def refuse(message: str) -> None:
    """Finds its input bad."""
    raise UserError(message)


class TwoWordsError(Exception):
    """An error that cannot be unpickled: its arguments are not those that it is made of."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} {two}")


def fail() -> None:
    """Raises such an error."""
    raise TwoWordsError("not", "good")


def test_what_it_leaves_running_ends_with_it() -> None:
    process = in_child("leave something", leave_something_running)
    assert process != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


def test_bad_input_is_told_as_it_is() -> None:
    with pytest.raises(UserError, match="^no such thing$") as raised:
        in_child("refuse", refuse, "no such thing")
    assert not hasattr(raised.value, "__notes__")


def test_another_error_comes_with_the_traceback_of_its_process() -> None:
    with pytest.raises(ValueError, match="invalid literal") as raised:
        in_child("count", int, "many")
    (note,) = raised.value.__notes__
    assert note.startswith("in a process of its own:\nTraceback")


def test_an_error_that_cannot_be_pickled_is_told_in_words() -> None:
    with pytest.raises(RuntimeError, match="^TwoWordsError: not good\n") as raised:
        in_child("fail", fail)
    assert "in fail" in raised.value.__notes__[0]


def test_a_result_that_cannot_be_pickled() -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        in_child("make a lock", threading.Lock)


def test_a_process_that_ends_before_it_is_done() -> None:
    with pytest.raises(RuntimeError, match="the process that was to end at once ended with exit status 3; what it"):
        in_child("end at once", os._exit, 3)
    with pytest.raises(RuntimeError, match="the process that was to give up ended with SIGABRT"):
        in_child("give up", os.abort)


def test_a_closed_stderr_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []
    monkeypatch.setattr(child.signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "stderr", None)
    child._send(SimpleNamespace(send_bytes=sent.append), int, ("7",))  # type: ignore[arg-type]
    assert pickle.loads(sent[0]) == (7, None)


def test_a_process_that_is_killed() -> None:
    with pytest.raises(UserError, match="the process that was to go on was killed, perhaps because memory ended"):
        in_child("go on", signal.raise_signal, signal.SIGKILL)
