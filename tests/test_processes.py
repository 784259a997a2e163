"""Which errors make a process wait until JAX has said whether another one has died."""

from typing import NoReturn

import jax
import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.launch import main as program
from r2d2_jax.processes import may_be_of_another


@pytest.mark.parametrize(
    "error, may_be",
    [
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed"), True),
        (ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer"), True),
        (ValueError("DEADLINE_EXCEEDED: no answer"), True),
        (ValueError("Unknown: not of XLA"), False),
        (KeyError("UNKNOWN: a key"), False),
        (UserError("UNKNOWN: bad input"), False),
    ],
)
def test_what_may_be_of_another_process(error: Exception, may_be: bool) -> None:
    assert may_be_of_another(error) == may_be


def test_the_program_waits_after_a_collective_that_could_not_start(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The traceback comes first, then the verdict, then the end."""
    calls: list[object] = []

    def fail() -> NoReturn:
        raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")

    monkeypatch.setattr(program, "keep_freed_memory", lambda: None)
    monkeypatch.setenv("PYTHONWARNINGS", "")
    monkeypatch.setattr(program, "main", fail)
    monkeypatch.setattr(program, "wait_for_verdict", lambda: calls.append("waits"))
    monkeypatch.setattr(program, "leave", calls.append)
    program.command()
    assert calls == ["waits", 1]
    assert "ValueError: UNKNOWN: Gloo AllGather failed" in capsys.readouterr().err
