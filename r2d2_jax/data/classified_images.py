"""Whole splits of images that belong to named classes."""

import logging
from collections.abc import Iterator

import numpy as np

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.evaluation_images import image_batches, usable_records
from r2d2_jax.data.image.transforms import verify_image
from r2d2_jax.data.records import RecordSource
from r2d2_jax.errors import FIRST_NAMES, UserError

logger = logging.getLogger(__name__)

PREPARED_BY = "images of named classes, as launch/prepare_data.py writes them with --corpus=classification"


class ClassifiedImages:
    """The images of a split and the class of each; captions, if there are any, are not read.

    Attributes:
        source: the split's records.
        class_names: by the number of the class.
        label: int32 [i], the class of each image, in the order of `image_batches`.
        problems: one line for each unusable record, with its reason.
    """

    def __init__(self, source: RecordSource, image_size: int, max_images: int = 0) -> None:
        """Reads every record once and checks that its image decodes; images are not kept.

        Args:
            source: the split's records.
            image_size: side of the images in pixels.
            max_images: use only this many usable records, from the first on; 0 uses all.

        Raises:
            UserError: the classes have no names, or no record is usable.
        """
        check_class_names(source)
        self.source, self.class_names, self._image_size = source, source.class_names, image_size
        self.problems: list[str] = []
        self._indices: list[int] = []
        labels: list[int] = []
        for index, label in usable_records(source, self._inspect, self.problems, max_images):
            self._indices.append(index)
            labels.append(label)
            if len(labels) == max_images:
                break
        self.label = np.array(labels, np.int32)
        self._report()

    @property
    def num_images(self) -> int:
        """Number of images."""
        return len(self._indices)

    def image_batches(self, batch_size: int, own: np.ndarray | None = None) -> Iterator[np.ndarray]:
        """Every image once, as `evaluation_images.image_batches` gives them."""
        return image_batches(self.source, self._indices, self._image_size, batch_size, own)

    def _inspect(self, index: int) -> int | UnusableRecord:
        try:
            record = self.source[index]
            if record.label is None or not 0 <= record.label < len(self.class_names):
                raise UnusableRecord(f"it has the label {record.label}; expected 0 to {len(self.class_names) - 1}")
            verify_image(record.image)
        except UnusableRecord as error:
            return error
        return record.label

    def _report(self) -> None:
        listed, split = "\n".join(self.problems[:FIRST_NAMES]), f"{len(self.source)} records of {self.source.split!r}"
        if not self._indices:
            raise UserError(f"none of the {split} is usable; prepare the dataset again. The first:\n{listed}")
        if self.problems:
            logger.warning("%d of the %s are unusable and left out. The first:\n%s", len(self.problems), split, listed)


def check_class_names(source: RecordSource) -> None:
    """Raises UserError unless the records of a split belong to named classes."""
    if not source.class_names:
        lacking = "labels without names" if source.labelled else "no labels"
        raise UserError(
            f"the dataset in {source.folder} has {lacking}, and classification needs the classes' names; expected "
            f"{PREPARED_BY}"
        )
