"""Batches for training.

The training stream is a pure function of the position: row i is drawn, augmented and tokenised with a random generator
of (seed, i), whichever process or worker makes it. Step s takes rows s*b to (s+1)*b, and process p of P takes the p-th
of the P equal parts of these. So the data position is the number of steps done; nothing else is saved.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import logging
import os
import signal
from collections.abc import Callable, Generator, Sequence
from typing import Any

import cv2
import grain
import numpy as np
from absl import flags

from r2d2_jax.config.data import DataConfig
from r2d2_jax.cores import allowed_cores
from r2d2_jax.data.bad_records import UnusableRecord, problem
from r2d2_jax.data.image.transforms import may_flip, train_image
from r2d2_jax.data.labelled_pairs import matching_label
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import Record
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.data.workers import LostWorker, check_shared_memory, lost_worker_told
from r2d2_jax.errors import FIRST_NAMES, UserError

logger = logging.getLogger(__name__)

_MAX_UNUSABLE_RUN = 100  # our decision: so many unusable records in a row mean that the dataset is damaged


def image_id_hash(image_id: str) -> np.ndarray:
    """The two halves of a 64-bit blake2b hash of an image's identity: uint32 [2]."""
    return np.frombuffer(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), dtype="<u4").astype(np.uint32)


def text_id_hash(text_id: str) -> np.ndarray:
    """The same of a text's identity; zeros, which no batch takes for equal, if it has none."""
    return image_id_hash(text_id) if text_id else np.zeros(2, np.uint32)


def train_batches(
    mixture: Mixture,
    tokenizer: Tokenizer,
    data: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    first_step: int,
    text_ids: bool = False,
    process_index: int = 0,
    process_count: int = 1,
    labelled: bool = False,
    on_loss: Callable[[LostWorker], None] | None = None,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Endless batches of this process, from `first_step` on; every epoch is another permutation of the records.

    Args:
        mixture: the training records, of one corpus or several.
        tokenizer: gives `l`.
        data: gives augmentation and number of worker processes.
        image_size, batch_size: side of the images in pixels, and `b`, over all processes.
        seed: of the order and of the augmentation, 0 or more.
        first_step: number of steps done before; a run continues exactly where it stopped.
        text_ids: whether the batches say which text each row has; zeros stand for one without an identity.
        process_index, process_count: this process's number and how many there are; each gives b' = b / process_count.
        labelled: whether the batches say which of their pairs match.
        on_loss: called when a worker process is lost; from then on this process makes the batches itself, the same
            ones. Without it the loss is raised.

    Returns:
        A generator; `close()` ends its workers. Each batch has the fields of `Batch`, b' rows of each, word if the
        tokenizer numbers words, text_id if `text_ids`, label if `labelled`; and problems str [b'] (`UnusableRecords`).

    Raises:
        UserError: the processes cannot share the batch evenly, or shared memory cannot hold the workers' batches.
        LostWorker: (by the generator) a worker was killed or found no memory, and there is no `on_loss`.
    """
    if batch_size % process_count:
        raise UserError(
            f"train.batch_size {batch_size} is not a multiple of the {process_count} processes; each "
            "process reads an equal part of every batch. Change train.batch_size"
        )
    make_row = _TrainRow(mixture, data, image_size, text_ids, labelled)
    order_seed, row_seed, *more = np.random.SeedSequence(seed).generate_state(1 + len(mixture.sources)).tolist()
    order = mixture.order((order_seed, *more))
    rows = grain.MapDataset.source(order).random_map(make_row, seed=row_seed)
    parts = rows.batch(batch_size // process_count, batch_fn=_Batched(tokenizer))

    def stream(step: int, workers: int) -> grain.IterDataset:
        dataset = parts[step * process_count + process_index :: process_count].to_iter_dataset(_read_options(workers))
        if not workers:
            return dataset
        _let_grain_read_its_flags()
        return dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=workers), _begin_worker)

    if data.workers:
        check_shared_memory(data.workers, batch_size // process_count * image_size**2 * 3)
        logger.info("starting %d decoding processes on %d cores", data.workers, allowed_cores())
    return _batches(stream, first_step, data.workers, on_loss)


def _begin_worker(index: int, count: int) -> None:
    # The workers run in parallel already: within one, threads for every text and image cost more than they save.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    cv2.setNumThreads(0)
    # A terminal sends Ctrl-C to all processes, a batch system SIGTERM: the run decides, and ends its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _let_grain_read_its_flags() -> None:
    """Marks Grain's own absl flags as given, with their defaults, where no `app.run` has parsed the flags."""
    if not flags.FLAGS.is_parsed():
        for name in flags.FLAGS:
            if name.startswith("grain_"):
                flags.FLAGS[name].present = 1


def _read_options(workers: int) -> grain.ReadOptions:
    # An element is a whole batch: reading two ahead is enough, and more would fill the memory. Worker processes run in
    # parallel already, so each has one thread.
    threads = 1 if workers else 2
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)


def _batches(
    stream: Callable[[int, int], grain.IterDataset],
    step: int,
    workers: int,
    on_loss: Callable[[LostWorker], None] | None,
) -> Generator[dict[str, np.ndarray], None, None]:
    """The batches of `stream(step, workers)`, and after the loss of a worker those of this process alone."""
    try:
        with contextlib.closing(_closing(stream(step, workers))) as batches:
            for batch in batches:
                yield batch
                step += 1
    except LostWorker as error:
        if not workers or on_loss is None:
            raise
        on_loss(error)
        yield from _closing(stream(step, 0))


def _closing(dataset: grain.IterDataset) -> Generator[dict[str, np.ndarray], None, None]:
    iterator = iter(dataset)
    try:
        while True:
            with lost_worker_told():
                batch = next(iterator)
            yield batch
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _Batched:
    """Makes a batch of rows; tokenises the captions together, at half of the cost of one at a time."""

    tokenizer: Tokenizer

    def __call__(self, rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
        stacked = {key: np.stack([row[key] for row in rows]) for key in rows[0] if key != "caption"}
        return stacked | self.tokenizer.columns([row["caption"] for row in rows])


@dataclasses.dataclass(frozen=True)
class _TrainRow:
    """Makes one row of a training batch from the number of a record and a random generator."""

    mixture: Mixture
    data: DataConfig
    image_size: int
    text_ids: bool = False
    labelled: bool = False

    def __call__(self, number: int, rng: np.random.Generator) -> dict[str, Any]:
        """Makes the row of a record, or of the next usable one in its corpus; "problems" names those passed over."""
        problems: list[str] = []
        for candidate in itertools.islice(self.mixture.following(number), _MAX_UNUSABLE_RUN):
            try:
                record = self.mixture[candidate]
                if not record.captions:
                    raise UnusableRecord("it has no caption")
                record.check_texts()
                row = self._row(record, rng)
                return row | {"problems": np.str_("\n".join(problems))}
            except UnusableRecord as error:
                problems.append(problem(self.mixture.name(candidate), error))
        raise UserError(
            f"{len(problems)} records one after the other are unusable; prepare the dataset again. The "
            "first:\n" + "\n".join(problems[:FIRST_NAMES])
        )

    def _row(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        number = rng.integers(len(record.captions))
        caption = record.captions[number]
        flip = self.data.flip and (may_flip(caption) or not self.data.flip_exempt_directions)
        image = train_image(
            record.image,
            rng,
            image_size=self.image_size,
            crop_scale=self.data.crop_scale,
            flip=flip,
            magnitude=self.data.magnitude,
        )
        row = {"images": image, "caption": caption, "image_id": image_id_hash(record.image_id)}
        if self.text_ids:
            row["text_id"] = text_id_hash(record.text_ids[number] if record.text_ids else "")
        if self.labelled:
            row["label"] = np.int32(matching_label(record))
        return row
