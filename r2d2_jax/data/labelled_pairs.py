"""Whole splits of pairs of an image and a text that match or do not."""

import logging
from collections import Counter
from collections.abc import Iterator

import numpy as np

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.evaluation_images import image_batches, usable_records
from r2d2_jax.data.image.transforms import verify_image
from r2d2_jax.data.records import Record, RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import FIRST_NAMES, UserError

logger = logging.getLogger(__name__)

MATCH_NAMES = ("no match", "match")  # of the labels 0 and 1 in prepared datasets
PREPARED_BY = "records of one text and a label, as launch/prepare_data.py writes them with --corpus=icm, iqm or pairs"


def check_labelled(source: RecordSource) -> None:
    """Raises UserError unless the records of a split have labels."""
    if not source.labelled:
        raise UserError(
            f"split {source.split!r} of {source.folder} has no labels, which say whether image and text match; "
            f"expected {PREPARED_BY}"
        )


def check_not_pairs(source: RecordSource) -> None:
    """Raises UserError if the records of a split say whether image and text match: all others take each for right."""
    if source.labelled and len(source.class_names) in (0, 2):
        raise UserError(
            f"split {source.split!r} of {source.folder} has labels, which say whether image and text match, and to "
            "this task every pair is a right one; set task to 'matching', or prepare the matching pairs alone"
        )


def matching_label(record: Record) -> bool:
    """Whether image and text of a labelled record match.

    Raises:
        UnusableRecord: it has no text or several.
        UserError: the label is neither 0 nor 1, so the split is of another kind.
    """
    if record.label not in (0, 1):
        raise UserError(
            f"record {record.name} has the label {record.label}; expected 0 (no match) or 1 (match): {PREPARED_BY}"
        )
    if len(record.captions) != 1:
        raise UnusableRecord(f"it has a label and {len(record.captions)} texts; expected one")
    return record.label == 1


class LabelledPairs:
    """All pairs of a split, those of an image one after the other; only unusable records are left out.

    Attributes:
        source: the split's records.
        image_ids: identity of each image, in the order in which the split first names it. An image counts once,
            however many pairs show it.
        image: int32 [p], the position of each pair's image, ascending.
        texts: the text of each pair.
        match: bool [p], whether image and text belong together.
        input_ids: int32 [p l]. attention_mask: bool [p l].
        problems: one line for each unusable record, with its reason.
    """

    def __init__(self, source: RecordSource, tokenizer: Tokenizer, image_size: int, max_pairs: int = 0) -> None:
        """Reads every record once and checks that its image decodes; images are not kept.

        Args:
            source: the split's records.
            tokenizer: gives `l`.
            image_size: side of the images in pixels.
            max_pairs: use only this many usable records, from the first on; 0 uses all.

        Raises:
            UserError: the records have no labels or others than 0 and 1, none is usable, or all of them match or
                none does, so that there is no AUC.
        """
        check_labelled(source)
        self.source, self._image_size = source, image_size
        self.problems: list[str] = []
        places: dict[str, int] = {}
        self._indices: list[int] = []  # a record of each image
        rows: list[tuple[int, str, bool]] = []
        for index, (image_id, text, match) in usable_records(source, self._inspect, self.problems, max_pairs):
            if image_id not in places:
                places[image_id] = len(places)
                self._indices.append(index)
            rows.append((places[image_id], text, match))
            if len(rows) == max_pairs:
                break
        rows.sort(key=lambda row: row[0])
        self.image_ids = list(places)
        self.image = np.array([image for image, _, _ in rows], np.int32)
        self.texts = [text for _, text, _ in rows]
        self.match = np.array([match for _, _, match in rows], bool)
        self._report()
        self.input_ids, self.attention_mask = tokenizer(self.texts)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    def image_batches(self, batch_size: int, own: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Every image once, as `evaluation_images.image_batches` gives them."""
        return image_batches(self.source, self._indices, self._image_size, batch_size, own)

    def _inspect(self, index: int) -> tuple[str, str, bool] | UnusableRecord:
        try:
            record = self.source[index]
            match = matching_label(record)
            record.check_texts()
            verify_image(record.image)
        except UnusableRecord as error:
            return error
        return record.image_id, record.captions[0], match

    def _report(self) -> None:
        split, listed = f"split {self.source.split!r} of {self.source.folder}", "\n".join(self.problems[:FIRST_NAMES])
        if not self.texts:
            raise UserError(
                f"none of the {len(self.source)} records of {split} is usable; prepare the dataset again. The first:\n"
                f"{listed}"
            )
        counts = Counter(self.match.tolist())
        if len(counts) == 1:
            label = int(self.match[0])
            raise UserError(
                f"all {len(self)} pairs of {split} have the label {label}, so there is no AUC: it compares pairs that "
                "match with pairs that do not. Expected both 0 and 1; name another split, or prepare it again"
            )
        logger.info(
            "split %r: %d pairs of %d images; %d match, %d do not",
            self.source.split, len(self), self.num_images, counts[True], counts[False],
        )  # fmt: skip
        if self.problems:
            logger.warning(
                "%d of the %d records of split %r are unusable and left out. The first:\n%s",
                len(self.problems), len(self.source), self.source.split, listed,
            )  # fmt: skip
