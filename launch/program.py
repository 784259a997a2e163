"""What all programs share: flags of their own, one message for bad input, an exit status, quiet libraries."""

import contextlib
import faulthandler
import logging
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags

from r2d2_jax.errors import UserError

Work = Callable[[Sequence[str]], int | None]
BAD_INPUT, STOPPED = 2, 130  # exit statuses; the second is what a shell gives to a program that Ctrl-C ends
HELP_FLAGS = {"-h", "--help", "--helpshort", "--helpfull"}
# The lowest level of messages of other libraries that are shown. TFDS logs every look at a dataset through absl.
# PyTorch's exporter warns for each operator of torchvision that it is not installed; no model here uses one.
LIBRARY_LEVELS = {
    "absl": logging.WARNING,
    "orbax": logging.WARNING,
    "httpx": logging.WARNING,
    "jax": logging.WARNING,
    "torch.onnx._internal.exporter._registration": logging.ERROR,
}


def run(
    work: Work,
    argv: Sequence[str] | None,
    *,
    stopped: str = "",
    level: int = logging.INFO,
) -> int:
    """Runs a program and returns its exit status.

    Args:
        work: reads the arguments and does the work; returns the exit status, None for 0.
        argv: the arguments without the program's name; None takes those of this process.
        stopped: what to print when Ctrl-C or SIGTERM stops the work. Without it neither is caught.
        level: the lowest level of messages that reach stderr.
    """
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # the descriptor of stderr, which a caller may have redirected
    try:
        with _messages(level), _interruptible() if stopped else contextlib.nullcontext():
            return work(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except SystemExit as end:  # of --help, and of argparse, which has printed what is wrong
        if isinstance(end.code, str):  # a message, as sys.exit prints it
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except KeyboardInterrupt:
        if not stopped:
            raise
        print(stopped, file=sys.stderr)
        return STOPPED


def parse(flag_values: flags.FlagValues, arguments: Sequence[str], description: str) -> None:
    """Reads the arguments into a program's flags; what an earlier call read is forgotten.

    Args:
        flag_values: the flags of this program alone.
        arguments: without the program's name.
        description: what --help prints above the flags.

    Raises:
        UserError: a flag is unknown, missing or has a wrong value, or an argument is no flag.
        SystemExit: --help was among them.
    """
    refuse_unknown(parse_known(flag_values, arguments, description))


def parse_known(flag_values: flags.FlagValues, arguments: Sequence[str], description: str) -> list[str]:
    """As `parse`, but returns unknown flags and other arguments in place of refusing them."""
    if HELP_FLAGS.intersection(arguments):
        print(description + flag_values.get_help(include_special_flags=False))
        raise SystemExit(0)
    for name in flag_values:
        flag_values[name].unparse()
    flag_values.set_gnu_getopt()  # an argument that is no flag does not end the flags
    with one_message():
        return flag_values([sys.argv[0], *arguments], known_only=True)[1:]


@contextlib.contextmanager
def one_message() -> Iterator[None]:
    """What absl finds wrong with flags is bad input, told in one line."""
    try:
        yield
    except flags.Error as error:
        said = " ".join(str(error).split())
        if missing := re.search(r"Flag (--\S+) must have a value other than None", said):
            said = f"{missing.group(1)} is not given; --help lists the flags"
        raise UserError(said) from error


def refuse_unknown(arguments: Sequence[str]) -> None:
    """Refuses arguments that no flag took.

    Raises:
        UserError: there is one.
    """
    for argument in arguments:
        if argument.startswith("-"):
            raise UserError(f"unknown flag {argument}; --help lists the flags")
        raise UserError(f"unknown argument {argument!r}; every setting is a flag, like --NAME=VALUE")


@contextlib.contextmanager
def _messages(level: int) -> Iterator[None]:
    """Messages are plain lines on stderr; other libraries speak only of what matters."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    before = {name: logging.getLogger(name).level for name in ("", *LIBRARY_LEVELS)}
    logging.getLogger().addHandler(handler)
    for name, lowest in {"": level, **LIBRARY_LEVELS}.items():
        logging.getLogger(name).setLevel(lowest)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        for name, lowest in before.items():
            logging.getLogger(name).setLevel(lowest)


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt, as Ctrl-C does."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
