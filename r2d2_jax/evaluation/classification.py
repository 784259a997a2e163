"""Classification without training: each image belongs to the class whose name, put into templates, is nearest to it."""

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from r2d2_jax.arrays import Params, checked
from r2d2_jax.data.classified_images import ClassifiedImages
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.encoder import Keep
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.evaluation.bootstrap import DRAWS, SEED, Interval, interval
from r2d2_jax.evaluation.nearest import cosine_blocks
from r2d2_jax.evaluation.progress import Progress
from r2d2_jax.evaluation.scorer import Scorer
from r2d2_jax.paths import user_path

logger = logging.getLogger(__name__)

PLACE = "{}"  # where a template has the class's name
# Ways in which Chinese captions name what a picture shows; our decision, as the article classifies nothing.
TEMPLATES = (
    "{}",
    "{}。",
    "一张{}的照片",
    "一张{}的图片",
    "一幅{}的画面",
    "这是{}",
    "照片里有{}",
    "图中是{}",
    "{}的特写照片",
    "一张清晰的{}照片",
)
TOP = 5  # the second cut-off beside the first; fewer where there are fewer classes
WORST_CLASSES, CONFUSIONS = 10, 3  # how many are listed, and how many of each


@dataclass(frozen=True)
class ClassFigures:
    """One class. images: how many show it. top1: in per cent, None without images.

    confused: the classes that most of its images were taken for, and how many, the most frequent first.
    """

    name: str
    images: int
    top1: float | None
    confused: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class ClassificationReport:
    """Accuracies in per cent.

    accuracy, chance: "top1" and, with more than two classes, "top5", or "top3" of three classes and so on; "per_class"
        is the mean of top1 over the classes that have images.
    classes: in the order of their numbers.
    intervals: 95 % of the accuracies over images.
    confusion: int64 [c c], how many images of a class (row) were taken for another (column).
    """

    accuracy: dict[str, float]
    chance: dict[str, float]
    classes: tuple[ClassFigures, ...]
    images: int
    intervals: dict[str, Interval]
    confusion: np.ndarray

    def worst(self) -> list[ClassFigures]:
        """The classes with the most mistakes by share, the worst first; classes without any are left out."""
        wrong = [each for each in self.classes if each.top1 is not None and each.confused]
        return sorted(wrong, key=lambda each: (each.top1, -each.images))[:WORST_CLASSES]


def evaluate_classification(
    scorer: Scorer,
    params: Params,
    images: ClassifiedImages,
    tokenizer: Tokenizer,
    templates: Sequence[str] = TEMPLATES,
) -> ClassificationReport:
    """Classifies every image of a split by cosine.

    Args:
        scorer: the compiled forwards.
        params: the model's parameters.
        images: the split.
        tokenizer: of the model's vocabulary.
        templates: each has `PLACE` where the class's name goes.
    """
    encoder = scorer.encoder
    texts = [template.replace(PLACE, name) for name in images.class_names for template in templates]
    input_ids, attention_mask = tokenizer(texts)
    _say_unknown(texts, np.any(input_ids == tokenizer.unk_id, axis=1))
    scorer.announce()
    text = encoder.encode_texts(params, input_ids, attention_mask, Keep.NOTHING)
    classes = class_embeddings(text.embed, len(templates))
    batches = images.image_batches(encoder.batch_size, encoder.own_rows())
    with Progress("images", images.num_images) as progress:
        image = encoder.encode_images(params, progress.over(batches), images.num_images, Keep.NOTHING)
    # Not `@`: NumPy may add in another order at the end of a row, which would break the tie of equal classes.
    scores = np.concatenate([block for _, block in cosine_blocks(image.embed, classes, encoder.mesh)])
    return classification_report(scores, images.label, images.class_names)


def _say_unknown(texts: Sequence[str], unknown: np.ndarray) -> None:
    if unknown.any():
        logger.warning(
            "%d of the %d texts of the classes have characters that the vocabulary lacks, such as %s",
            unknown.sum(), len(texts), texts[int(np.argmax(unknown))],
        )  # fmt: skip


@checked
def class_embeddings(embed: Float[np.ndarray, "b e"], templates: int) -> Float[np.ndarray, "c e"]:
    """The mean of each class's unit-norm text embeddings [c * templates, e], of unit norm again [c e]."""
    mean = embed.reshape(-1, templates, embed.shape[1]).mean(axis=1)
    norm = np.linalg.norm(mean, axis=1, keepdims=True)
    return mean / np.maximum(norm, np.finfo(np.float32).tiny)


@checked
def classification_report(
    scores: Float[np.ndarray, "i c"], label: Int[np.ndarray, " i"], names: Sequence[str]
) -> ClassificationReport:
    """What the scores are worth.

    The rank of an image's class is the number of other classes with a score that is not lower: a tie never helps, and
    NaN, as the class's score or as another's, is a mistake.

    Args:
        scores: of each image with each class.
        label: the class of each image.
        names: of the classes.
    """
    own = np.take_along_axis(scores, label[:, None], axis=1)
    ahead = ~(scores < own)
    ahead[np.arange(len(label)), label] = False
    rank = np.where(np.isnan(own[:, 0]), len(names), ahead.sum(axis=1))
    top = min(TOP, len(names))
    hits = {"top1": rank < 1} | ({f"top{top}": rank < top} if top > 2 else {})
    # Of the classes that are not behind the right one, the best; NaN counts as the best, as it does for the rank.
    order = np.where(ahead, np.nan_to_num(scores, nan=np.inf), -np.inf)
    taken = np.where(ahead.any(axis=1), np.argmax(order, axis=1), label)
    confusion = np.zeros((len(names), len(names)), np.int64)
    np.add.at(confusion, (label, taken), 1)
    classes = tuple(_class(number, names, row) for number, row in enumerate(confusion))
    shares = [each.top1 for each in classes if each.top1 is not None]
    cutoffs = {name: int(name.removeprefix("top")) for name in hits}
    accuracy = {name: 100 * float(np.mean(hit)) for name, hit in hits.items()}
    return ClassificationReport(
        accuracy=accuracy | {"per_class": float(np.mean(shares))},
        chance={name: 100 * cutoff / len(names) for name, cutoff in cutoffs.items()} | {"per_class": 100 / len(names)},
        classes=classes,
        images=len(label),
        intervals={name: _interval(hit) for name, hit in hits.items()},
        confusion=confusion,
    )


def _class(number: int, names: Sequence[str], row: np.ndarray) -> ClassFigures:
    """One class by its row of the confusion matrix."""
    count = int(row.sum())
    if not count:
        return ClassFigures(names[number], 0, None)
    others = Counter({other: int(times) for other, times in enumerate(row) if times and other != number})
    confused = tuple((names[other], times) for other, times in others.most_common(CONFUSIONS))
    return ClassFigures(names[number], count, 100 * int(row[number]) / count, confused)


def _interval(hit: np.ndarray) -> Interval:
    """Of resamples of the images; their hits are binomial."""
    return interval(100 * np.random.default_rng(SEED).binomial(len(hit), np.mean(hit), DRAWS) / len(hit))


def read_templates(given: str) -> tuple[str, ...]:
    """The templates of a file, one a line, or one template itself if it has `PLACE`.

    Raises:
        UserError: there is no such file, it has no line, or a line lacks `PLACE`.
    """
    if PLACE in given:
        return (given,)
    path = user_path(given)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        raise UserError(
            f"templates {given!r} is no UTF-8 file that can be read ({first_line(error)}), and no template, which has "
            f"{PLACE} where the class's name goes; give a file with one a line, or one such as 一张{PLACE}的照片"
        ) from error
    templates = tuple(line.strip() for line in lines if line.strip())
    if not templates:
        raise UserError(f"{path} has no template; expected one a line, such as 一张{PLACE}的照片")
    for number, line in enumerate(lines, start=1):
        if line.strip() and PLACE not in line:
            raise UserError(f"{path}, line {number}: {line.strip()!r} has no {PLACE}, where the class's name goes")
    return templates
