"""Which images and texts belong together: many to many, held as lists, given out in blocks."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2d2_jax.errors import UserError

I2T, T2I = "i2t", "t2i"
DIRECTIONS = (I2T, T2I)


@dataclass(frozen=True)
class GroundTruth:
    """The right answers of retrieval. Any of a query's right answers is a hit, and a query counts once.

    An image or a text without a partner is a candidate, and no query. Nothing of the size images x texts is held.

    Attributes:
        num_images, num_texts: the galleries.
        pairs: int [p 2] of (image, text), or of (image, group) where there are groups; in any order.
        group: int [t], the group of each text; all texts of a group have the same right images. None means that each
            text is a group of its own.

    Raises:
        UserError: nothing has a partner.
    """

    num_images: int
    num_texts: int
    pairs: np.ndarray
    group: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not len(self.pairs):
            raise UserError(
                f"none of the {self.num_images} images and {self.num_texts} texts has a partner, so there is nothing "
                "to ask for; expected at least one image with a text. Prepare the dataset again, or name another split"
            )

    def with_equal_texts_shared(self, texts: Sequence[str]) -> "GroundTruth":
        """The same, but texts of equal characters have each other's images, too."""
        number: dict[str, int] = {}
        group = np.array([number.setdefault(text, len(number)) for text in texts], np.int64)
        pairs = np.unique(np.stack([self.pairs[:, 0], group[self.pairs[:, 1]]], axis=1), axis=0)
        return GroundTruth(self.num_images, self.num_texts, pairs, group)

    def candidates(self, direction: str) -> int:
        """How many texts ("i2t") or images ("t2i") there are to find."""
        return self.num_texts if direction == I2T else self.num_images

    def queries(self, direction: str) -> np.ndarray:
        """int [q], the images ("i2t") or texts ("t2i") that have a right answer, in order."""
        return np.flatnonzero(self._answers(direction))

    def positives(self, direction: str, queries: np.ndarray) -> np.ndarray:
        """bool [q c], True at the right candidates of a block of queries int [q]."""
        if direction == I2T:
            block = self._groups_of_image.mask(queries, self._num_groups)
            return block if self.group is None else block[:, self.group]
        return self._images_of_group.mask(queries if self.group is None else self.group[queries], self.num_images)

    def hit_chances(self, direction: str, cutoff: int) -> np.ndarray:
        """Probability [q] of a hit at a cut-off, for each query, if the candidates are in random order.

        1 - C(c - a, k) / C(c, k) with a right answers among c candidates, as a product.
        """
        answers, candidates = self._answers(direction), self.candidates(direction)
        draws = np.arange(min(cutoff, candidates))
        missed = (candidates - answers[answers > 0][:, None] - draws) / (candidates - draws)
        return 1 - np.prod(np.clip(missed, 0, 1), axis=1)

    def first_images(self) -> np.ndarray:
        """int [q], the first right image of each query of "t2i"."""
        texts = self.queries(T2I)
        return self._images_of_group.first(texts if self.group is None else self.group[texts])

    @property
    def texts_with_several_images(self) -> int:
        """How many texts have more than one right image."""
        return int(np.sum(self._answers(T2I) > 1))

    def _answers(self, direction: str) -> np.ndarray:
        """int [i] or [t], how many right answers each image or text has."""
        if direction == T2I:
            images = self._images_of_group.lengths
            return images if self.group is None else images[self.group]
        if self.group is None:
            return self._groups_of_image.lengths
        size = np.bincount(self.group, minlength=self._num_groups)
        image, group = self._distinct.T
        return np.bincount(image, size[group], self.num_images).astype(np.int64)

    @property
    def _num_groups(self) -> int:
        return self.num_texts if self.group is None else int(self.group.max()) + 1

    @functools.cached_property
    def _distinct(self) -> np.ndarray:
        return np.unique(np.asarray(self.pairs, np.int64), axis=0)

    @functools.cached_property
    def _groups_of_image(self) -> "_Lists":
        image, group = self._distinct.T
        return _Lists.of(image, group, self.num_images)

    @functools.cached_property
    def _images_of_group(self) -> "_Lists":
        image, group = self._distinct.T
        return _Lists.of(group, image, self._num_groups)


def texts_repeated_under_other_images(truth: GroundTruth, texts: Sequence[str]) -> int:
    """How many texts have the very characters of a text that belongs to an image which is not theirs.

    Where such a text finds the other image it counts as wrong, unless `GroundTruth.with_equal_texts_shared` is used.
    """
    shared = truth.with_equal_texts_shared(texts)
    asked = truth.queries(T2I)
    return int(np.sum(shared._answers(T2I)[asked] > truth._answers(T2I)[asked]))


@dataclass(frozen=True)
class _Lists:
    """Lists of numbers of different lengths: list i is `values[offsets[i] : offsets[i + 1]]`, ascending."""

    offsets: np.ndarray
    values: np.ndarray

    @classmethod
    def of(cls, row: np.ndarray, value: np.ndarray, rows: int) -> "_Lists":
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row, minlength=rows))])
        return cls(offsets, value[np.lexsort((value, row))])

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def first(self, rows: np.ndarray) -> np.ndarray:
        """The first value of lists that have one."""
        return self.values[self.offsets[rows]]

    def mask(self, rows: np.ndarray, width: int) -> np.ndarray:
        """bool [r width], True at the values of each list."""
        lengths = self.lengths[rows]
        row = np.repeat(np.arange(len(rows)), lengths)
        within = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        found = np.zeros((len(rows), width), bool)
        found[row, self.values[np.repeat(self.offsets[rows], lengths) + within]] = True
        return found
