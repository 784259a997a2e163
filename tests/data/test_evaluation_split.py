"""Evaluation leaves out nothing usable."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_data import encode, example

from r2d2_jax.data import evaluation_images
from r2d2_jax.data.evaluation_split import EvaluationSplit
from r2d2_jax.data.image.transforms import evaluation_image
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset


def test_evaluation_split_has_everything(dataset: Path, tokenizer: Tokenizer) -> None:
    split = EvaluationSplit(RecordSource(dataset, "validation"), tokenizer, 16)
    assert split.num_images == 5
    assert sorted(split.image_ids) == [f"image{number}" for number in range(100, 105)]
    assert len(split.captions) == 10
    assert split.pairs[:, 0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert split.pairs.dtype == np.int32
    assert split.captions[::2] == [name.removeprefix("image") + "只狗" for name in split.image_ids]
    np.testing.assert_array_equal(split.input_ids, tokenizer(split.captions)[0])
    np.testing.assert_array_equal(split.attention_mask, split.input_ids != 0)


def test_evaluation_images_are_padded_not_dropped(dataset: Path, tokenizer: Tokenizer) -> None:
    split = EvaluationSplit(RecordSource(dataset, "validation"), tokenizer, 16)
    whole = next(split.image_batches(5))
    by_two = list(split.image_batches(2))
    assert [batch.shape for batch in by_two] == [(2, 16, 16, 3)] * 3
    np.testing.assert_array_equal(np.concatenate(by_two)[:5], whole)
    assert (by_two[-1][1] == 0).all()


def test_some_evaluation_images_in_the_order_asked_for(dataset: Path, tokenizer: Tokenizer) -> None:
    split = EvaluationSplit(RecordSource(dataset, "validation"), tokenizer, 16)
    whole, own = next(split.image_batches(5)), np.array([True, False])
    first, second = split.image_batches(2, own, np.array([3, 0, 4]))
    np.testing.assert_array_equal(np.stack([first[0], second[0]]), whole[[3, 4]])
    assert not first[1].any()
    assert not second[1].any()


@pytest.mark.parametrize("images", [1, 3, 4, 5, 7, 8, 9])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_no_evaluation_image_is_dropped(images: int, processes: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """In batches of four, of which each process makes its own rows; together they have every image once."""
    write_dataset(tmp_path, {"test": map(example, range(images))}, shards=2)
    source = RecordSource(tmp_path, "test")
    split = EvaluationSplit(source, tokenizer, 16)
    own = [np.arange(4) // (4 // processes) == process for process in range(processes)]
    parts = [np.concatenate(list(split.image_batches(4, rows))) for rows in own]
    whole = np.sum(parts, axis=0)
    assert len(whole) == -(-images // 4) * 4
    for index in range(images):
        np.testing.assert_array_equal(whole[index], evaluation_image(source[index].image, 16))
    assert (whole[images:] == 0).all()
    assert (len(split.captions), split.num_images) == (2 * images, images)


def test_evaluation_decodes_only_the_rows_asked_for(
    dataset: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    split, decoded = EvaluationSplit(RecordSource(dataset, "validation"), tokenizer, 16), []
    whole = list(split.image_batches(4))
    original = evaluation_images.evaluation_image
    monkeypatch.setattr(evaluation_images, "evaluation_image", lambda *given: decoded.append(given) or original(*given))
    own = np.array([True, False, False, True])
    for batch, expected in zip(split.image_batches(4, own), whole, strict=True):
        np.testing.assert_array_equal(batch, np.where(own[:, None, None, None], expected, 0))
    assert len(decoded) == 3  # the first and the fourth of the first batch, the first of the second


def test_evaluation_of_the_first_images(dataset: Path, tokenizer: Tokenizer) -> None:
    source = RecordSource(dataset, "validation")
    split = EvaluationSplit(source, tokenizer, 16, max_images=2)
    assert split.image_ids == EvaluationSplit(source, tokenizer, 16).image_ids[:2]
    assert len(split.captions) == 4
    assert len(list(split.image_batches(4))) == 1


def test_evaluation_leaves_out_only_what_is_broken(
    spoiled: RecordSource, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        split = EvaluationSplit(spoiled, tokenizer, 16)
    assert split.image_ids == ["image0", "image2", "image3", "image5", "image6"]
    assert split.pairs[:, 0].tolist() == [0, 0, 2, 2, 3, 3, 4, 4]  # image2 has no caption: a candidate only
    assert len(split.problems) == 3
    assert "3 of the 8 records of split 'train' are unusable and left out" in caplog.text
    assert "train-00000-of-00001#7: it has no image_id" in caplog.text


def test_images_without_captions_stay_in_the_gallery(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    silent = [Example(encode(seed=number), (), f"silent{number}") for number in range(2)]
    write_dataset(tmp_path, {"test": [silent[0], example(1), silent[1], example(2, "红球")], "gallery": silent})
    with caplog.at_level(logging.INFO):
        split = EvaluationSplit(RecordSource(tmp_path, "test"), tokenizer, 16)
    assert split.image_ids == ["silent0", "image1", "silent1", "image2"]
    assert (split.num_images, split.captions) == (4, ["1只狗", "红球", "红球"])
    assert split.pairs[:, 0].tolist() == [1, 1, 3]
    assert split.problems == []
    assert "2 of the 4 images of split 'test' have no caption; text is compared with them all the same" in caplog.text
    with pytest.raises(UserError, match="none of the 2 images of split 'gallery' has a caption, so there is nothing"):
        EvaluationSplit(RecordSource(tmp_path, "gallery"), tokenizer, 16)


def test_a_split_without_a_usable_record(tmp_path: Path, tokenizer: Tokenizer) -> None:
    write_dataset(tmp_path, {"train": [example(number, image_id="") for number in range(3)]})
    with pytest.raises(UserError, match="none of the 3 records of split 'train' is usable; prepare the dataset again"):
        EvaluationSplit(RecordSource(tmp_path, "train"), tokenizer, 16)


# --- many to many ---------------------------------------------------------------------------------------------------


def naive_truth(examples: Sequence[Example]) -> set[tuple[str, str]]:
    """Every right pair by the names of image and text; a text without an id has a name of its own."""
    names = ((one, i, text_id) for one, example in enumerate(examples) for i, text_id in enumerate(ids_of(example)))
    return {(examples[one].image_id, text_id or f"{one}/{i}") for one, i, text_id in names}


def ids_of(example: Example) -> tuple[str, ...]:
    return example.text_ids or ("",) * len(example.captions)


@pytest.mark.parametrize("seed", range(3))
def test_pairs_equal_the_naive_truth(seed: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Images in several records, texts of several images, captions without an id, and all of them equal characters."""
    rng = np.random.default_rng(seed)
    examples = []
    for number in range(20):
        ids = [f"q{i}" if i < 6 else "" for i in rng.integers(0, 9, rng.integers(0, 4))]
        captions = tuple(f"{text_id}只狗" for text_id in ids)
        examples.append(Example(encode(seed=number), captions, f"image{rng.integers(12)}", text_ids=tuple(ids)))
    write_dataset(tmp_path, {"test": examples}, text_ids=True)
    source = RecordSource(tmp_path, "test")
    split = EvaluationSplit(source, tokenizer, 16)
    expected = naive_truth(examples)
    texts = list(dict.fromkeys(text_id or f"{n}/{i}" for n, one in enumerate(examples)
                               for i, text_id in enumerate(ids_of(one))))  # fmt: skip
    assert split.image_ids == list(dict.fromkeys(one.image_id for one in examples))
    assert [(split.image_ids[image], texts[text]) for image, text in split.pairs] == sorted(
        expected, key=lambda pair: (split.image_ids.index(pair[0]), texts.index(pair[1]))
    )
    assert len(split.captions) == len(texts) == len(split.input_ids)
    first = {one.image_id: one.image for one in reversed(examples)}
    (images,) = split.image_batches(split.num_images)
    for image, image_id in zip(images, split.image_ids, strict=True):
        np.testing.assert_array_equal(image, evaluation_image(first[image_id], 16))


def test_merging_is_said(tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture) -> None:
    """The picture of the first usable record; a broken one before it is left out with its captions."""
    examples = [
        Example(b"broken", ("坏的",), "a", text_ids=("q0",)),
        Example(encode(seed=1), ("红球",), "a", text_ids=("q1",)),
        Example(encode(seed=2), ("红球",), "b", text_ids=("q1",)),
        Example(encode(seed=3), ("红球", "黑狗"), "a", text_ids=("", "q1")),
    ]
    write_dataset(tmp_path, {"test": examples}, text_ids=True)
    with caplog.at_level(logging.INFO):
        split = EvaluationSplit(RecordSource(tmp_path, "test"), tokenizer, 16)
    assert (split.image_ids, split.captions) == (["a", "b"], ["红球", "红球"])
    assert split.pairs.tolist() == [[0, 0], [0, 1], [1, 0]]
    np.testing.assert_array_equal(next(split.image_batches(2))[0], evaluation_image(examples[1].image, 16))
    assert "2 images and 2 texts: 1 records show an image that a record before them shows" in caplog.text
    assert "1 texts belong to several images by their text_id" in caplog.text
    assert "1 captions of split 'test' have the text_id of a caption with other characters, such as q1" in caplog.text


def test_ids_that_an_old_dataset_lacks_are_missed(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    write_dataset(tmp_path, {"test": [example(0)]})
    source = RecordSource(tmp_path, "test")
    EvaluationSplit(source, tokenizer, 16)
    assert "before texts had ids" not in caplog.text
    source.dataset = "muge"
    EvaluationSplit(source, tokenizer, 16)
    assert "before texts had ids" in caplog.text


def test_pictures_are_told_apart(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """Of one image the picture of the first record counts."""
    write_dataset(tmp_path, {"test": [example(0), example(1), example(0, image=encode(seed=7)), example(2)]})
    split = EvaluationSplit(RecordSource(tmp_path, "test"), tokenizer, 16)
    assert len(set(split.picture_checksums)) == split.num_images == 3
    write_dataset(tmp_path / "other", {"test": [example(0), example(1, image=encode(seed=7)), example(2)]})
    other = EvaluationSplit(RecordSource(tmp_path / "other", "test"), tokenizer, 16)
    same = [a == b for a, b in zip(split.picture_checksums, other.picture_checksums, strict=True)]
    assert same == [True, False, True]


def test_one_caption_records_of_one_image(tmp_path: Path, tokenizer: Tokenizer) -> None:
    """No text has an id, and equal characters stay two texts; the limit counts images."""
    examples = [example(n, f"{i}只狗", image_id=f"image{n}", image=encode(seed=n)) for n in range(4) for i in range(3)]
    write_dataset(tmp_path, {"test": examples})
    split = EvaluationSplit(RecordSource(tmp_path, "test"), tokenizer, 16, max_images=2)
    assert split.pairs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 3], [1, 4], [1, 5]]
    assert split.captions == ["0只狗", "1只狗", "2只狗"] * 2
