"""Whole splits for evaluation."""

import dataclasses
import hashlib
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.evaluation_images import image_batches, usable_records
from r2d2_jax.data.image.transforms import verify_image
from r2d2_jax.data.records import Record, RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import FIRST_NAMES, UserError

logger = logging.getLogger(__name__)

IDENTIFIED = ("chinese_clip", "muge")  # datasets whose corpora identify texts; see docs/corpora.md


class EvaluationSplit:
    """All texts of a split, tokenised, its images in batches, and which belong together: many to many.

    Records of one image_id are one image, which has the captions of all of them and the picture of the first. Captions
    of one text_id are one text, which has several images; captions without one are texts of their own even where their
    characters are equal. Only unusable records are left out.

    An image without a caption is a candidate that matches no query; the galleries of retrieval benchmarks have such.
    Texts are held as Python strings, so a split may have tens of thousands; training never holds them.

    Attributes:
        image_ids: identity of each image, in the order of `image_batches`.
        picture_checksums: of the file of each image.
        captions: each text once, in the order in which the records first have it.
        pairs: int32 [p 2], the positions (image, text) of every right pair; sorted and distinct.
        input_ids: int32 [t l]. attention_mask: bool [t l].
        problems: one line for each unusable record, with its reason.
    """

    def __init__(self, source: RecordSource, tokenizer: Tokenizer, image_size: int, max_images: int = 0) -> None:
        """Reads every record once and checks that its image decodes; images are not kept.

        Args:
            source: the split's records.
            tokenizer: gives `l`.
            image_size: side of the images in pixels.
            max_images: use only this many images, those of the first usable records; 0 uses all. Reading ends at the
                first record that shows another image.

        Raises:
            UserError: no record is usable, or none has a caption.
        """
        self._source, self._image_size = source, image_size
        self._indices: list[int] = []
        self.picture_checksums: list[str] = []
        self.problems: list[str] = []
        found = _Found()
        for index, record in usable_records(source, self._inspect, self.problems, max_images):
            new = record.image_id not in found.images
            if new and max_images and len(found.images) == max_images:
                break
            found.add(record)
            if new:
                self._indices.append(index)
                self.picture_checksums.append(record.image.hex())
        self.image_ids, self.captions, self.pairs = [*found.images], found.texts, found.sorted_pairs()
        self._report(found)
        self.input_ids, self.attention_mask = tokenizer(self.captions)

    @property
    def num_images(self) -> int:
        """Number of images, with or without captions."""
        return len(self._indices)

    def image_batches(
        self, batch_size: int, own: np.ndarray | None = None, images: np.ndarray | None = None
    ) -> Iterator[np.ndarray]:
        """Images once each, as `evaluation_images.image_batches` gives them.

        Args:
            batch_size: images in a batch.
            own: bool [batch_size], the rows that this process needs; None means all of them.
            images: int [i], positions of the images, in order; None means all of them.
        """
        chosen = self._indices if images is None else [self._indices[place] for place in images]
        return image_batches(self._source, chosen, self._image_size, batch_size, own)

    def picture(self, image: int) -> bytes:
        """The file of the image at a position, as it lies in its record."""
        return self._source[self._indices[image]].image

    def _inspect(self, index: int) -> Record | UnusableRecord:
        """The record, with a checksum in place of its picture."""
        try:
            record = self._source[index]
            record.check_texts()
            verify_image(record.image)
        except UnusableRecord as error:
            return error
        return dataclasses.replace(record, image=hashlib.blake2b(record.image, digest_size=16).digest())

    def _report(self, found: "_Found") -> None:
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
        self._report_sharing(found)
        if uncaptioned := self.num_images - len(np.unique(self.pairs[:, 0])):
            logger.info(
                "%d of the %d images of split %r have no caption; text is compared with them all the same",
                uncaptioned,
                self.num_images,
                self._source.split,
            )

    def _report_sharing(self, found: "_Found") -> None:
        if self._source.dataset in IDENTIFIED and not self._source.has_text_ids:
            logger.warning(
                "the dataset in %s was prepared before texts had ids: a text of several images counts as several texts "
                "with one right image each, which is too hard; prepare it again",
                self._source.folder,
            )
        shared = int(np.sum(np.bincount(self.pairs[:, 1]) > 1))
        if found.merged or shared:
            logger.info(
                "split %r has %d images and %d texts: %d records show an image that a record before them shows, and "
                "count as the same image; %d texts belong to several images by their text_id",
                self._source.split,
                self.num_images,
                len(self.captions),
                found.merged,
                shared,
            )
        if found.renamed:
            logger.warning(
                "%d captions of split %r have the text_id of a caption with other characters, such as %s; they count "
                "as that text, whose first characters are used: give different texts different ids and prepare the "
                "dataset again",
                len(found.renamed),
                self._source.split,
                found.renamed[0],
            )


@dataclass
class _Found:
    """The images and texts of the records so far, each once.

    images: image_id -> its position. texts: the texts. pairs: (image, text) of every caption.
    merged: records of images that were known. renamed: ids of captions that differ from their text.
    """

    images: dict[str, int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    pairs: list[tuple[int, int]] = field(default_factory=list)
    merged: int = 0
    renamed: list[str] = field(default_factory=list)
    _identified: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Takes a usable record."""
        self.merged += record.image_id in self.images
        image = self.images.setdefault(record.image_id, len(self.images))
        for caption, text_id in itertools.zip_longest(record.captions, record.text_ids, fillvalue=""):
            self.pairs.append((image, self._text(caption, text_id)))

    def sorted_pairs(self) -> np.ndarray:
        """int32 [p 2], each pair once."""
        return np.unique(np.array(self.pairs, np.int32).reshape(-1, 2), axis=0)

    def _text(self, caption: str, text_id: str) -> int:
        text = self._identified.setdefault(text_id, len(self.texts)) if text_id else len(self.texts)
        if text == len(self.texts):
            self.texts.append(caption)
        elif self.texts[text] != caption:
            self.renamed.append(text_id)
        return text
