"""Parsing is not disturbed by finalizers that parse themselves."""

import ast
import gc
import sys
from collections.abc import Iterator

import pytest
from parsing import parsed

SOURCE = "\n".join(f"def f{number}(a, b): return [a + {number}, (b, {{'c': a}})]" for number in range(300))


class Parses:
    """Parses when it is collected."""

    def __init__(self) -> None:
        self.itself = self

    def __del__(self) -> None:
        ast.parse("x = 1")


@pytest.fixture(autouse=True)
def _collections_as_often_as_python_starts_with() -> Iterator[None]:
    """The other tests have fewer."""
    before = gc.get_threshold()
    gc.set_threshold(700, 10, 10)
    yield
    gc.set_threshold(*before)


def leave_garbage() -> None:
    """Garbage that no collection has seen yet, and a count of objects that lets the next one wait for the parser."""
    gc.collect()
    gc.disable()
    for _ in range(20):
        Parses()
    gc.enable()


def test_a_finalizer_that_parses_changes_nothing() -> None:
    leave_garbage()
    assert len(parsed(SOURCE).body) == 300
    assert gc.isenabled()


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="Python collects between instructions only, from 3.12 on")
def test_without_it_python_fails() -> None:
    """Tried several times, for another thread, of which the tests' runner has some, may collect the garbage first."""

    def parse_again_and_again() -> None:
        for _ in range(50):
            leave_garbage()
            ast.parse(SOURCE)

    with pytest.raises(SystemError, match="recursion depth mismatch"):
        parse_again_and_again()
