"""What the text-image cross encoder looks at in a picture for a word of its caption."""

import enum
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from r2d2_jax.arrays import Bool, Float, Int, UInt8, checked
from r2d2_jax.data.text.entities import Entity
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import UserError
from r2d2_jax.evaluation.progress import Progress
from r2d2_jax.inference import Ranker
from r2d2_jax.inputs import Images

logger = logging.getLogger(__name__)

TINY = 1e-12
AT_ONCE = 64  # covered pictures between two looks at the progress bar


class Reading(enum.Enum):
    """How attention becomes a map; `benchmarks/attention_on_objects.py` measures which lies best on the objects.

    RELATIVE: the words are masked, as in training for the masked-language-model term, so that the model has to look for
        them; the map is what these tokens read more than the other tokens of the text do (our decision).
    PLAIN: the whole text, and the attention of the words as it is.
    GRADIENT_WEIGHTED: the whole text, and attention times the positive part of its derivative of the match log-odds
        (Grad-CAM, as ALBEF's published code draws it).
    OCCLUSION: no attention, but what the whole model depends on: the words are masked, patch after patch is covered
        with the picture's mean colour, and the map is by how much that lowers the log-probability of the words (Zeiler
        and Fergus, arXiv 1311.2901, for words in place of classes).
    """

    RELATIVE = enum.auto()
    PLAIN = enum.auto()
    GRADIENT_WEIGHTED = enum.auto()
    OCCLUSION = enum.auto()


@dataclass(frozen=True)
class AttentionMap:
    """Where the model looks for a part of a text.

    entity: the part. patches: float32 [rows columns], shares of the map that sum to one; all zero where the reading
    leaves nothing. cls_share: the share of the words' attention that goes to CLS of the image, which has no place; None
    where no attention is read.
    """

    entity: Entity
    patches: np.ndarray
    cls_share: float | None


@dataclass(frozen=True)
class AttentionShare:
    """The share of a map inside of an object, and the object's share of the picture."""

    inside: float
    area: float

    @property
    def ratio(self) -> float:
        """How much denser the map is on the object than on the average of the picture; 1 says nothing."""
        return self.inside / self.area


def attention_maps(
    model: Ranker,
    images: Images,
    texts: Sequence[str],
    entities: Sequence[Entity],
    reading: Reading = Reading.RELATIVE,
    layer: int | None = None,
) -> list[AttentionMap]:
    """A map for each part of a text.

    Args:
        model: has cross encoders.
        images: one for all, or one for each entity.
        texts: one for each entity.
        entities: parts of the texts.
        reading: how attention becomes a map.
        layer: of the cross encoder, from 1; None takes the `default_layer`.

    Raises:
        UserError: the model has no cross encoders, no such layer or no head that the reading needs, an image cannot be
            read, or a part of a text has no token of its own.
    """
    if not model.matches:
        raise UserError(
            "the model has no cross encoders (PRD2), whose maps these are; name a model of the whole method"
        )
    layer = _checked_layer(model.config.cross.layers, reading, layer)
    tokenizer = model.tokenizer
    input_ids, mask = tokenizer(texts)
    places = np.array([token_places(tokenizer, text, entity) for text, entity in zip(texts, entities, strict=True)])
    _tell_unknown(input_ids == tokenizer.unk_id, places, entities)
    masked_ids = np.where(places, tokenizer.mask_id, input_ids)
    if reading is Reading.OCCLUSION:
        pixels = model.pixels(images)
        pixels = np.broadcast_to(pixels, (len(entities), *pixels.shape[1:]))
        asked = zip(pixels, input_ids, masked_ids, mask, places, strict=True)
        with Progress("covered pictures", len(entities) * (model.config.image.patches + 1)) as progress:
            found = [occlusion(model, *row, progress) for row in asked]
        return [AttentionMap(entity, patches, None) for entity, patches in zip(entities, found, strict=True)]
    if reading is Reading.RELATIVE:
        input_ids = masked_ids
    weights, gradient = model.attention(images, input_ids, mask)
    rows = zip(weights[:, layer - 1], gradient[:, layer - 1], places, mask, entities, strict=True)
    return [_map(*row, reading) for row in rows]


def _tell_unknown(unknown: np.ndarray, places: np.ndarray, entities: Sequence[Entity]) -> None:
    """Warns of entities of which the vocabulary has no token at all: to the model any rare word may stand there."""
    rows = zip(unknown, places, entities, strict=True)
    if named := [entity.text for row, place, entity in rows if row[place].all()]:
        logger.warning("the model's vocabulary has no token for %s; do not read much into that map", "、".join(named))


def default_layer(layers: int, reading: Reading) -> int:
    """The last layer, or with gradients the middle one, as in ALBEF's published code: the third of six."""
    return max(1, layers // 2) if reading is Reading.GRADIENT_WEIGHTED else layers


def _checked_layer(layers: int, reading: Reading, layer: int | None) -> int:
    if reading is Reading.OCCLUSION and layer is not None:
        raise UserError(f"layer is {layer}, but occlusion asks the whole model; leave the layer out")
    layer = default_layer(layers, reading) if layer is None else layer
    if not 1 <= layer <= layers:
        raise UserError(f"layer is {layer}; the model's cross encoder has layers 1 to {layers}")
    if reading is Reading.GRADIENT_WEIGHTED and layer == layers:
        raise UserError(
            f"layer {layer} is the last one, of which the match reads CLS alone: attention of words has no gradient "
            "there. Name an earlier layer, or leave gradients out"
        )
    return layer


def token_places(tokenizer: Tokenizer, text: str, entity: Entity) -> np.ndarray:
    """bool [l], True on the tokens of a text that have a character of the entity.

    Raises:
        UserError: there is none, because the text is cut before it, or it is blank.
    """
    start, end = tokenizer.offsets(text).T
    places = (start < end) & (start < entity.end) & (end > entity.start)
    if not places.any():
        raise UserError(
            f"the entity {entity.text!r} is not among the {tokenizer.text_length} tokens that the model reads of the "
            f"text {text!r}; shorten the text, or name an earlier part of it"
        )
    return places


@checked
def _map(
    weights: Float[np.ndarray, "h l n"],
    gradient: Float[np.ndarray, "h l n"],
    places: Bool[np.ndarray, " l"],
    mask: Bool[np.ndarray, " l"],
    entity: Entity,
    reading: Reading,
) -> AttentionMap:
    """The map of one entity: heads are averaged, and so are its tokens."""
    attention = weights.mean(axis=0)
    cls_share = float(attention[places, 0].mean())
    if reading is Reading.GRADIENT_WEIGHTED:
        patches = (weights * np.maximum(gradient, 0)).mean(axis=0)[places, 1:].mean(axis=0)
    elif reading is Reading.RELATIVE:
        patches = relative_attention(attention[places, 1:], attention[mask & ~places, 1:])
    else:
        patches = attention[places, 1:].mean(axis=0)
    return AttentionMap(entity, _shares(patches), cls_share)


def _shares(patches: np.ndarray) -> np.ndarray:
    """[n] values of patches as the map [rows columns] that sums to one, if they are not all zero."""
    side = round(len(patches) ** 0.5)
    return (patches / max(patches.sum(), TINY)).reshape(side, side).astype(np.float32)


@checked
def relative_attention(
    own: Float[np.ndarray, "own_l n"], others: Float[np.ndarray, "other_l n"]
) -> Float[np.ndarray, " n"]:
    """What some tokens read more than others: max(0, a log(a / b)), a and b their mean attention.

    These are the positive terms of the Kullback-Leibler divergence of a from b. What every token reads, whatever it
    says, cancels: patches in which the tower has left what it knows of the whole picture.

    Args:
        own: attention of the tokens in question to each patch.
        others: of the other tokens of the text, CLS and SEP among them.
    """
    a, b = own.mean(axis=0) + TINY, others.mean(axis=0) + TINY
    return np.maximum(0, a * np.log(a / b))


@checked
def occlusion(
    model: Ranker,
    pixels: UInt8[np.ndarray, "h w 3"],
    input_ids: Int[np.ndarray, " l"],
    masked_ids: Int[np.ndarray, " l"],
    mask: Bool[np.ndarray, " l"],
    places: Bool[np.ndarray, " l"],
    progress: Progress,
) -> Float[np.ndarray, "rows columns"]:
    """The map of one entity: max(0, log p(words | picture) - log p(words | picture with the patch covered))."""
    pictures = np.stack([pixels, *covered(pixels, model.config.image.patch_size)])
    batches = (pictures[start : start + AT_ONCE] for start in range(0, len(pictures), AT_ONCE))
    asked = masked_ids[None], mask[None]
    found = [
        model.token_log_probabilities(list(batch), *asked, np.tile(input_ids, (len(batch), 1)))[:, places].sum(axis=1)
        for batch in progress.over(batches)
    ]
    whole, *less = np.concatenate(found)
    return _shares(np.maximum(0, whole - np.array(less)))


def covered(pixels: np.ndarray, side: int) -> Iterator[np.ndarray]:
    """The picture [h w 3] with each of its square patches, row by row, covered by the picture's mean colour."""
    colour = pixels.mean(axis=(0, 1)).round().astype(np.uint8)
    for row in range(0, pixels.shape[0], side):
        for column in range(0, pixels.shape[1], side):
            picture = pixels.copy()
            picture[row : row + side, column : column + side] = colour
            yield picture


@checked
def on_picture(patches: Float[np.ndarray, "rows columns"], height: int, width: int) -> Float[np.ndarray, "h w"]:
    """The map over a picture's own pixels: bilinear between the middles of patches; it sums to one, if it is not zero.

    The model sees the whole picture resized to a square, so patches have the picture's own shape.
    """
    heat = cv2.resize(patches.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return heat / max(float(heat.sum()), TINY)


@checked
def attention_share(heat: Float[np.ndarray, "h w"], mask: Float[np.ndarray, "h w"]) -> AttentionShare:
    """How much of a map lies on an object.

    Args:
        heat: of `on_picture`.
        mask: the share of each pixel that the object covers; 0 or 1 for a box.
    """
    return AttentionShare(float((heat * mask).sum()), float(mask.mean()))
