"""What all splits of evaluation share: their usable records, and images decoded and resized in batches."""

import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import numpy as np

from r2d2_jax.data.bad_records import UnusableRecord, problem
from r2d2_jax.data.image.transforms import evaluation_image, map_ahead
from r2d2_jax.data.records import RecordSource

logger = logging.getLogger(__name__)
Inspected = TypeVar("Inspected")


def usable_records(
    source: RecordSource, inspect: Callable[[int], Inspected | UnusableRecord], problems: list[str], limit: int
) -> Iterator[tuple[int, Inspected]]:
    """Yields the number of each usable record and what `inspect` made of it, in order.

    Args:
        source: the records.
        inspect: reads the record of a number, ahead and in several threads.
        problems: gains one line for each unusable record, with its reason.
        limit: how many the caller will take at most; 0 is all. Only the message reads it.
    """
    logger.info("reading the %d records of split %r", min(len(source), limit or len(source)), source.split)
    for index, outcome in enumerate(map_ahead(inspect, range(len(source)))):
        if isinstance(outcome, UnusableRecord):
            problems.append(problem(source.name(index), outcome))
        else:
            yield index, outcome


def image_batches(
    source: RecordSource, indices: Sequence[int], image_size: int, batch_size: int, own: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """The images of some records, each resized to a square.

    Args:
        source: the records.
        indices: which of them, in order.
        image_size: side of the images in pixels.
        batch_size: images in a batch.
        own: bool [batch_size], the rows that this process needs; None means all of them.

    Yields:
        uint8 [batch_size image_size image_size 3]. Rows of the last batch beyond the images are zero, and so are
        rows that this process does not need: otherwise every process would decode every image.
    """
    needed = np.resize(np.ones(batch_size, bool) if own is None else own, len(indices))
    wanted = (index for index, need in zip(indices, needed, strict=True) if need)
    images = map_ahead(lambda index: evaluation_image(source[index].image, image_size), wanted)
    for start in range(0, len(indices), batch_size):
        batch = np.zeros((batch_size, image_size, image_size, 3), np.uint8)
        for row in np.flatnonzero(needed[start : start + batch_size]):
            batch[row] = next(images)
        yield batch
