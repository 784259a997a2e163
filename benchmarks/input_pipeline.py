"""Pairs per second of the training input, beside the same work written the usual way.

    python benchmarks/input_pipeline.py                     # generated images of 224 x 224 and 500 x 375 pixels
    python benchmarks/input_pipeline.py --data=data/mine    # the training records of a prepared dataset

From ArrayRecord shards to host batches: read, decode, the published augmentation, tokenise, stack. The usual way is
Pillow transforms in a torch DataLoader (see usual_loader.py). Both have the same number of worker processes, take turns
in one run, and are compared by the medians of their rounds: pairs per second of processor time, of workers and main
process together, which is what a core yields however busy the machine is; and pairs per second by the clock. Fails,
with exit status 1, where ours yields less than twice what the usual way does that ends in the same uint8 batches;
`--data` is only measured. Needs torch.
"""

import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import cv2
import numpy as np
import psutil
import usual_loader
from absl import app, flags
from PIL import Image

from r2d2_jax.config.data import DataConfig
from r2d2_jax.cores import allowed_cores
from r2d2_jax.data import train_batches as pipeline
from r2d2_jax.data.image import transforms
from r2d2_jax.data.image.decoding import EncodedImage
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import SPECIAL_TOKENS, Tokenizer, load_tokenizer, tokenizer_of
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset

TARGET = 2.0  # times the pairs per second of the usual way (our decision)
SIZES = ((224, 224), (500, 375))
CHARACTERS = [chr(code) for code in range(0x4E00, 0x9FA6)]  # as many Chinese characters as a real vocabulary
DISTINCT = 128  # generated images, which the records repeat

DATA = flags.DEFINE_string("data", None, "A prepared dataset, with vocab.txt beside it, instead of generated images.")
WORKERS = flags.DEFINE_integer("workers", allowed_cores(), "Worker processes; 0 works in this process.", lower_bound=0)
BATCH = flags.DEFINE_integer("batch_size", 64, "Pairs in a batch.", lower_bound=1)
SIDE = flags.DEFINE_integer("image_size", 224, "Side of the images in the batch, in pixels.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 9, "How often each one is measured.", lower_bound=1)
SECONDS = flags.DEFINE_float("seconds", 1.0, "How long each measurement takes.", lower_bound=0)
RECORDS = flags.DEFINE_integer("records", 1024, "How many records are generated.", lower_bound=1)

Loader = Iterator[dict[str, np.ndarray]]
Places = dict[str, list[tuple[Any, str]]]

OUR_STAGES: Places = {
    "read": [(RecordSource, "__getitem__")],
    "decode": [(EncodedImage, "pixels")],
    "crop and resize": [(transforms, "cropped_and_resized")],
    "flip": [(cv2, "flip")],
    "operations": [(transforms, "random_augment")],
    "tokenise": [(Tokenizer, "columns")],
    "stack": [(np, "stack")],
}
USUAL_STAGES: Places = {
    "read": [(usual_loader, "read")],
    "decode": [(usual_loader, "decoded")],
    "crop and resize": [(usual_loader, "resized_crop")],
    "flip": [(usual_loader, "flipped")],
    "operations": [(usual_loader, "augmented")],
    "tokenise": [(usual_loader, "tokenised")],
    "stack": [(usual_loader, "to_tensor"), (usual_loader, "collated")],
}


def main(_: list[str]) -> None:
    """Measures each set of records and prints a table of it."""
    # Threads of the tokenizer and of OpenCV would take other workers' cores.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cv2.setNumThreads(0)
    if DATA.value:
        compare(DATA.value, RecordSource(DATA.value, "train"), load_tokenizer(str(Path(DATA.value) / "vocab.txt"), 64))
        return
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(folder, {"train": examples(size, RECORDS.value)}, shards=2)
            source = RecordSource(folder, "train")
            check_ratio(size, compare(f"{size[0]} x {size[1]}", source, generated_tokenizer()))


def check_ratio(size: tuple[int, int], ratio: float) -> None:
    """Raises UserError if ours is not as many times faster as promised."""
    if ratio < TARGET:
        raise UserError(f"{size[0]} x {size[1]}: {ratio:.2f} times the usual way, less than {TARGET:g} times")


def compare(name: str, source: RecordSource, tokenizer: Tokenizer) -> float:
    """Measures our loader and the usual one, prints both, and returns how many times more a core yields with ours."""
    settings = {"image_size": SIDE.value, "batch_size": BATCH.value}
    usual, floating = (
        usual_loader.usual_batches(source, tokenizer, workers=WORKERS.value, normalised=normalised, **settings)
        for normalised in (False, True)
    )
    with our_batches(source, tokenizer, WORKERS.value, **settings) as ours:
        loaders = {"r2d2_jax": ours, "usual way": usual, "usual way, float32 normalised": floating}
        ahead = 2 * max(1, WORKERS.value) + 2  # batches that workers make before they are asked
        rates = medians(loaders, ROUNDS.value, SECONDS.value, ahead)
    print_rates(name, source, rates)
    print_stages(stages(source, tokenizer, **settings), *(1e6 / rates[key][0] for key in ("r2d2_jax", "usual way")))
    return rates["r2d2_jax"][0] / rates["usual way"][0]


@contextlib.contextmanager
def our_batches(
    source: RecordSource, tokenizer: Tokenizer, workers: int, *, image_size: int, batch_size: int
) -> Iterator[Loader]:
    """Batches of `train_batches` with the published augmentation."""
    data = DataConfig(directory="", augmentation="random_augment", workers=workers)
    batches = pipeline.train_batches(
        Mixture([source]), tokenizer, data, image_size=image_size, batch_size=batch_size, seed=0, first_step=0
    )
    with contextlib.closing(batches):
        yield batches


def medians(loaders: dict[str, Loader], rounds: int, seconds: float, ahead: int) -> dict[str, tuple[float, float]]:
    """Of each loader the medians of `pairs_per_second`, after `ahead` batches that it may have ready."""
    rates: dict[str, list[tuple[float, float]]] = {name: [] for name in loaders}
    for loader in loaders.values():
        next(loader)  # starts its workers
    for _ in range(rounds):
        for name, loader in loaders.items():
            wait_until_idle()
            for _ in range(ahead):
                next(loader)
            rates[name].append(pairs_per_second(loader, seconds))
    return {name: tuple(map(statistics.median, zip(*found, strict=True))) for name, found in rates.items()}


def wait_until_idle() -> None:
    """Waits until the workers have made all batches that they make before they are asked."""
    used, spell = float("inf"), 0.1
    while used > 0.1 * spell:
        before = processor_seconds()
        time.sleep(spell)
        used = processor_seconds() - before


def pairs_per_second(loader: Loader, seconds: float) -> tuple[float, float]:
    """Per second of processor time, and by the clock, of so many seconds or more.

    It measures one batch at least, and goes on until some processor time was counted, which the system does in ticks.
    """
    pairs, start, start_used = 0, time.perf_counter(), processor_seconds()
    while not pairs or time.perf_counter() - start < seconds or (used := processor_seconds() - start_used) <= 0:
        pairs += len(next(loader)["input_ids"])
    return pairs / used, pairs / (time.perf_counter() - start)


def processor_seconds() -> float:
    """Processor time of this process and of all that it started and that still run."""
    here = psutil.Process()
    times = [process.cpu_times() for process in (here, *here.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def stages(source: RecordSource, tokenizer: Tokenizer, *, image_size: int, batch_size: int) -> dict[str, list[float]]:
    """Microseconds of processor time per pair of each stage, ours and the usual way, without worker processes."""
    columns = []
    for places in (OUR_STAGES, USUAL_STAGES):
        if places is OUR_STAGES:
            data = DataConfig("", augmentation="random_augment")
            row, batched = pipeline._TrainRow(Mixture([source]), data, image_size), pipeline._Batched(tokenizer)
            rng = np.random.default_rng(0)
            make: Callable[[Iterable[int]], Any] = lambda numbers: batched([row(i, rng) for i in numbers])  # noqa: E731, B023
        else:
            rows, collate = usual_loader.Rows(source, image_size, False), usual_loader.Collate(tokenizer)
            make = lambda numbers: collate([rows[i] for i in numbers])  # noqa: E731, B023
        columns.append(seconds_by_stage(places, make, len(source), batch_size))
    return {name: [column[name] * 1e6 / len(source) for column in columns] for name in columns[0]}


def seconds_by_stage(
    places: Places, make: Callable[[Iterable[int]], Any], records: int, batch_size: int
) -> dict[str, float]:
    """Seconds spent in each stage's functions, and in all of `make`, which makes a batch of record numbers."""
    spent = dict.fromkeys([*places, "in all"], 0.0)

    def timed(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            start = time.thread_time()
            try:
                return function(*arguments, **named)
            finally:
                spent[stage] += time.thread_time() - start

        return call

    with contextlib.ExitStack() as patches:
        for stage, functions in places.items():
            for owner, name in functions:
                patches.enter_context(mock.patch.object(owner, name, timed(stage, getattr(owner, name))))
        for first in range(0, records, batch_size):
            timed("in all", make)(range(first, min(first + batch_size, records)))
    return spent


def print_rates(name: str, source: RecordSource, rates: dict[str, tuple[float, float]]) -> None:
    """The table of pairs per second."""
    kibibytes = np.mean([len(source[index].image) for index in range(min(256, len(source)))]) / 1024
    print(
        f"{name}: {kibibytes:.1f} KiB an image, {WORKERS.value} worker processes, {allowed_cores()} cores, batches of "
        f"{BATCH.value}, {SIDE.value} pixels, medians of {ROUNDS.value} rounds"
    )
    print(f"  {'pairs per second':<34}{'of a core':>10}{'ours is':>9}{'in all':>10}{'ours is':>9}")
    ours = rates["r2d2_jax"]
    for label, (core, clock) in rates.items():
        print(f"  {label:<34}{core:>10,.0f}{ours[0] / core:>8.2f}x{clock:>10,.0f}{ours[1] / clock:>8.2f}x")


def print_stages(table: dict[str, list[float]], ours: float, usual: float) -> None:
    """Where the time of a pair goes; what no stage accounts for is the way between processes and the rest."""
    print(f"  {'microseconds per pair':<34}{'r2d2_jax':>10}{'usual way':>11}")
    in_all = table.pop("in all")
    told = [sum(row[column] for row in table.values()) for column in (0, 1)]
    table["headers, draws, hashes"] = [in_all[column] - told[column] for column in (0, 1)]
    table["between processes"] = [ours - in_all[0], usual - in_all[1]]
    for stage, (left, right) in table.items():
        print(f"  {stage:<34}{left:>10,.0f}{right:>11,.0f}")


def examples(size: tuple[int, int], count: int) -> Iterator[Example]:
    """Image-text pairs: photograph-like JPEGs with captions of 8 to 20 characters."""
    images = [photograph(size, seed) for seed in range(min(DISTINCT, count))]
    rng = np.random.default_rng(0)
    for number in range(count):
        caption = "".join(rng.choice(CHARACTERS, rng.integers(8, 21)))
        yield Example(images[number % len(images)], (caption,), f"image{number}")


def photograph(size: tuple[int, int], seed: int) -> bytes:
    """A JPEG with the smoothness of a photograph: noise of all scales, weaker the finer, mostly without colour.

    At quality 88 the sizes are about those of real photographs: 14 KiB at 224 x 224, 39 KiB at 500 x 375.
    """
    rng, (width, height) = np.random.default_rng(seed), size
    pixels, amplitude = np.full((height, width, 3), 128, np.float32), 40.0
    for cells in (2 << octave for octave in range(max(size).bit_length() - 1)):
        noise = rng.standard_normal((cells * height // max(size) + 2, cells * width // max(size) + 2, 3), np.float32)
        mixed = 0.4 * noise + 1.3 * noise.mean(-1, keepdims=True)
        pixels += amplitude * cv2.resize(mixed, size, interpolation=cv2.INTER_CUBIC)
        amplitude *= 0.73
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def generated_tokenizer() -> Tokenizer:
    """A tokenizer of all common Chinese characters, of 64 tokens a text."""
    return tokenizer_of([*SPECIAL_TOKENS, *CHARACTERS], 64)


if __name__ == "__main__":
    try:
        app.run(main)
    except UserError as error:
        sys.exit(f"error: {error}")
