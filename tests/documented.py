"""Commands as pages show them, taken apart as a shell would, and read by the programs that they call."""

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.launch.program import parse, parse_known

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^( *)```bash\n(.*?)^\1```", re.DOTALL | re.MULTILINE)
SPAN = re.compile(r"`((?:python |r2d2-)[^`]*\s[^`]*)`")
PROGRAM = re.compile(r"(?:.*/)?launch/(\w+)\.py|r2d2-([a-z-]+)")
ENDS = {"&&", "||", "|", ";", "&", ">", ">>"}


def commands(page: str) -> Iterator[tuple[str, list[str]]]:
    """Name of the program in launch/ and its arguments, for each call in the bash blocks and code spans of a page."""
    blocks = [block for _, block in BLOCK.findall(page)]
    for line in [*"\n".join(blocks).replace("\\\n", " ").splitlines(), *SPAN.findall(page)]:
        words = list(shell_words(line))
        for place, word in enumerate(words):
            if name := program_of(word):
                yield name, arguments(words[place + 1 :])


def shell_words(line: str) -> Iterator[str]:
    """Words and operators of a line of a shell, without its comment."""
    reader = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
    reader.whitespace_split = True
    yield from reader


def program_of(word: str) -> str:
    """The file in launch/ that a word calls, without its ending; "" where it calls none."""
    if word == "launch/slurm.sbatch":  # hands its arguments on
        return "main"
    named = PROGRAM.fullmatch(word)
    return "" if named is None else named[1] or {"train": "main"}.get(named[2], named[2].replace("-", "_"))


def arguments(words: list[str]) -> list[str]:
    """The words up to the end of a command."""
    return words[: next((place for place, word in enumerate(words) if word in ENDS), len(words))]


def read_by_program(name: str, given: list[str]) -> None:
    """Lets a program read its arguments, and the configuration that they name, and do nothing.

    Raises:
        UserError, SystemExit: a flag, its value, or the configuration does not exist.
    """
    program = importlib.import_module(f"r2d2_jax.launch.{name}")
    if hasattr(program, "parsed"):
        program.parsed(given)
    elif "config" not in program.FLAGS:
        parse(program.FLAGS, given, "")
    else:
        overrides = parse_known(program.FLAGS, given, "")
        if config := program.FLAGS["config"].value:
            read_configuration(config, overrides)
