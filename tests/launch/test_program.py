"""What every program does with flags, errors, signals and messages."""

import importlib
import io
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from absl import flags
from programs import called
from tqdm import tqdm

from r2d2_jax.errors import UserError
from r2d2_jax.launch import program
from r2d2_jax.launch.program import parse, run

ROOT = Path(__file__).parents[2]
# program -> flags of its own
PROGRAMS = {
    "ablate": ("config", "workdir", "variant", "table_only"),
    "main": ("config", "workdir", "coordinator_address"),
    "prepare_data": ("output", "corpus", "beam_options"),
    "check_data": ("data", "corpus", "max_unknown_share"),
    "convert": ("input", "output", "rest"),
    "evaluate": ("checkpoint", "data", "rerank", "threshold_split", "templates"),
    "match": ("model", "image", "text"),
    "plan": ("config", "topology", "devices", "batch_size", "fit", "remat", "json"),
    "plot": ("output",),
    "report": ("output", "queries"),
    "status": ("help",),
    "visualize": ("checkpoint", "image", "text", "entity", "gradient_weighted"),
}
RUNNER_FLAGS = ("alsologtostderr", "pdb", "verbosity")  # absl's, of which programs show none


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_lists_the_flags_of_the_program(name: str) -> None:
    done = called(importlib.import_module(f"r2d2_jax.launch.{name}").main, "--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert all(f"--{flag}" in done.stdout or f"--[no]{flag}" in done.stdout for flag in PROGRAMS[name])
    assert not any(flag in done.stdout for flag in RUNNER_FLAGS)
    assert max(map(len, done.stdout.splitlines())) <= 80  # columns of a terminal


def test_as_a_program_from_anywhere(tmp_path: Path) -> None:
    """The others are started so elsewhere: with a full disk, signals, or without PyTorch."""
    command = [sys.executable, str(ROOT / "launch" / "match.py"), "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--model" in done.stdout


def two_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_integer("number", 3, "A number.", flag_values=values)
    flags.DEFINE_string("name", None, "A name.", flag_values=values)
    flags.mark_flag_as_required("name", flag_values=values)
    return values


def test_flags_of_an_earlier_call_are_forgotten() -> None:
    values = two_flags()
    parse(values, ["--number=5", "--name=a"], "")
    assert (values.number, values.name) == (5, "a")
    parse(values, ["--name", "b"], "")
    assert (values.number, values.name, values["number"].using_default_value) == (3, "b", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name=a", "--number=many"], "flag --number=many: invalid literal for int"),
        (["--number=5"], "^--name is not given; --help lists the flags$"),
        (["--nmae=b"], "^--name is not given, and --nmae=b is no flag; --help lists the flags$"),
        (["--name=a", "--nmae=b"], "^unknown flag --nmae=b; --help lists the flags$"),
        (["--name=a", "b"], "^unknown argument 'b'; every setting is a flag, like --NAME=VALUE$"),
    ],
)
def test_bad_flags_are_bad_input(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        parse(two_flags(), arguments, "")
    assert "\n" not in str(caught.value)


def raising(error: BaseException) -> program.Work:
    def work(arguments: Sequence[str]) -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("there is no data"), 2, "error: there is no data\n"),
        (KeyboardInterrupt(), 130, "stopped\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(), 0, ""),
    ],
)
def test_what_ends_a_program(error: BaseException, status: int, message: str) -> None:
    done = called(lambda argv: run(raising(error), argv))
    assert (done.returncode, done.stdout, done.stderr) == (status, "", message)


def test_a_bug_is_not_caught() -> None:
    with pytest.raises(KeyError):
        run(raising(KeyError("a bug")), [])


def test_a_closed_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `2>&-` leaves it; what asks it whether it is a terminal, or prints to it, finds a file."""
    monkeypatch.setattr(sys, "stderr", None)
    assert run(lambda arguments: print("message", file=sys.stderr), []) == 0
    assert run(raising(UserError("nobody reads this")), []) == 2


@pytest.mark.parametrize("streams", [">/dev/full", ">&- 2>&-", "2>&-"])
def test_help_of_training_where_nobody_reads(streams: str) -> None:
    """Its process ends itself, whatever has become of its streams: no traceback, and the status of bad input if any."""
    command = f"{sys.executable} {ROOT / 'launch' / 'main.py'} --help {streams}"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, shell=True, capture_output=True, text=True, env=environment)
    full = streams == ">/dev/full"
    assert done.returncode == (2 if full else 0)
    said = "error: cannot write to standard output: No space left on device; everything else is done\n"
    assert done.stderr == (said if full else "")


def test_a_handler_that_a_library_has_installed() -> None:
    """Absl does so when Orbax is imported; every line would be printed twice."""
    before, other = logging.getLogger().handlers[:], logging.StreamHandler()
    logging.getLogger().handlers.insert(0, other)
    try:
        done = called(lambda argv: run(lambda _: logging.getLogger("r2d2_jax.anything").warning("once"), argv))
        assert logging.getLogger().handlers == [other, *before]  # a caller's own come back, in their order
    finally:
        logging.getLogger().handlers[:] = before
    assert done.stderr == "once\n"
    assert other not in before


def test_the_status_is_the_works_own() -> None:
    assert [run(lambda arguments, status=status: status, []) for status in (None, 0, 1)] == [0, 0, 1]


def test_sigterm_stops_as_ctrl_c_does_and_its_handler_comes_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    done = called(lambda argv: run(lambda _: signal.raise_signal(signal.SIGTERM), argv))
    assert (done.returncode, done.stderr) == (130, "stopped\n")
    assert signal.getsignal(signal.SIGTERM) is before


def test_messages_are_plain_lines_and_other_libraries_quiet() -> None:
    loggers = [logging.getLogger(name) for name in ("", *program.LIBRARY_LEVELS)]
    before = [(logger.level, list(logger.handlers)) for logger in loggers]

    def work(arguments: Sequence[str]) -> None:
        logging.getLogger("r2d2_jax.anything").info("step 2")
        logging.getLogger("r2d2_jax.anything").debug("detail")
        logging.getLogger("absl").info("I have looked at the dataset")
        logging.getLogger("fsspec.caching").info("AdaptiveReadaheadCache enabled")
        logging.getLogger("absl").warning("Requested `tracked_metric`; did not provide metrics.")
        logging.getLogger("absl").warning("Waiting for previous save to complete took 1.091035 seconds. If this")
        logging.getLogger("absl").error("Failed to json parse Metadata file: 7/_CHECKPOINT_METADATA")
        logging.getLogger("absl").warning("it is incomplete")

    assert called(lambda argv: run(work, argv)).stderr == "step 2\nit is incomplete\n"
    assert called(lambda argv: run(work, argv, level=logging.WARNING)).stderr == "it is incomplete\n"
    assert [(logger.level, list(logger.handlers)) for logger in loggers] == before


def printing(text: str) -> program.Work:
    return lambda arguments: print(text)


def test_what_the_terminals_encoding_lacks_is_a_question_mark(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    terminal = io.TextIOWrapper(written, encoding="gbk")
    monkeypatch.setattr(sys, "stdout", terminal)
    assert run(printing("两只狗😍\udc80"), []) == 0
    assert written.getvalue().decode("gbk") == "两只狗??\n"
    assert sys.stdout is terminal
    assert not terminal.closed


@pytest.mark.parametrize("length", [10, 100_000])  # within a buffer, and beyond it
def test_output_to_a_full_disk_is_one_message(
    length: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("/dev/full").open("w", encoding="utf-8") as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", full)
        assert run(printing("x" * length), []) == 2
    expected = "error: cannot write to standard output: No space left on device; everything else is done\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize("length", [10, 100_000])
def test_output_that_nobody_reads_ends_quietly(
    length: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w", encoding="utf-8") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert run(printing("x" * length), []) == program.NOBODY_READS
    assert capsys.readouterr().err == ""


def test_without_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run(printing("text"), []) == 0


def test_a_message_does_not_run_into_a_progress_bar() -> None:
    def work(arguments: Sequence[str]) -> None:
        with tqdm(total=3, file=sys.stderr, ncols=80) as bar:
            bar.update()
            logging.getLogger("r2d2_jax").info("evaluating")

    lines = re.split(r"[\r\n]+", called(lambda argv: run(work, argv)).stderr)
    at = lines.index("evaluating")
    assert lines[at - 1].strip() == ""  # the bar was wiped out
    assert "1/3" in lines[at + 1]  # and is drawn again below
