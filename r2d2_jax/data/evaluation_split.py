"""Whole splits for evaluation."""

import logging
from collections.abc import Iterator

import numpy as np

from r2d2_jax.data.bad_records import UnusableRecord, problem
from r2d2_jax.data.image.transforms import evaluation_image, map_ahead, verify_image
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import FIRST_NAMES, UserError

logger = logging.getLogger(__name__)


class EvaluationSplit:
    """All captions of a split, tokenised, and its images in batches; only unusable records are left out.

    An image without a caption is a candidate that matches no query; the galleries of retrieval benchmarks have such.
    Captions are held as Python strings, so a split may have tens of thousands; training never holds them.

    Attributes:
        image_ids: identity of each image, in the order of `image_batches`.
        captions: every caption of every image, in the same order.
        caption_image: int32 [t], the position of each caption's image.
        input_ids: int32 [t l]. attention_mask: bool [t l].
        problems: one line for each unusable record, with its reason.
    """

    def __init__(self, source: RecordSource, tokenizer: Tokenizer, image_size: int, max_images: int = 0) -> None:
        """Reads every record once and checks that its image decodes; images are not kept.

        Args:
            source: the split's records.
            tokenizer: gives `l`.
            image_size: side of the images in pixels.
            max_images: use only this many usable records, from the first on; 0 uses all.

        Raises:
            UserError: no record is usable, or none has a caption.
        """
        self._source, self._image_size = source, image_size
        self._indices: list[int] = []
        self.image_ids: list[str] = []
        self.captions: list[str] = []
        self.problems: list[str] = []
        owners: list[int] = []
        logger.info("reading the %d records of split %r", min(len(source), max_images or len(source)), source.split)
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

    def image_batches(
        self, batch_size: int, own: np.ndarray | None = None, images: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """Images once each, resized to a square.

        Args:
            batch_size: images in a batch.
            own: bool [batch_size], the rows that this process needs; None means all of them.
            images: int [i], positions of the images, in order; None means all of them.

        Yields:
            uint8 [batch_size image_size image_size 3]. Rows of the last batch beyond the images are zero, and so are
            rows that this process does not need: otherwise every process would decode every image.
        """
        chosen = self._indices if images is None else [self._indices[place] for place in images]
        needed = np.resize(np.ones(batch_size, bool) if own is None else own, len(chosen))
        indices = (index for index, need in zip(chosen, needed, strict=True) if need)
        decoded = map_ahead(lambda index: evaluation_image(self._source[index].image, self._image_size), indices)
        for start in range(0, len(chosen), batch_size):
            batch = np.zeros((batch_size, self._image_size, self._image_size, 3), np.uint8)
            for row in np.flatnonzero(needed[start : start + batch_size]):
                batch[row] = next(decoded)
            yield batch

    def _inspect(self, index: int) -> tuple[str, tuple[str, ...]] | UnusableRecord:
        try:
            record = self._source[index]
            record.check_texts()
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
        if uncaptioned := self.num_images - len(np.unique(self.caption_image)):
            logger.info(
                "%d of the %d images of split %r have no caption; text is compared with them all the same",
                uncaptioned,
                self.num_images,
                self._source.split,
            )
