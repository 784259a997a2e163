"""The tiny prepared dataset that runs are tested on, a run on it, and a step of which much is asked."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from shared_programs import shared_programs
from small_model import write_small_dataset
from small_runs import RUN, run
from small_steps import CASES, Case, case

from r2d2_jax.train.loop import RunOutcome


@pytest.fixture(scope="module", autouse=True)
def _runs_share_what_they_compile(compiled_once: None) -> None:
    """For every run of this room; a test that asks what is compiled undoes it."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training records, 10 for validation, 4 with a foil, and a vocabulary."""
    return write_small_dataset(tmp_path_factory.mktemp("prepared"), train=32)


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunOutcome]:
    """The folder of RUN, gone through at once, which tests only look at, and how it ended."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    with shared_programs():  # which starts before the one of a file
        return workdir, run(prepared, workdir, RUN)


@pytest.fixture(scope="module")
def forget_cases() -> Iterator[None]:
    """For a file that asks for cases: they are let go at its end."""
    yield
    CASES.clear()


@pytest.fixture(scope="module")
def full(forget_cases: None) -> Case:
    """The case of the whole method."""
    return case("full")
