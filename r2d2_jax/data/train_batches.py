"""Batches for training, whole splits for evaluation.

The training stream is a pure function of the position: element i is drawn, augmented and tokenised with a random
generator of (seed, i), whatever process or worker makes it. Step s takes elements s*b to (s+1)*b, and process p of P
takes the p-th of the P equal parts of these. So the data position is the number of steps done; nothing else is saved.
"""

import dataclasses
import hashlib
import itertools
import logging
import os
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from r2d2_jax.config.data import DataConfig
from r2d2_jax.data.bad_records import UnusableRecord, problem
from r2d2_jax.data.image.transforms import evaluation_image, map_ahead, may_flip, train_image, verify_image
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.records import Record, RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import FIRST_NAMES, UserError

logger = logging.getLogger(__name__)

_MAX_BROKEN_RUN = 100  # our decision: so many unusable records one after the other are a broken dataset


def image_id_hash(image_id: str) -> np.ndarray:
    """The two halves of a 64-bit blake2b hash of an image's identity: uint32 [2]."""
    return np.frombuffer(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), dtype="<u4").astype(np.uint32)


def train_batches(
    mixture: Mixture,
    tokenizer: Tokenizer,
    data: DataConfig,
    *,
    image_size: int,
    batch_size: int,
    seed: int,
    first_step: int,
    process_index: int = 0,
    process_count: int = 1,
) -> Generator[dict[str, np.ndarray], None, None]:
    """Endless batches of this process, from `first_step` on; every epoch is another permutation of the records.

    Args:
        mixture: the training records, of one corpus or several.
        tokenizer: gives `l`.
        data: augmentation and number of worker processes.
        image_size: side of the images in pixels.
        batch_size: `b`, over all processes.
        seed: of the order and of the augmentation, 0 or more.
        first_step: number of steps done before, to go on exactly where a run stopped.
        process_index: this process's number, from 0.
        process_count: number of processes; each gives b' = b / process_count rows of every batch.

    Returns:
        A generator; `close()` ends its workers. Each batch has images uint8 [b' image_size image_size 3],
        input_ids int32 [b' l], attention_mask bool [b' l], word int32 [b' l] if the tokenizer numbers words, image_id
        uint32 [b' 2], and problems str [b'] with one line for each unusable record whose place the row took (see
        `BrokenRecords`).

    Raises:
        UserError: the batch cannot be split evenly over the processes.
    """
    if batch_size % process_count:
        raise UserError(
            f"train.batch_size {batch_size} is not a multiple of the {process_count} processes; each "
            "process reads an equal part of every batch. Change train.batch_size"
        )
    make_row = _TrainRow(mixture, data, image_size)
    order_seed, row_seed, *more = np.random.SeedSequence(seed).generate_state(1 + len(mixture.sources)).tolist()
    order = mixture.order((order_seed, *more))
    rows = grain.MapDataset.source(order).random_map(make_row, seed=row_seed)
    parts = rows.batch(batch_size // process_count, batch_fn=_Batched(tokenizer))
    dataset = parts[first_step * process_count + process_index :: process_count].to_iter_dataset(_read_options(data))
    if data.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which nobody parses outside of `app.run`
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers), _begin_worker)
    return _closing(dataset)


def _begin_worker(index: int, count: int) -> None:
    # Workers are many already; threads that the tokenizer wakes for every single text cost more than its work.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _read_options(data: DataConfig) -> grain.ReadOptions:
    # An element is a whole batch: two are enough to be ahead by, and more would fill the memory. Processes work in
    # parallel by themselves, so each has one thread.
    threads = 1 if data.workers else 2
    return grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)


def _closing(dataset: grain.IterDataset) -> Generator[dict[str, np.ndarray], None, None]:
    iterator = iter(dataset)
    try:
        yield from iterator
    finally:
        iterator.close()


@dataclasses.dataclass(frozen=True)
class _Batched:
    """Makes a batch of rows; captions are tokenised here, which costs half of what one at a time does."""

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

    def __call__(self, number: int, rng: np.random.Generator) -> dict[str, Any]:
        """An unusable record gives its place to the one that follows it in its corpus."""
        problems: list[str] = []
        for candidate in itertools.islice(self.mixture.following(number), _MAX_BROKEN_RUN):
            try:
                record = self.mixture[candidate]
                if not record.captions:
                    raise UnusableRecord("it has no caption")
                row = self._row(_checked(record), rng)
                return row | {"problems": np.str_("\n".join(problems))}
            except UnusableRecord as error:
                problems.append(problem(self.mixture.name(candidate), error))
        raise UserError(
            f"{len(problems)} records one after the other are unusable; prepare the dataset again. The "
            "first:\n" + "\n".join(problems[:FIRST_NAMES])
        )

    def _row(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        caption = record.captions[rng.integers(len(record.captions))]
        flip = self.data.flip and (may_flip(caption) or not self.data.flip_exempt_directions)
        image = train_image(
            record.image,
            rng,
            image_size=self.image_size,
            crop_scale=self.data.crop_scale,
            flip=flip,
            magnitude=self.data.magnitude,
        )
        return {"images": image, "caption": caption, "image_id": image_id_hash(record.image_id)}


def _checked(record: Record) -> Record:
    """Checks all of a record but the image, which is checked by decoding it, and that there is a caption at all."""
    if not all(caption.strip() for caption in record.captions):
        raise UnusableRecord("it has an empty caption")
    if not record.image_id:
        raise UnusableRecord("it has no image_id")
    return record


class EvaluationSplit:
    """All captions of a split, tokenised, and its images in batches; nothing usable is ever left out.

    An image without any caption is a candidate that no query asks for, as the galleries of retrieval benchmarks have.
    Captions are held as Python strings, for splits of tens of thousands; training records never are.

    Attributes:
        image_ids: identity of each image, in the order of `image_batches`.
        captions: every caption of every image, in the same order.
        caption_image: int32 [t], the position of each caption's image.
        input_ids: int32 [t l]. attention_mask: bool [t l].
        problems: the records that had to be left out, each with its reason.
    """

    def __init__(self, source: RecordSource, tokenizer: Tokenizer, image_size: int, max_images: int = 0) -> None:
        """Reads every record once and sees that its image decodes; images are not kept.

        Args:
            source: the split's records.
            tokenizer: gives `l`.
            image_size: side of the images in pixels.
            max_images: use only so many usable records, from the first on; 0 uses all.

        Raises:
            UserError: no record is usable, or none has a caption.
        """
        self._source, self._image_size = source, image_size
        self._indices: list[int] = []
        self.image_ids: list[str] = []
        self.captions: list[str] = []
        self.problems: list[str] = []
        owners: list[int] = []
        for index, outcome in enumerate(map_ahead(self._inspect, range(len(source)))):
            if max_images and len(self._indices) == max_images:
                break
            if isinstance(outcome, UnusableRecord):
                self.problems.append(problem(source.name(index), outcome))
                continue
            image_id, captions = outcome
            owners.extend([len(self._indices)] * len(captions))
            self.captions.extend(captions)
            self._indices.append(index)
            self.image_ids.append(image_id)
        self.caption_image = np.array(owners, np.int32)
        self._report()
        self.input_ids, self.attention_mask = tokenizer(self.captions)

    @property
    def num_images(self) -> int:
        """Number of images, with or without captions."""
        return len(self._indices)

    def image_batches(self, batch_size: int, own: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Every image once, resized to a square.

        Args:
            batch_size: images in a batch.
            own: bool [batch_size], the rows that this process needs; None means all of them.

        Yields:
            uint8 [batch_size image_size image_size 3]; the last batch is filled up with zeros, and so are rows that
            this process does not need: decoding is what an evaluation of many processes would do many times over.
        """
        needed = np.resize(np.ones(batch_size, bool) if own is None else own, self.num_images)
        indices = (index for index, need in zip(self._indices, needed, strict=True) if need)
        images = map_ahead(lambda index: evaluation_image(self._source[index].image, self._image_size), indices)
        for start in range(0, self.num_images, batch_size):
            batch = np.zeros((batch_size, self._image_size, self._image_size, 3), np.uint8)
            for row in np.flatnonzero(needed[start : start + batch_size]):
                batch[row] = next(images)
            yield batch

    def _inspect(self, index: int) -> tuple[str, tuple[str, ...]] | UnusableRecord:
        try:
            record = _checked(self._source[index])
            verify_image(record.image)
        except UnusableRecord as error:
            return error
        return record.image_id, record.captions

    def _report(self) -> None:
        listed = "\n".join(self.problems[:FIRST_NAMES])
        if not self._indices:
            raise UserError(
                f"none of the {len(self._source)} records of split {self._source.split!r} is usable; "
                f"prepare the dataset again. The first:\n{listed}"
            )
        if self.problems:
            logger.warning(
                "%d of the %d records of split %r are unusable and left out. The first:\n%s",
                len(self.problems),
                len(self._source),
                self._source.split,
                listed,
            )
        if not self.captions:
            raise UserError(
                f"none of the {self.num_images} images of split {self._source.split!r} has a caption, so "
                "there is nothing to ask for; prepare the dataset again, or name another split"
            )
        if silent := self.num_images - len(np.unique(self.caption_image)):
            logger.info(
                "%d of the %d images of split %r have no caption; text is compared with them all the same",
                silent,
                self.num_images,
                self._source.split,
            )
