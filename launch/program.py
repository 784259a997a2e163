"""What all programs share: flags of their own, one message for bad input, an exit status, quiet libraries."""

import contextlib
import faulthandler
import io
import logging
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence

from absl import flags
from tqdm import tqdm

from r2d2_jax.buckets.path import BucketError
from r2d2_jax.errors import UserError

Work = Callable[[Sequence[str]], int | None]
# Exit statuses; the last two are what a shell gives to a program that Ctrl-C ends, or that prints to a closed pipe.
FAILED, BAD_INPUT, STOPPED, NOBODY_READS = 1, 2, 130, 141
HELP_FLAGS = {"-h", "--help", "--helpshort", "--helpfull"}
# The lowest level of messages of other libraries that are shown. TFDS logs every look at a dataset through absl.
# PyTorch's exporter warns for each operator of torchvision that it is not installed; no model here uses one.
LIBRARY_LEVELS = {
    "absl": logging.WARNING,
    "fsspec": logging.WARNING,  # tells of every file in a bucket that it opens
    "gcsfs": logging.CRITICAL,  # what it gives up is tried again, or an error
    "orbax": logging.WARNING,
    "httpx": logging.WARNING,
    "httpx2": logging.WARNING,  # huggingface_hub has one or the other
    "jax": logging.WARNING,
    "matplotlib": logging.ERROR,  # warns of fonts with odd weights, which none of the pictures needs
    "torch.onnx._internal.exporter._registration": logging.ERROR,
}
# How messages of other libraries begin that say nothing: Orbax's of a checkpoint without an evaluation, of one that had
# to wait for another for more than a second, and of a damaged file that nothing is read from; asyncio's of further
# reads of a damaged checkpoint, whose first failure has been told.
CHATTER = (
    "Requested `tracked_metric`; did not provide metrics.",
    "Waiting for previous save to complete took ",
    "Failed to json parse Metadata file",
    "Task exception was never retrieved",
)


def run(
    work: Work,
    argv: Sequence[str] | None,
    *,
    stopped: str = "stopped",
    level: int = logging.INFO,
) -> int:
    """Runs a program and returns its exit status.

    Args:
        work: reads the arguments and does the work; returns the exit status, None for 0.
        argv: the arguments without the program's name; None takes those of this process.
        stopped: what to print when Ctrl-C or SIGTERM stops the work.
        level: the lowest level of messages that reach stderr.
    """
    if sys.stderr is None:  # closed, as by `2>&-`
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    if not faulthandler.is_enabled():
        faulthandler.enable(2)  # the descriptor of stderr, which a caller may have redirected
    try:
        with _printable(), _messages(level), _interruptible():
            return work(sys.argv[1:] if argv is None else argv) or 0
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return BAD_INPUT
    except BucketError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    except SystemExit as end:  # of --help, and of argparse, which has printed what is wrong
        if isinstance(end.code, str):  # a message, as sys.exit prints it
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except KeyboardInterrupt:
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
    with one_message(_unknown(flag_values, arguments)):
        return flag_values([sys.argv[0], *arguments], known_only=True)[1:]


def _unknown(flag_values: flags.FlagValues, arguments: Sequence[str]) -> str:
    """The first argument that looks like a flag and is none; "" without one. Overrides of a configuration are flags."""
    for argument in arguments:
        name = re.match(r"--?(?:no)?([a-z_]+)(?![\w.])", argument)
        if name and not {name.group(1), f"no{name.group(1)}"} & set(flag_values):
            return argument
    return ""


@contextlib.contextmanager
def one_message(unknown: str = "") -> Iterator[None]:
    """What absl finds wrong with flags is bad input, told in one line.

    Args:
        unknown: an argument that no flag takes: a flag that is missing may be mistyped there.
    """
    try:
        yield
    except flags.Error as error:
        said = " ".join(str(error).split())
        if missing := re.search(r"Flag (--\S+) must have a value other than None", said):
            mistyped = f", and {unknown} is no flag" if unknown else ""
            said = f"{missing.group(1)} is not given{mistyped}; --help lists the flags"
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


class _Output(io.TextIOWrapper):
    """Standard output that prints "?" for what its encoding lacks: an emoji ends no program on a GBK terminal.

    Raises:
        UserError: what was printed cannot be written, as on a full disk.
        SystemExit: nobody reads what is printed, as after `| head`.
    """

    def write(self, text: str) -> int:
        with self._honest():
            return super().write(text)

    def flush(self) -> None:
        with self._honest():
            super().flush()

    @contextlib.contextmanager
    def _honest(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())  # or Python would fail again when it ends
            os.close(nothing)
            if isinstance(error, BrokenPipeError):
                raise SystemExit(NOBODY_READS) from None
            raise UserError(f"cannot write to standard output: {error.strerror}; everything else is done") from error


@contextlib.contextmanager
def _printable() -> Iterator[None]:
    """Standard output is an `_Output` within; all of it is written at the end."""
    if not isinstance(sys.stdout, io.TextIOWrapper):  # closed, or a caller's own
        yield
        return
    sys.stdout.flush()
    output = _Output(sys.stdout.buffer, sys.stdout.encoding, errors="replace", line_buffering=sys.stdout.line_buffering)
    try:
        with contextlib.redirect_stdout(output):
            yield
            output.flush()
    finally:
        output.detach()


class _PlainLines(logging.StreamHandler):
    """Messages are lines on stderr, above a progress bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        with tqdm.external_write_mode(self.stream):
            super().emit(record)


@contextlib.contextmanager
def _messages(level: int) -> Iterator[None]:
    """Messages are plain lines on stderr; other libraries speak only of what matters."""
    handler = _PlainLines(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.addFilter(lambda record: not record.getMessage().startswith(CHATTER))
    before = {name: logging.getLogger(name).level for name in ("", *LIBRARY_LEVELS)}
    root = logging.getLogger()
    handlers = root.handlers[:]
    # Every line would come twice with the handler that absl adds when Orbax is imported, or that a caller has.
    root.handlers[:] = [other for other in handlers if type(other) is not logging.StreamHandler] + [handler]
    for name, lowest in {"": level, **LIBRARY_LEVELS}.items():
        logging.getLogger(name).setLevel(lowest)
    try:
        yield
    finally:
        root.handlers[:] = handlers
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
