"""Programs with flags, loaded as modules."""

import contextlib
import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from absl import flags

ROOT = Path(__file__).resolve().parents[1]


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
