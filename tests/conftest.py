"""Settings of every test, and the vocabulary and datasets that many share."""

import atexit
import gc
import itertools
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Read when JAX is imported, and inherited by every process that a test or the test runner starts.
# A test compiles much and computes little.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # this is the first process: all share what one has compiled
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="r2d2_jax-compiled-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import pytest
from small_data import example

from r2d2_jax.buckets.path import BucketPath, bucket_path
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer, load_tokenizer
from r2d2_jax.preparation.writer import write_dataset

if TYPE_CHECKING:
    from bucket_server import BucketServer

# Float32 on the CPU, whatever devices there are.
jax.config.update("jax_platforms", "cpu")

SHARED = Path(__file__).resolve().parents[2] / "shared"
_numbers = itertools.count()
CHARACTERS = "一二三四五六七八九十只狗在左右红绿球"


# Files whose tests wait longest, the longest first: started last they would keep one process busy and the other idle.
LONGEST = (
    "tests/test_distributed.py",
    "tests/train/test_resume.py",
    "tests/train/test_loop.py",
    "tests/train/test_step.py",
    "tests/test_readme.py",
)


def pytest_collection_finish() -> None:
    """Spares the collector of garbage what is there from the start, and lets it come less often.

    Tracing a step makes millions of small objects that live on, and looking at them again and again took a sixth of it.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first, and leaves the order of all others and within each file."""

    def rank(item: pytest.Item) -> int:
        file = item.nodeid.split("::")[0]
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=rank)


@pytest.fixture(scope="session")
def server() -> "BucketServer":
    """The bucket's server. Clients remember where it is, so it stays until the process ends."""
    from bucket_server import BucketServer  # where there is no emulator, as beside Beam, other tests do without

    server = BucketServer()
    os.environ.update(server.environment())
    return server


@pytest.fixture
def bucket(server: "BucketServer") -> Iterator[BucketPath]:
    """A folder in the bucket that no other test uses."""
    from bucket_server import BUCKET

    yield bucket_path(f"gs://{BUCKET}/{next(_numbers)}")
    server.fault = None


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """Runs of this file share what one of this process has compiled; see `shared_programs`."""
    from shared_programs import shared_programs  # imports the whole engine, which few tests need

    with shared_programs():
        yield


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> Iterator[None]:
    """A shell starts what it puts into the background with Ctrl-C ignored, and all that this starts inherits it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A vocabulary of the special tokens, digits and a few characters."""
    path = tmp_path_factory.mktemp("vocabulary") / "vocab.txt"
    digits = [f"{prefix}{digit}" for prefix in ("", "##") for digit in range(10)]
    path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS, *digits]) + "\n")
    return path


@pytest.fixture(scope="session")
def tokenizer(vocabulary: Path) -> Tokenizer:
    """Tokenizer of eight tokens a text."""
    return load_tokenizer(str(vocabulary), 8)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of 22 sound training records in three shards and 5 validation records."""
    folder = tmp_path_factory.mktemp("dataset")
    examples = {"train": map(example, range(22)), "validation": map(example, range(100, 105))}
    write_dataset(folder, examples, shards=3)
    return folder


@pytest.fixture(scope="session")
def source(dataset: Path) -> RecordSource:
    """The training records of `dataset`."""
    return RecordSource(dataset, "train")


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data beside the project; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real data in {SHARED}, which is not part of the project")
    return SHARED
