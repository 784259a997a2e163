"""Where the records are and how they become batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from r2d2_jax.config.ranges import negative, not_a_share, not_positive


@dataclass(frozen=True)
class DataConfig:
    """Where the records are and how they become batches.

    directory: the prepared data set. validation_split, foil_split: "" for none; a foil record's captions are the true
        one and the foil.
    test_split: measured once, at the end of the run, with the weights that are best on validation; "" for none.
    test_directory: the prepared data set that has the test split; "" means `directory`.
    corpora: prepared data sets that are trained on together, instead of `directory`'s training split; evaluation and
        vocabulary stay with `directory`. An epoch has as many rows as all of them have records.
    corpus_weights: the share of the rows that each of `corpora` gives, in any unit; a corpus with a larger share than
        it has records is repeated. () is by size: every record once an epoch.
    vocabulary: a WordPiece vocabulary file, a folder or a hub name; "" means `directory`/vocab.txt.
    map_punctuation: map Chinese quotation marks, ellipsis and dash, which RoBERTa-wwm's vocabulary lacks, to ASCII; off
        they become [UNK], as in the published model.
    augmentation: "crop_and_flip", or "random_augment": two random operations after these, as the published fine-tuning.
    crop_scale: range of the area share of the random resized crop. flip: mirror with probability 0.5.
    flip_exempt_directions: never mirror under a caption that says 左 or 右; no other operation swaps the two.
    augmentation_magnitude: of "random_augment", 0 to 10; 5 in the published code.
    workers: processes that decode; 0 decodes in the training process.
    max_broken_share: training stops when a larger share of the records read was unusable.
    validation_images: how many images of the validation split are used; 0 means all.
    """

    directory: str
    corpora: tuple[str, ...] = ()
    corpus_weights: tuple[float, ...] = ()
    train_split: str = "train"
    validation_split: str = "validation"
    foil_split: str = ""
    test_split: str = ""
    test_directory: str = ""
    vocabulary: str = ""
    map_punctuation: bool = True
    augmentation: str = "crop_and_flip"
    crop_scale: tuple[float, float] = (0.5, 1.0)
    flip: bool = True
    flip_exempt_directions: bool = True
    augmentation_magnitude: float = 5.0
    workers: int = 0
    max_broken_share: float = 0.01
    validation_images: int = 0

    @property
    def magnitude(self) -> float | None:
        """The magnitude of the random operations; None if there are none."""
        return self.augmentation_magnitude if self.augmentation == "random_augment" else None


def data_contradictions(data: DataConfig) -> Iterator[str]:
    """Yields one sentence per value that is out of range or contradicts another."""
    yield from negative((("data.workers", data.workers), ("data.validation_images", data.validation_images)))
    yield from not_a_share([("data.max_broken_share", data.max_broken_share)])
    if not data.directory:
        yield "data.directory is empty; expected the folder of a prepared dataset"
    if data.test_directory and not data.test_split:
        yield "data.test_directory is set and data.test_split is not; expected the name of a split, such as 'test'"
    if data.test_split and not data.validation_split:
        yield (
            "data.test_split is set and data.validation_split is not; the weights to test are chosen on validation: "
            "expected the name of that split, or no test_split: launch/evaluate.py measures any split"
        )
    for name in ("directory", "test_directory"):
        if "://" in (path := getattr(data, name)):
            yield f"data.{name} is {path}, an address; records are read from disks: mount or copy that folder"
    yield from _corpora_contradictions(data)
    if data.augmentation not in ("crop_and_flip", "random_augment"):
        yield f"data.augmentation is {data.augmentation!r}; expected 'crop_and_flip' or 'random_augment'"
    if not 0 <= data.augmentation_magnitude <= 10:
        yield f"data.augmentation_magnitude is {data.augmentation_magnitude}; expected a number from 0 to 10"
    low, high = data.crop_scale
    if not 0 < low <= high <= 1:
        yield f"data.crop_scale is {data.crop_scale}; expected 0 < low <= high <= 1"


def _corpora_contradictions(data: DataConfig) -> Iterator[str]:
    for folder in dict.fromkeys(data.corpora):
        if not folder:
            yield "data.corpora has an empty name; expected folders of prepared datasets"
        if "://" in folder:
            yield f"data.corpora names {folder}, an address; records are read from disks: mount or copy that folder"
        if (times := data.corpora.count(folder)) > 1:
            yield f"data.corpora names {folder} {times} times; expected it once: give it a larger weight"
    if data.corpus_weights and len(data.corpus_weights) != len(data.corpora):
        yield (
            f"data.corpus_weights has {len(data.corpus_weights)} number(s) for the {len(data.corpora)} folder(s) of "
            "data.corpora; expected one for each, or none at all"
        )
    yield from not_positive(("data.corpus_weights", weight) for weight in data.corpus_weights)
