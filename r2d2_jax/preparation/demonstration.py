"""Generated scenes with Chinese captions: a demonstration that a bag of words cannot solve.

A scene holds two objects, each with a colour, a shape and a size, one beside or above the other: 大红圆在小蓝方块左边.
Every caption names all attributes of both, so it is true of exactly one scene. Within a scene the two colours differ
and the two shapes differ, so exchanging the colours, or the shapes, always makes another scene, whose caption has the
same characters in another order. A ring that no caption names lies near a border, in any colour, so that the colours of
a picture do not reveal the colour of a named object.

Captions name the left or upper object first. If either could come first (小蓝方块在大红圆右边), the relation would be
an exclusive-or of two words; models of this size learnt colours and sizes in minutes, but guessed the places.

The scenes are split by *combination*: the unordered colours, shapes and sizes. All scenes of a combination, hence a
scene and all its exchanges, are training scenes or held out together. The validation and the swapped split show
held-out scenes only, so none of their captions occurs in training.

Left and right have a meaning here: train on these records without horizontal flips, and with crops that keep both
objects. All numbers in this file are our decision.
"""

import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from r2d2_jax.atomic import written_whole
from r2d2_jax.data.text.tokenizer import SPECIAL_TOKENS
from r2d2_jax.errors import UserError
from r2d2_jax.paths import user_path
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.scenes import (
    EXCHANGES,
    TEMPLATES,
    SceneLayout,
    SyntheticScene,
    all_scenes,
    caption,
    captions,
    check_image_size,
    drawn,
    exchanged,
    laid_out,
    render,
)
from r2d2_jax.preparation.writer import SplitSummary, write_dataset

_SMALLEST_COMBINATION = 8  # scenes: 2 ways to pair colours with shapes, 2 orders, 2 axes

PlainExample = dict[str, Any]  # image: PNG bytes, captions: list of text, image_id: text


def split_scenes(seed: int = 0, validation_scenes: int = 320) -> tuple[list[SyntheticScene], list[SyntheticScene]]:
    """Splits all scenes into training scenes and held-out scenes, whole combinations at a time.

    Args:
        seed: another seed holds out other combinations.
        validation_scenes: held-out scenes: a multiple of 8 (the smallest combination), at most half of all scenes.

    Returns:
        (training scenes, held-out scenes); exactly `validation_scenes` of the latter.

    Raises:
        UserError: `validation_scenes` is not such a number.
    """
    scenes = all_scenes()
    if validation_scenes % _SMALLEST_COMBINATION or not 0 < validation_scenes <= len(scenes) // 2:
        raise UserError(
            f"validation_scenes is {validation_scenes}, expected a multiple of {_SMALLEST_COMBINATION} "
            f"from {_SMALLEST_COMBINATION} to {len(scenes) // 2}: choose such a number"
        )
    members: dict[str, list[SyntheticScene]] = {}
    for scene in scenes:
        members.setdefault(scene.combination, []).append(scene)
    held_out: list[SyntheticScene] = []
    for combination in sorted(members, key=lambda key: _digest(seed, "split", key)):
        if len(held_out) + len(members[combination]) <= validation_scenes:
            held_out += members[combination]
    unseen = set(held_out)
    return [scene for scene in scenes if scene not in unseen], held_out


def demonstration_splits(
    seed: int = 0,
    train_images: int = 6000,
    validation_scenes: int = 320,
    swapped_images: int = 432,
    image_size: int = 48,
) -> dict[str, Iterator[PlainExample]]:
    """Generates the records of the three splits, the same for the same arguments.

    `train` goes through the training scenes in random order, again and again with new pictures. Pictures of one scene
    share their `image_id`: every caption of one is true of the others, so they must not be negatives of each other.
    `validation` has one picture of each held-out scene; every caption is true of its own picture only.
    `swapped` has pictures of held-out scenes with the captions [true, foil]. The foil exchanges colours, shapes or
    sizes, and so has the characters of the true caption. The next record is the picture of which the foil is true,
    with the same two captions in reverse: a model that sees only words, or only a bag of them, scores 50 %.

    Args:
        seed: seed of the split of the scenes and of all pictures and captions.
        train_images: records of the training split, 1 or more.
        validation_scenes: records of the validation split, see `split_scenes`.
        swapped_images: records of the swapped split, even, 2 or more; colours, shapes and sizes are exchanged equally
            often as long as there are enough pairs.
        image_size: side of the square pictures in pixels, 32 or more.

    Returns:
        Split name -> iterator over examples: `image` PNG bytes, `captions` list of text, `image_id` text.

    Raises:
        UserError: a number is out of its range.
    """
    if train_images < 1:
        raise UserError(f"train_images is {train_images}, expected 1 or more: raise it")
    check_image_size(image_size)
    training, held_out = split_scenes(seed, validation_scenes)
    pairs = _swapped_pairs(seed, held_out)
    if swapped_images % 2 or not 0 < swapped_images <= 2 * len(pairs):
        raise UserError(
            f"swapped_images is {swapped_images}, expected an even number from 2 to {2 * len(pairs)} "
            f"with {validation_scenes} held-out scenes: choose such a number, or raise validation_scenes"
        )
    return {
        "train": _train_examples(seed, training, train_images, image_size),
        "validation": _validation_examples(seed, held_out, image_size),
        "swapped": _swapped_examples(seed, pairs[: swapped_images // 2], image_size),
    }


def write_demonstration(
    output: str | os.PathLike[str],
    seed: int = 0,
    train_images: int = 6000,
    validation_scenes: int = 320,
    swapped_images: int = 432,
    image_size: int = 48,
) -> list[SplitSummary]:
    """Writes the splits `train`, `validation` and `swapped` as a prepared dataset, and `vocab.txt` beside it.

    Args:
        output: the folder to hold the dataset; made if absent.
        seed, train_images, validation_scenes, swapped_images, image_size: see `demonstration_splits`.

    Returns:
        What was written, split by split.

    Raises:
        UserError: a number is out of its range, the folder holds a dataset already, or the disk is full.
    """
    splits = demonstration_splits(seed, train_images, validation_scenes, swapped_images, image_size)
    summaries = write_dataset(output, {name: map(_record, examples) for name, examples in splits.items()})
    tokens = training_vocabulary(seed, validation_scenes)
    with written_whole(user_path(output) / "vocab.txt") as unfinished:
        unfinished.write_text("\n".join(tokens) + "\n", encoding="utf-8", newline="\n")
    return summaries


def build_vocabulary(texts: Iterable[str]) -> list[str]:
    """Returns the WordPiece tokens of the texts, [PAD] [UNK] [CLS] [SEP] [MASK] first; one per Chinese character."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = tokenizers.normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    trainer = tokenizers.trainers.WordPieceTrainer(special_tokens=list(SPECIAL_TOKENS), show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    identities = tokenizer.get_vocab()
    return sorted(identities, key=identities.__getitem__)


def training_vocabulary(seed: int = 0, validation_scenes: int = 320) -> list[str]:
    """Returns the vocabulary of all captions that the training scenes can have, whatever the number of pictures."""
    training, _ = split_scenes(seed, validation_scenes)
    return build_vocabulary(caption(scene, template) for scene in training for template in TEMPLATES)


def _train_examples(
    seed: int, scenes: list[SyntheticScene], train_images: int, image_size: int
) -> Iterator[PlainExample]:
    order = _stream(seed, "train")
    for start in range(0, train_images, len(scenes)):
        for offset, position in enumerate(order.permutation(len(scenes))[: train_images - start]):
            scene, rng = scenes[position], _stream(seed, "train", start + offset)
            yield _example(render(scene, rng, image_size), captions(scene, rng), f"train/{scene.name}")


def _validation_examples(seed: int, scenes: list[SyntheticScene], image_size: int) -> Iterator[PlainExample]:
    for scene, layout, texts in laid_out_validation(seed, scenes):
        yield _example(drawn(layout, image_size), texts, f"validation/{scene.name}")


def laid_out_validation(
    seed: int, scenes: Iterable[SyntheticScene]
) -> Iterator[tuple[SyntheticScene, SceneLayout, list[str]]]:
    """Each held-out scene with the layout and the two captions that it has in the validation split."""
    for scene in scenes:
        rng = _stream(seed, "validation", scene.name)
        yield scene, laid_out(scene, rng), captions(scene, rng)


def _swapped_pairs(seed: int, scenes: list[SyntheticScene]) -> list[tuple[SyntheticScene, SyntheticScene, str]]:
    """Returns (scene, exchanged scene, kind of exchange), cycling through the kinds until each runs out."""
    by_kind = []
    for what in EXCHANGES:
        both = ((scene, exchanged(scene, what)) for scene in scenes)
        pairs = [(scene, other, what) for scene, other in both if scene.name < other.name]  # each pair once
        order = _stream(seed, "pairs", what).permutation(len(pairs))
        by_kind.append([pairs[position] for position in order])
    turns = itertools.zip_longest(*by_kind)
    return [pair for turn in turns for pair in turn if pair is not None]


def _swapped_examples(
    seed: int, pairs: list[tuple[SyntheticScene, SyntheticScene, str]], image_size: int
) -> Iterator[PlainExample]:
    for number, (scene, other, what) in enumerate(pairs):
        rng = _stream(seed, "swapped", number)
        template = TEMPLATES[rng.integers(0, len(TEMPLATES))]
        for shown, foil in ((scene, other), (other, scene)):
            texts = [caption(shown, template), caption(foil, template)]
            yield _example(render(shown, rng, image_size), texts, f"swapped/{what}/{shown.name}")


def _example(picture: Image.Image, texts: list[str], image_id: str) -> PlainExample:
    encoded = io.BytesIO()
    picture.save(encoded, format="PNG")
    return {"image": encoded.getvalue(), "captions": texts, "image_id": image_id}


def _record(example: PlainExample) -> Example:
    return Example(image=example["image"], captions=tuple(example["captions"]), image_id=example["image_id"])


def _stream(seed: int, *names: object) -> np.random.Generator:
    """Returns an own random stream for each seed and names, so that no record depends on another."""
    return np.random.Generator(np.random.PCG64(int.from_bytes(_digest(seed, *names), "big")))


def _digest(seed: int, *names: object) -> bytes:
    return hashlib.blake2b("/".join(map(str, (seed, *names))).encode(), digest_size=16).digest()
