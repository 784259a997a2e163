"""Batches for training, whole splits for evaluation.

The training stream is a pure function of the position: element i is drawn, augmented and tokenised with a random
generator of (seed, i), whatever process or worker makes it. Step s takes elements s*b to (s+1)*b, and process p of P
takes the p-th of the P equal parts of these. So the data position is the number of steps done; nothing else is saved.
"""

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from absl import flags

from r2d2_jax.config import DataConfig
from r2d2_jax.data.records import Record, RecordSource, UnusableRecord
from r2d2_jax.data.tokenizer import Tokenizer
from r2d2_jax.data.transforms import evaluation_image, map_ahead, may_flip, train_image, verify_image
from r2d2_jax.errors import UserError

logger = logging.getLogger(__name__)

_MAX_BROKEN_RUN = 100  # our decision: so many unusable records one after the other are a broken dataset
_FIRST_NAMES = 10  # how many unusable records a message lists


def image_id_hash(image_id: str) -> np.ndarray:
    """The two halves of a 64-bit blake2b hash of an image's identity: uint32 [2]."""
    return np.frombuffer(hashlib.blake2b(image_id.encode(), digest_size=8).digest(), dtype="<u4").astype(np.uint32)


def train_batches(
    source: RecordSource,
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
        source: the training records.
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
        raise UserError(f"train.batch_size {batch_size} is not a multiple of the {process_count} processes; each "
                        "process reads an equal part of every batch. Change train.batch_size")
    make_row = _TrainRow(source, tokenizer, data, image_size)
    order_seed, row_seed = (int(word) for word in np.random.SeedSequence(seed).generate_state(2))
    rows = grain.MapDataset.range(len(source)).shuffle(seed=order_seed).repeat().random_map(make_row, seed=row_seed)
    parts = rows.batch(batch_size // process_count, batch_fn=_stack)
    dataset = parts[first_step * process_count + process_index :: process_count].to_iter_dataset(_read_options(data))
    if data.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, which nobody parses outside of `app.run`
            flags.FLAGS.mark_as_parsed()
        dataset = dataset.mp_prefetch(grain.MultiprocessingOptions(num_workers=data.workers))
    return _closing(dataset)


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


def _stack(rows: Sequence[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.stack([row[key] for row in rows]) for key in rows[0]}


@dataclasses.dataclass(frozen=True)
class _TrainRow:
    """Makes one row of a training batch from the number of a record and a random generator."""

    source: RecordSource
    tokenizer: Tokenizer
    data: DataConfig
    image_size: int

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """An unusable record gives its place to the one that follows it in the source."""
        problems: list[str] = []
        for candidate in range(index, index + min(len(self.source), _MAX_BROKEN_RUN)):
            candidate %= len(self.source)
            try:
                row = self._row(_usable_record(self.source, candidate), rng)
                return row | {"problems": np.str_("\n".join(problems))}
            except UnusableRecord as error:
                problems.append(_problem(self.source.name(candidate), error))
        raise UserError(f"{len(problems)} records one after the other are unusable; prepare the dataset again. The "
                        "first:\n" + "\n".join(problems[:_FIRST_NAMES]))

    def _row(self, record: Record, rng: np.random.Generator) -> dict[str, Any]:
        caption = record.captions[rng.integers(len(record.captions))]
        flip = self.data.flip and (may_flip(caption) or not self.data.flip_exempt_directions)
        image = train_image(
            record.image, rng, image_size=self.image_size, crop_scale=self.data.crop_scale, flip=flip
        )
        return {"images": image, **self.tokenizer.columns(caption), "image_id": image_id_hash(record.image_id)}


def _usable_record(source: RecordSource, index: int) -> Record:
    """Reads a record and checks all of it but the image, which is checked by decoding it."""
    record = source[index]
    if not record.captions:
        raise UnusableRecord("it has no caption")
    if not all(caption.strip() for caption in record.captions):
        raise UnusableRecord("it has an empty caption")
    if not record.image_id:
        raise UnusableRecord("it has no image_id")
    return record


def _problem(name: str, error: UnusableRecord) -> str:
    return f"{name}: {error}".replace("\n", " ")


class BrokenRecords:
    """Counts the unusable records among those that all processes read, and stops the run when there are too many.

    Attributes:
        read: records read, usable or not.
        broken: unusable ones among them; one that is met again in a later epoch counts again.
        first: where the first ten lie and what is wrong with each.
    """

    def __init__(
        self,
        epoch_size: int,
        max_broken_share: float,
        told_by_all: Callable[[dict[str, Any]], list[dict[str, Any]]] | None = None,
    ) -> None:
        """Starts counting at zero.

        Args:
            epoch_size: number of records of the training split.
            max_broken_share: the largest tolerated share of the records read, 0 to 1.
            told_by_all: what every process counted, given what this one did; None where there is only one.
        """
        self.epoch_size = epoch_size
        self.max_broken_share = max_broken_share
        self._told_by_all = told_by_all
        self.read, self.broken = 0, 0
        self.first: list[str] = []
        self._own = _nothing_counted()

    def update(self, problems: np.ndarray) -> None:
        """Counts one batch of this process and logs what is new; a process that is alone also judges.

        Args:
            problems: str [b'], of a batch of `train_batches`.

        Raises:
            UserError: as `share`.
        """
        new = [line for row in problems if row for line in str(row).split("\n")]
        self._own["read"] += len(problems) + len(new)
        self._own["broken"] += len(new)
        for line in new:
            logger.warning("unusable record, the next one takes its place: %s", line)
        self._own["first"] += new[: _FIRST_NAMES - len(self._own["first"])]
        if self._told_by_all is None:
            self.share()

    def share(self) -> None:
        """Adds what every process has counted since the last time. All of them call this, and all judge alike.

        Raises:
            UserError: the share is exceeded. It is looked at once 1,000 records or a whole epoch were read, and before
                that as soon as a whole epoch could not bring it back down (and more than 10 are broken); our decision.
        """
        for counted in [self._own] if self._told_by_all is None else self._told_by_all(self._own):
            self.read += counted["read"]
            self.broken += counted["broken"]
            self.first += counted["first"][: _FIRST_NAMES - len(self.first)]
        self._own = _nothing_counted()
        self._check()

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps, as plain JSON values: all that was shared."""
        return {"read": self.read, "broken": self.broken, "first": list(self.first)}

    def restore(self, state: dict[str, Any]) -> None:
        """Takes over what `state` gave, on every process."""
        self.read, self.broken, self.first = int(state["read"]), int(state["broken"]), list(state["first"])
        self._own = _nothing_counted()

    def _check(self) -> None:
        share = self.max_broken_share
        judged = self.read >= min(1000, self.epoch_size) and self.broken > share * self.read
        hopeless = self.broken > max(10, share * max(self.read, self.epoch_size))
        if judged or hopeless:
            raise UserError(f"{self.broken} of the {self.read} training records read are unusable, more than "
                            f"data.max_broken_share = {share:g} allows; mend them and prepare the dataset again, or "
                            "raise data.max_broken_share. The first:\n" + "\n".join(self.first))


def _nothing_counted() -> dict[str, Any]:
    return {"read": 0, "broken": 0, "first": []}


class EvaluationSplit:
    """All captions of a split, tokenised, and its images in batches; nothing usable is ever left out.

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
            UserError: no record is usable.
        """
        self._source, self._image_size = source, image_size
        self._indices: list[int] = []
        self.image_ids: list[str] = []
        self.captions: list[str] = []
        self.problems: list[str] = []
        caption_image: list[int] = []
        for index, outcome in enumerate(map_ahead(self._inspect, range(len(source)))):
            if max_images and len(self._indices) == max_images:
                break
            if isinstance(outcome, UnusableRecord):
                self.problems.append(_problem(source.name(index), outcome))
                continue
            image_id, captions = outcome
            caption_image.extend([len(self._indices)] * len(captions))
            self.captions.extend(captions)
            self._indices.append(index)
            self.image_ids.append(image_id)
        self._report()
        self.caption_image = np.array(caption_image, np.int32)
        self.input_ids, self.attention_mask = tokenizer(self.captions)

    @property
    def num_images(self) -> int:
        """Number of images; each has at least one caption."""
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
            record = _usable_record(self._source, index)
            verify_image(record.image)
        except UnusableRecord as error:
            return error
        return record.image_id, record.captions

    def _report(self) -> None:
        listed = "\n".join(self.problems[:_FIRST_NAMES])
        if not self._indices:
            raise UserError(f"none of the {len(self._source)} records of split {self._source.split!r} is usable; "
                            f"prepare the dataset again. The first:\n{listed}")
        if self.problems:
            logger.warning("%d of the %d records of split %r are unusable and left out. The first:\n%s",
                           len(self.problems), len(self._source), self._source.split, listed)
