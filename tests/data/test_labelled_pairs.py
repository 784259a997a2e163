"""Labelled splits: an image counts once wherever its pairs are, nothing usable is left out, what is no such split."""

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from small_data import encode

from r2d2_jax.data.image.transforms import evaluation_image
from r2d2_jax.data.labelled_pairs import LabelledPairs
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import Tokenizer
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset

NAMES = ("no match", "match")


def pair(image: int, text: str, label: int | None) -> Example:
    return Example(encode(seed=image), (text,), f"image{image}", label)


def written(folder: Path, pairs: Sequence[Example], names: Sequence[str] = NAMES) -> RecordSource:
    write_dataset(folder, {"validation": pairs}, class_names=names)
    return RecordSource(folder, "validation")


def test_pairs_of_an_image_stand_together(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    pairs = [pair(3, "一", 1), pair(1, "二", 0), pair(3, "三", 0), pair(2, "四", 1), pair(1, "五", 1)]
    source = written(tmp_path, pairs)
    with caplog.at_level(logging.INFO):
        split = LabelledPairs(source, tokenizer, 16)
    assert split.image_ids == ["image3", "image1", "image2"]
    assert list(zip(split.image.tolist(), split.texts, split.match.tolist(), strict=True)) == [
        (0, "一", True), (0, "三", False), (1, "二", False), (1, "五", True), (2, "四", True),
    ]  # fmt: skip
    np.testing.assert_array_equal(split.input_ids, tokenizer(split.texts)[0])
    assert (len(split), split.num_images) == (5, 3)
    assert "split 'validation': 5 pairs of 3 images; 3 match, 2 do not" in caplog.text
    (images,) = split.image_batches(4)
    for row, seed in enumerate((3, 1, 2)):
        np.testing.assert_array_equal(images[row], evaluation_image(encode(seed=seed), 16))
    assert LabelledPairs(source, tokenizer, 16, max_pairs=2).texts == ["一", "二"]


def test_only_what_is_broken_is_left_out(
    tmp_path: Path, tokenizer: Tokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    broken = [
        Example(b"no image", ("一",), "a", 1),
        Example(encode(), ("一", "二"), "b", 1),
        Example(encode(), (), "c", 0),
        pair(5, " ", 0),
    ]
    split = LabelledPairs(written(tmp_path, [pair(1, "一", 1), *broken, pair(2, "二", 0)]), tokenizer, 16)
    assert (split.image_ids, split.texts) == (["image1", "image2"], ["一", "二"])
    assert "4 of the 6 records of split 'validation' are unusable and left out" in caplog.text
    assert "#2: it has a label and 2 texts; expected one" in caplog.text
    assert "#3: it has a label and 0 texts; expected one" in caplog.text


@pytest.mark.parametrize("label", [0, 1])
def test_a_split_of_one_class_has_no_auc(label: int, tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = written(tmp_path, [pair(number, "一", label) for number in range(3)])
    with pytest.raises(
        UserError, match=f"all 3 pairs of split 'validation' of .* have the label {label}, so there is no"
    ):
        LabelledPairs(source, tokenizer, 16)


def test_other_labels(tmp_path: Path, tokenizer: Tokenizer) -> None:
    source = written(tmp_path, [pair(1, "一", 1), pair(2, "二", 2)], ("cat", "dog", "bird"))
    with pytest.raises(UserError, match=r"#1 has the label 2; expected 0 \(no match\) or 1 \(match\): records of one"):
        LabelledPairs(source, tokenizer, 16)


def test_no_labels_and_nothing_usable(tmp_path: Path, dataset: Path, tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="split 'validation' of .* has no labels.*--corpus=icm, iqm or pairs"):
        LabelledPairs(RecordSource(dataset, "validation"), tokenizer, 16)
    with pytest.raises(UserError, match="none of the 1 records of split 'validation' of .* is usable"):
        LabelledPairs(written(tmp_path, [Example(b"no image", ("一",), "a", 1)]), tokenizer, 16)
