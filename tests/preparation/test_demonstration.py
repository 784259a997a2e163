"""The demonstration's captions are true, its splits are disjoint, and its foils cannot be told by their words.

The checks read captions and pixels by their own rules, never by the generator's.
"""

import collections
import functools
import hashlib
import io
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import load_tokenizer
from r2d2_jax.errors import UserError
from r2d2_jax.preparation import demonstration as synthetic

Thing = tuple[str, str, str]  # colour, size, shape
Reading = tuple[str, Thing, Thing]  # axis, the left or upper thing, the right or lower thing

COLOURS = {
    "红": (220, 40, 40),
    "绿": (40, 160, 60),
    "蓝": (40, 80, 220),
    "黄": (245, 205, 30),
    "紫": (160, 50, 190),
    "黑": (25, 25, 25),
}
THING = r"([大小])([红绿蓝黄紫黑])(圆|方块|三角|十字)"
AXES = {"左边": "右边", "上面": "下面"}


@functools.cache
def read_caption(text: str) -> Reading:
    """What the text says, whichever way it says it."""
    if match := re.fullmatch(f"{THING}在{THING}(左边|上面)", text):
        *words, near = match.groups()
    elif match := re.fullmatch(f"(左边|上面){THING}，(右边|下面){THING}", text):
        near, *words = match.groups()
        assert words.pop(3) == AXES[near], text
    else:
        raise AssertionError(f"cannot read {text}")
    return "左右" if near == "左边" else "上下", as_thing(*words[:3]), as_thing(*words[3:])


def as_thing(size: str, colour: str, shape: str) -> Thing:
    return colour, size, shape


def read_thing(pixels: np.ndarray, contrast: np.ndarray) -> Thing:
    """Colour by the middle pixel, size by the extent, shape by how the extent is filled."""
    mask = contrast > 0.5 * contrast.max()
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    middle = pixels[(rows[0] + rows[-1]) // 2, (columns[0] + columns[-1]) // 2]
    colour = min(COLOURS, key=lambda name: float(np.abs(np.subtract(COLOURS[name], middle)).sum()))
    cover = contrast / contrast.max()  # 0 to 1: a pixel on an edge is covered in part
    filled = cover.sum() / (cover.sum(0).max() * cover.sum(1).max())  # circle pi / 4, cross and triangle about 1 / 2
    broad_foot = box[-2:].any(0).mean() > 0.8
    if filled > 0.65:
        shape = "方块" if filled > 0.89 else "圆"
    elif broad_foot:
        shape = "三角"
    else:
        shape = "十字"
    return colour, "大" if max(box.shape) > 0.29 * len(pixels) else "小", shape


@functools.cache
def read_picture(encoded: bytes) -> Reading:
    """What the picture shows, from its pixels alone."""
    pixels = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB")).astype(int)
    contrast = np.abs(pixels - np.median(pixels, axis=(0, 1))).sum(-1)
    side = len(contrast)
    quarter, middle = slice(side // 5, 3 * side // 10), slice(2 * side // 5, 3 * side // 5)
    axis = "左右" if (contrast[middle, quarter] > 100).sum() > (contrast[quarter, middle] > 100).sum() else "上下"
    ring = round(0.195 * side)  # a ring that no caption names lies in one of the borders along the axis
    near, far = contrast.copy(), contrast.copy()
    if axis == "上下":
        near[:, :ring] = near[:, -ring:] = far[:, :ring] = far[:, -ring:] = 0
        near[side // 2 :], far[: side // 2] = 0, 0
    else:
        near[:ring] = near[-ring:] = far[:ring] = far[-ring:] = 0
        near[:, side // 2 :], far[:, : side // 2] = 0, 0
    return axis, read_thing(pixels, near), read_thing(pixels, far)


def texts_of(examples: list[synthetic.PlainExample]) -> list[str]:
    return [text for example in examples for text in example["captions"]]


@functools.cache
def generate(seed: int = 0, train_images: int = 6000) -> dict[str, list[synthetic.PlainExample]]:
    return {
        name: list(examples)
        for name, examples in synthetic.demonstration_splits(seed, train_images=train_images).items()
    }


@pytest.fixture(scope="module")
def splits() -> dict[str, list[synthetic.PlainExample]]:
    return generate()


def test_splits_have_the_documented_sizes(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    assert {name: len(examples) for name, examples in splits.items()} == {
        "train": 6000,
        "validation": 320,
        "swapped": 432,
    }
    assert len({read_caption(example["captions"][0]) for example in splits["validation"]}) == 320


def test_same_seed_gives_the_same_bytes() -> None:
    assert generate.__wrapped__(seed=1, train_images=50) == generate(seed=1, train_images=50)


def test_seed_zero_gives_the_texts_it_always_gave(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    """Texts only: the pixels may change with the drawing library's version, the split and the captions may not."""
    digest = hashlib.blake2b(digest_size=8)
    for name in ("train", "validation", "swapped"):
        for example in splits[name]:
            digest.update("/".join([example["image_id"], *example["captions"]]).encode())
    assert digest.hexdigest() == "f55474afd1b8564a"


def test_another_seed_gives_other_pictures_and_another_split() -> None:
    one, other = generate(seed=0, train_images=50), generate(seed=1, train_images=50)
    for name in one:
        assert {example["image"] for example in one[name]}.isdisjoint(example["image"] for example in other[name])
    assert set(texts_of(one["validation"])) != set(texts_of(other["validation"]))


def test_more_pictures_leave_the_first_ones_as_they_are(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    assert generate(seed=0, train_images=50)["train"] == splits["train"][:50]


def test_every_caption_is_true_of_its_picture(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    for name in ("train", "validation"):
        for example in splits[name]:
            shown = read_picture(example["image"])
            assert [read_caption(text) for text in example["captions"]] == [shown] * 2, example["captions"]
            assert len(set(example["captions"])) == 2


def test_every_picture_is_a_colour_png_of_the_asked_size() -> None:
    for examples in synthetic.demonstration_splits(train_images=2, image_size=64).values():
        picture = Image.open(io.BytesIO(next(examples)["image"]))
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 64))


def test_no_held_out_caption_occurs_in_training(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    training = set(texts_of(splits["train"]))
    assert training.isdisjoint(texts_of(splits["validation"]))
    assert training.isdisjoint(texts_of(splits["swapped"]))


def test_exchanges_of_attributes_stay_on_one_side_of_the_split(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    def combinations(name: str) -> set[tuple[tuple[str, ...], ...]]:
        readings = (read_caption(text) for text in texts_of(splits[name]))
        return {tuple(tuple(sorted(pair)) for pair in zip(near, far, strict=True)) for _, near, far in readings}

    assert combinations("train").isdisjoint(combinations("validation"))
    assert combinations("swapped") <= combinations("validation")


def test_training_shows_every_scene_that_is_not_held_out(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    counts = collections.Counter(read_caption(example["captions"][0]) for example in splits["train"])
    assert len(counts) == 2880 - 320
    assert set(counts.values()) == {2, 3}


def test_pictures_of_one_scene_differ_and_share_their_image_id(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    identity_of: dict[Reading, str] = {}
    for example in splits["train"]:
        assert identity_of.setdefault(read_caption(example["captions"][0]), example["image_id"]) == example["image_id"]
    assert len(set(identity_of.values())) == len(identity_of)
    everything = [example["image"] for examples in splits.values() for example in examples]
    assert len(set(everything)) == len(everything)


def test_each_validation_caption_is_true_of_one_picture_only(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    shown = [read_picture(example["image"]) for example in splits["validation"]]
    assert len(set(shown)) == len(shown)
    assert len({example["image_id"] for example in splits["validation"]}) == len(shown)


def test_the_foil_has_the_same_characters_and_is_false(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    for example in splits["swapped"]:
        true, foil = example["captions"]
        assert collections.Counter(true) == collections.Counter(foil)
        assert read_caption(true) == read_picture(example["image"]) != read_caption(foil)


def test_foils_exchange_colours_shapes_and_sizes_equally_often(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    kinds: collections.Counter[str] = collections.Counter()
    for example in splits["swapped"]:
        true, foil = map(read_caption, example["captions"])
        changed = [attribute for attribute in range(3) if true[1][attribute] != foil[1][attribute]]
        assert len(changed) == 1
        assert true[0] == foil[0]
        assert true[2][changed[0]] == foil[1][changed[0]]
        kinds[("colour", "size", "shape")[changed[0]]] += 1
    assert kinds == {"colour": 144, "shape": 144, "size": 144}


def test_a_bag_of_words_and_a_prior_over_captions_score_half(splits: dict[str, list[synthetic.PlainExample]]) -> None:
    """A bag of words ties on every record; whatever scores captions alone is right on one record of each pair."""
    weights = np.random.default_rng(0).normal(size=0x10000)
    records = splits["swapped"]
    bags = [[weights[sorted(map(ord, text))].sum() for text in example["captions"]] for example in records]
    assert all(true == foil for true, foil in bags)
    for first, second in zip(records[::2], records[1::2], strict=True):
        assert first["captions"] == second["captions"][::-1]
        assert first["image_id"] != second["image_id"]
    priors = [[hashlib.md5(text.encode()).digest() for text in example["captions"]] for example in records]
    assert np.mean([true > foil for true, foil in priors]) == 0.5


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demonstration")
    summaries = synthetic.write_demonstration(folder, train_images=50)
    assert [(summary.name, summary.records) for summary in summaries] == [
        ("train", 50),
        ("validation", 320),
        ("swapped", 432),
    ]
    return folder


def test_written_records_are_the_generated_examples(written: Path) -> None:
    for name, examples in generate(seed=0, train_images=50).items():
        source = RecordSource(written, name)
        records = [source[index] for index in range(len(source))]
        assert [(record.image, list(record.captions), record.image_id) for record in records] == [
            (example["image"], example["captions"], example["image_id"]) for example in examples
        ]


def test_writing_again_gives_the_same_files(written: Path, tmp_path: Path) -> None:
    synthetic.write_demonstration(tmp_path, train_images=50)
    files = [path.relative_to(written) for path in sorted(written.rglob("*")) if path.is_file()]
    assert len(files) >= 4
    assert [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()] == files
    for file in files:
        assert (tmp_path / file).read_bytes() == (written / file).read_bytes(), file


def test_vocabulary_covers_every_caption(splits: dict[str, list[synthetic.PlainExample]], written: Path) -> None:
    tokens = (written / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert tokens[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(tokens)) == len(tokens)
    tokenizer = load_tokenizer(str(written), text_length=15)  # transformers' BERT tokenizer
    texts = list({text for examples in splits.values() for text in texts_of(examples)})
    input_ids, attention_mask = tokenizer(texts)
    assert tokenizer.unk_id not in input_ids
    assert attention_mask.sum(1).tolist() == [len(text) + 2 for text in texts]  # every character, CLS and SEP


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train_images": 0}, "train_images is 0, expected 1 or more"),
        ({"validation_scenes": 300}, "validation_scenes is 300, expected a multiple of 8 from 8 to 1440"),
        ({"validation_scenes": 0}, "validation_scenes is 0"),
        ({"swapped_images": 257}, "swapped_images is 257, expected an even number from 2 to"),
        ({"swapped_images": 5000}, "swapped_images is 5000, .* with 320 held-out scenes"),
        ({"image_size": 16}, "image_size is 16, but the shapes need 32 pixels or more"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        synthetic.demonstration_splits(**arguments)


def test_render_refuses_a_picture_that_is_too_small() -> None:
    with pytest.raises(UserError, match="image_size is 8, but the shapes need 32 pixels or more"):
        synthetic.render(synthetic.all_scenes()[0], np.random.default_rng(0), image_size=8)
