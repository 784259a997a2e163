"""The one exception that bad input raises, and what its messages are made of."""

import contextlib
from collections.abc import Iterable, Iterator

FIRST_NAMES = 10  # how many of the things that are wrong a message lists


class UserError(Exception):
    """Bad input from the person who runs the program.

    The message is one sentence or a short list that says what is wrong, where, what was expected and what to do.
    Programs in `launch/` print it without a traceback and exit with status 2.
    """


def first_line(error: BaseException) -> str:
    """The first line of what another library says, for use within a message of ours."""
    return (str(error) or type(error).__name__).strip().splitlines()[0]


def bulleted(lines: Iterable[str]) -> str:
    """One indented line for each, as messages list what differs or is wrong."""
    return "\n".join(f"  - {line}" for line in lines)


@contextlib.contextmanager
def naming(temporary: str, lasting: str) -> Iterator[None]:
    """Writes `lasting` for `temporary` in messages: a name that is gone when they are read tells nobody anything."""
    try:
        yield
    except UserError as error:
        if temporary not in str(error):
            raise
        raise UserError(str(error).replace(temporary, lasting)) from error
