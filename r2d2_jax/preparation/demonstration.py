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

import dataclasses
import hashlib
import io
import itertools
import os
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import tokenizers
from PIL import Image, ImageDraw

from r2d2_jax.atomic import written_whole
from r2d2_jax.data.text.tokenizer import SPECIAL_TOKENS
from r2d2_jax.errors import UserError
from r2d2_jax.paths import user_path
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import SplitSummary, write_dataset

COLOURS: dict[str, tuple[int, int, int]] = {
    "红": (220, 40, 40),
    "绿": (40, 160, 60),
    "蓝": (40, 80, 220),
    "黄": (245, 205, 30),
    "紫": (160, 50, 190),
    "黑": (25, 25, 25),
}
SHAPES = ("圆", "方块", "三角", "十字")
SIZES: dict[str, float] = {"大": 0.19, "小": 0.115}  # half the object's extent, as a share of the picture's side
OPPOSITES: dict[str, str] = {"左边": "右边", "上面": "下面"}  # where the first object is -> where the second is
EXCHANGES = ("colour", "shape", "size")

# `near` is the place of the first object, `far` of the second. Both templates mean the same.
TEMPLATES = (
    "{first}在{second}{near}",
    "{near}{first}，{far}{second}",
)

_SUPERSAMPLING = 4
_SMALLEST_IMAGE = 32  # pixels; below it a small cross and a small square look alike
_SMALLEST_COMBINATION = 8  # scenes: 2 ways to pair colours with shapes, 2 orders, 2 axes

PlainExample = dict[str, Any]  # image: PNG bytes, captions: list of text, image_id: text


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object: `colour` a key of COLOURS, `shape` one of SHAPES, `size` a key of SIZES."""

    colour: str
    shape: str
    size: str

    @property
    def phrase(self) -> str:
        """The object as a phrase, such as 大红圆."""
        return f"{self.size}{self.colour}{self.shape}"


@dataclasses.dataclass(frozen=True)
class SyntheticScene:
    """Two objects; `relation` (左边 or 上面) is the place of `first`, seen from `second`."""

    first: SceneObject
    second: SceneObject
    relation: str

    @property
    def combination(self) -> str:
        """A key that no exchange of attributes between the two objects changes; the unit of the split."""
        pairs = (
            (self.first.colour, self.second.colour),
            (self.first.shape, self.second.shape),
            (self.first.size, self.second.size),
        )
        return "|".join("+".join(sorted(pair)) for pair in pairs)

    @property
    def name(self) -> str:
        """A unique name."""
        return f"{self.first.phrase}-{self.relation}-{self.second.phrase}"


def all_scenes() -> list[SyntheticScene]:
    """Returns every scene of two objects that differ in colour and in shape: 2,880, in a fixed order."""
    objects = [SceneObject(*parts) for parts in itertools.product(COLOURS, SHAPES, SIZES)]
    return [
        SyntheticScene(first, second, relation)
        for first, second in itertools.permutations(objects, 2)
        if first.colour != second.colour and first.shape != second.shape
        for relation in OPPOSITES
    ]


def exchanged(scene: SyntheticScene, what: str) -> SyntheticScene:
    """Returns the scene in which the two objects have exchanged their colours, shapes or sizes.

    Args:
        scene: the scene.
        what: one of EXCHANGES. With "size" and two objects of one size, the result is the scene itself.
    """
    first, second = scene.first, scene.second
    return dataclasses.replace(
        scene,
        first=dataclasses.replace(first, **{what: getattr(second, what)}),
        second=dataclasses.replace(second, **{what: getattr(first, what)}),
    )


def caption(scene: SyntheticScene, template: str) -> str:
    """Returns the caption of the scene by one of TEMPLATES."""
    return template.format(
        first=scene.first.phrase, second=scene.second.phrase, near=scene.relation, far=OPPOSITES[scene.relation]
    )


def captions(scene: SyntheticScene, rng: np.random.Generator) -> list[str]:
    """Returns the scene's two true captions, in random order."""
    return [caption(scene, TEMPLATES[position]) for position in rng.permutation(len(TEMPLATES))]


def render(scene: SyntheticScene, rng: np.random.Generator, image_size: int = 48) -> Image.Image:
    """Draws the scene on a light grey ground; places, sizes and shades vary a little with `rng`.

    The two objects never touch, and each stays in its own half of the picture.

    Args:
        scene: what to draw.
        rng: source of the variation.
        image_size: side of the square picture in pixels, 32 or more.

    Returns:
        An RGB picture of image_size x image_size pixels.

    Raises:
        UserError: the picture would be too small to tell the shapes apart.
    """
    _check_image_size(image_size)
    side = image_size * _SUPERSAMPLING
    ground = int(rng.integers(205, 246))
    picture = Image.new("RGB", (side, side), (ground, ground, ground))
    draw = ImageDraw.Draw(picture)
    for item, middle in ((scene.first, 0.25), (scene.second, 0.75)):
        along = middle + rng.uniform(-0.035, 0.035)
        across = 0.5 + rng.uniform(-0.08, 0.08)
        centre = (along, across) if scene.relation == "左边" else (across, along)
        radius = SIZES[item.size] * rng.uniform(0.93, 1.07)
        shade = rng.integers(-12, 13, size=3)
        colour = tuple(int(value) for value in np.clip(np.add(COLOURS[item.colour], shade), 0, 255))
        _draw_shape(draw, item.shape, centre[0] * side, centre[1] * side, radius * side, colour)
    _draw_distractor(draw, scene, rng, side)
    return picture.reduce(_SUPERSAMPLING)


def _draw_distractor(draw: ImageDraw.ImageDraw, scene: SyntheticScene, rng: np.random.Generator, side: int) -> None:
    """Draws a ring of a random colour near one of the borders that the two objects never reach."""
    along, across = rng.uniform(0.12, 0.88), rng.choice((0.1, 0.9))
    x, y = (along, across) if scene.relation == "左边" else (across, along)
    colour = tuple(COLOURS.values())[rng.integers(len(COLOURS))]
    box = [side * (x - 0.08), side * (y - 0.08), side * (x + 0.08), side * (y + 0.08)]
    draw.ellipse(box, outline=colour, width=round(0.035 * side))


def _check_image_size(image_size: int) -> None:
    if image_size < _SMALLEST_IMAGE:
        raise UserError(f"image_size is {image_size}, but the shapes need {_SMALLEST_IMAGE} pixels or more: raise it")


def _draw_shape(
    draw: ImageDraw.ImageDraw, shape: str, x: float, y: float, radius: float, colour: tuple[int, ...]
) -> None:
    if shape == "圆":
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    elif shape == "方块":
        half = 0.9 * radius  # so that a square does not look larger than a circle
        draw.rectangle((x - half, y - half, x + half, y + half), fill=colour)
    elif shape == "三角":
        draw.polygon(((x, y - radius), (x - radius, y + 0.85 * radius), (x + radius, y + 0.85 * radius)), fill=colour)
    else:
        arm = 0.3 * radius  # thin enough that a small cross never blurs into a circle
        draw.rectangle((x - radius, y - arm, x + radius, y + arm), fill=colour)
        draw.rectangle((x - arm, y - radius, x + arm, y + radius), fill=colour)


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
    _check_image_size(image_size)
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
    for scene in scenes:
        rng = _stream(seed, "validation", scene.name)
        yield _example(render(scene, rng, image_size), captions(scene, rng), f"validation/{scene.name}")


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
