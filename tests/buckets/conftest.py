"""A small dataset on the disk, and runs on it there and in the bucket."""

from pathlib import Path

import pytest
from bucket_server import BUCKET, BucketServer
from shared_programs import shared_programs
from small_model import write_small_dataset
from small_runs import RUN, run

from r2d2_jax.buckets.path import BucketPath, bucket_path


@pytest.fixture(scope="module", autouse=True)
def _runs_share_what_they_compile(compiled_once: None) -> None:
    """For every run of this room."""


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """32 training records, 10 for validation, 4 with a foil, and a vocabulary, on the disk."""
    return write_small_dataset(tmp_path_factory.mktemp("prepared"), train=32)


@pytest.fixture(scope="session")
def undisturbed(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of RUN on the disk, gone through at once, which tests only look at."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    with shared_programs():  # which starts before the one of a file
        run(prepared, workdir, RUN)
    return workdir


@pytest.fixture(scope="session")
def finished(prepared: Path, server: BucketServer) -> BucketPath:
    """A finished run in the bucket, which tests copy."""
    workdir = bucket_path(f"gs://{BUCKET}/finished")
    with shared_programs():  # which starts before the one of a file
        run(prepared, workdir, RUN)
    return workdir


@pytest.fixture
def workdir(finished: BucketPath, bucket: BucketPath) -> BucketPath:
    """A copy of it."""
    for path in finished.rglob("*"):
        (bucket / "run" / str(path.relative_to(finished))).write_bytes(path.read_bytes())
    return bucket / "run"
