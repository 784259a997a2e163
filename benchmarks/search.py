"""Pre-ranking over random embeddings: time of a query, recall of the approximate index, peak memory, size on disk.

    python benchmarks/search.py                              # 100,000 x 768, exact, and the approximate index beside
    python benchmarks/search.py --pictures=1000000           # the largest that an index is meant for
    python benchmarks/search.py --part=model                 # the times of a model of ViT-L's size, minutes on a CPU

The embeddings are written into an index as an update writes them, with a catalogue of as many files, a batch at a time;
no picture and no model takes part. Each way of searching runs in a process of its own, whose peak memory is the
kernel's count, mapped files included. Random directions are the hardest case for an approximate index: no picture is
near any other. The model has random weights; its times are those of the other steps of a question on the page.
"""

import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from absl import app, flags
from asking import SENTENCE, SIZES, median, published_sizes, random_ranker

from r2d2_jax.config.model import ModelConfig
from r2d2_jax.search.catalog import Catalog
from r2d2_jax.search.files import Content, FoundFile
from r2d2_jax.search.index import approximate_rows, embeddings_file
from r2d2_jax.search.view import State, newest_state

MIB = 2**20
PARTS = ("build", "exact", "approximate")  # of "all"
MODEL_PART = "model"

PICTURES = flags.DEFINE_integer("pictures", 100_000, "Embeddings.", lower_bound=1)
WIDTH = flags.DEFINE_integer("width", 768, "Numbers of an embedding.", lower_bound=1)
BATCH = flags.DEFINE_integer("batch_size", 4096, "Embeddings that are written at a time.", lower_bound=1)
QUERIES = flags.DEFINE_integer("queries", 20, "Random queries, of which the median is reported.", lower_bound=1)
TOP = flags.DEFINE_integer("top", 32, "Pictures that a query is to find, and a model re-ranks.", lower_bound=1)
INDEX = flags.DEFINE_string("index", None, "Folder of the index; by default a temporary one that is removed.")
PART = flags.DEFINE_enum(
    "part",
    "all",
    ["all", *PARTS, MODEL_PART],
    f"What is measured; all runs {', '.join(PARTS)}, each in its own process.",
)
MODEL = flags.DEFINE_enum("model", "vitl", SIZES, f"Sizes of the model of --part={MODEL_PART}.")
REPEATS = flags.DEFINE_integer("repeats", 3, "Times of the model, of which the median is reported.", lower_bound=1)


def main(_: list[str]) -> None:
    """Prints a line of JSON for each part."""
    if PART.value == MODEL_PART:
        print(json.dumps(asked(published_sizes(MODEL.value, "float32"), TOP.value, REPEATS.value)), flush=True)
        return
    if PART.value != "all":
        print(json.dumps(measured(PART.value, Path(str(INDEX.value)))), flush=True)
        return
    with tempfile.TemporaryDirectory() as folder:
        for part in PARTS:
            own = [f"--part={part}", f"--index={INDEX.value or folder}"]
            subprocess.run([sys.executable, __file__, *sys.argv[1:], *own], check=True)


def measured(part: str, folder: Path) -> dict[str, object]:
    """The figures of one part, measured in this process."""
    start = time.perf_counter()
    figures = build(folder) if part == "build" else search(folder, exact=part == "exact")
    return {"part": part, "seconds": round(time.perf_counter() - start, 2), "peak_mib": peak_mib()} | figures


def peak_mib() -> int:
    """The most memory that this process had resident; the count of getrusage would begin with that of its parent."""
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    assert found is not None
    return round(int(found[1]) * 1024 / MIB)


def build(folder: Path) -> dict[str, object]:
    """Writes all embeddings, then the approximate index, whose recall at 10 it measures."""
    folder.mkdir(parents=True, exist_ok=True)
    rng, file = np.random.default_rng(0), embeddings_file(folder, 0, WIDTH.value)
    with Catalog(folder, create=True) as catalog:
        with catalog.transaction():
            catalog.set_fact("model", {"sizes": {"embed_size": WIDTH.value}})
            catalog.set_fact("generation", 0)
        for start in range(0, PICTURES.value, BATCH.value):
            numbers = range(start, min(start + BATCH.value, PICTURES.value))
            file.write(start, unit(rng, len(numbers)))
            catalog.add([content(number) for number in numbers])
        recall = approximate_rows(catalog, folder, above=0)
        with catalog.transaction():
            catalog.set_fact("complete", True)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return {"pictures": PICTURES.value, "disk_mib": round(size / MIB), "recall_at_10": recall}


def search(folder: Path, *, exact: bool) -> dict[str, object]:
    """Median time of a query, after one that brings the pages into memory; and of opening the index.

    The processor's time, over all threads, tells what a query costs where other programs take the cores.
    """
    start = time.perf_counter()
    state = newest_state(folder)
    opened = time.perf_counter() - start
    if exact:
        state = State(state.version, state.generation, True, state.embeddings, state.live, None)
    queries = unit(np.random.default_rng(1), QUERIES.value + 1)
    times, processor = [], []
    for query in queries:
        start, before = time.perf_counter(), time.process_time()
        rows, _ = state.best(query, TOP.value)
        times.append(time.perf_counter() - start)
        processor.append(time.process_time() - before)
        assert len(rows) == min(TOP.value, state.pictures)
    median = {"query_ms": times, "query_processor_ms": processor}
    rounded = {name: three_digits(1000 * statistics.median(values[1:])) for name, values in median.items()}
    return {"open_seconds": three_digits(opened), **rounded}


def asked(sizes: ModelConfig, candidates: int, repeats: int) -> dict[str, object]:
    """Seconds to encode one picture and one sentence, and to re-rank so many pictures, in the batches of the page."""
    from r2d2_jax.search.desk import STEP  # with Starlette, which no other part needs

    model, rng, side = random_ranker(sizes, STEP), np.random.default_rng(0), sizes.image.image_size
    pictures = list(rng.integers(0, 256, (candidates, side, side, 3), dtype=np.uint8))
    seconds = {
        "picture": median(lambda: model.encode_image(pictures[0]), repeats),
        "sentence": median(lambda: model.encode_text(SENTENCE), repeats),
        "re_ranking": median(lambda: model.match(pictures, SENTENCE), repeats),
    }
    rounded = {f"{what}_seconds": three_digits(value) for what, value in seconds.items()}
    return {"part": MODEL_PART, "candidates": candidates, "peak_mib": peak_mib()} | rounded


def three_digits(value: float) -> float:
    """Rounds to three significant digits: a query of a small index takes microseconds, that of a large one seconds."""
    return float(f"{value:.3g}")


def unit(rng: np.random.Generator, count: int) -> np.ndarray:
    """float32 [count width], random directions."""
    rows = rng.standard_normal((count, WIDTH.value), np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def content(number: int) -> Content:
    """A file as if its picture had been read; the catalogue looks at nothing else."""
    name = f"folder{number // 1000:05d}/picture{number:08d}.jpg".encode()
    return Content(FoundFile(name, 1, 1), number.to_bytes(16, "big"), pixels=np.zeros(0, np.uint8))


if __name__ == "__main__":
    app.run(main)
