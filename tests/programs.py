"""Programs: those of launch/ called in this process, those of benchmarks/ loaded as modules."""

import contextlib
import importlib
import io
import resource
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from absl import flags

ROOT = Path(__file__).resolve().parents[1]


def called(main: Callable[[Sequence[str]], int], *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a program of launch/ prints and returns when it is called in this process."""
    with contextlib.redirect_stdout(io.StringIO()) as printed, contextlib.redirect_stderr(io.StringIO()) as errors:
        status = main(arguments)
    return subprocess.CompletedProcess(arguments, status, printed.getvalue(), errors.getvalue())


@contextlib.contextmanager
def limited_files(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes, which stops a write as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def loaded_benchmark(name: str) -> Iterator[ModuleType]:
    """A program of benchmarks/ as it is found when it runs, with its neighbours on the path.

    Its flags go with it: others have some of the same name, and a name can be defined only once in a process.
    """
    before = set(flags.FLAGS)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "benchmarks")
        module = importlib.import_module(name)
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        yield module
    for flag in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, flag)


def write_config(folder: Path, values: dict[str, Any]) -> Path:
    """A config file of these values, with every default filled in."""
    path = folder / "small.py"
    path.write_text(
        "from ml_collections import ConfigDict\nfrom r2d2_jax.config.reading import completed\n\n\n"
        f"def get_config():\n    return completed(ConfigDict({values!r}))\n",
        encoding="utf-8",
    )
    return path
