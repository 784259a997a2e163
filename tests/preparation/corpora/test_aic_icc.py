"""AIC-ICC becomes a dataset, its arrays read entry by entry."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_corpora import prepared, records, skipped, texts, write, write_images
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.aic_icc import AicIcc

DATES = {"train": "20170902", "validation": "20170910", "test_a": "20180103", "test_b": "20180103"}


def entry(image: str, *captions: Any, **changes: Any) -> dict[str, Any]:
    return {"url": "http://x", "image_id": image, "caption": list(captions)} | changes


def written(root: Path, **splits: Any) -> str:
    for split, content in splits.items():
        folder = root / "aic" / f"ai_challenger_caption_{split}_{DATES[split]}"
        text = content if isinstance(content, str) else json.dumps(content)
        write(folder / f"caption_{split}_annotations_{DATES[split]}.json", text)
        images = folder / f"caption_{split}_images_{DATES[split]}"
        write_images(images, *(f"{split}{number}.jpg" for number in range(3)))
    return str(root / "aic")


GOOD = {"train": [entry("train0.jpg", "一")], "validation": [entry("validation0.jpg", "二")]}


def test_arrays_and_the_other_form(tmp_path: Path) -> None:
    test_a = {
        "info": {},
        "images": [{"id": 7, "file_name": "test_a1"}, {"id": 8, "file_name": "test_a0.jpg"}],
        "annotations": [{"image_id": number, "caption": text} for number, text in ((7, "五"), (8, "六"), (7, "七"))],
    }
    root = written(
        tmp_path,
        train=[entry("train1.jpg", "一", "二", "三"), entry("train0.jpg", "四")],
        validation=GOOD["validation"],
        test_a=test_a,
        test_b=[entry("test_b2.jpg", "八")],
    )
    prepared(AicIcc(annotations=root), tmp_path / "out")
    assert texts(tmp_path / "out") == {"train1.jpg": ("一", "二", "三"), "train0.jpg": ("四",)}
    assert texts(tmp_path / "out", "validation") == {"validation0.jpg": ("二",)}
    assert texts(tmp_path / "out", "test_a") == {"test_a1.jpg": ("五", "七"), "test_a0.jpg": ("六",)}
    assert texts(tmp_path / "out", "test_b") == {"test_b2.jpg": ("八",)}
    assert [record.image for record in records(tmp_path / "out")] == [encode(seed=1), encode(seed=0)]


def test_images_elsewhere(tmp_path: Path) -> None:
    root = written(tmp_path, **GOOD)
    images = write_images(tmp_path / "flat", "x.jpg", "train0.jpg", "validation0.jpg")
    prepared(AicIcc(str(images), root), tmp_path / "out")
    assert records(tmp_path / "out")[0].image == encode(seed=1)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (7, "not a JSON object"),
        ({"image_id": "train1.jpg"}, 'no "caption"'),
        ({"caption": ["一"]}, 'no "image_id"'),
        (entry("train1.jpg"), '"caption" is not a list with at least one text'),
        (entry("train1.jpg", caption="一"), '"caption" is not a list with at least one text'),
        (entry("train1.jpg", "一", " "), 'a text of "caption" is empty'),
        (entry("train0.jpg", "二"), "train0.jpg has been annotated before, in "),
        (
            entry("gone.jpg", "二"),
            "image aic/ai_challenger_caption_train_20170902/caption_train_images_20170902/gone.j",
        ),
    ],
)
def test_bad_entry(tmp_path: Path, bad: Any, reason: str) -> None:
    root = written(tmp_path, **GOOD | {"train": [entry("train0.jpg", "一"), bad]})
    preparation = prepared(AicIcc(annotations=root), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out") == {"train0.jpg": ("一",)}
    (named,) = skipped(preparation, tmp_path)
    place = "aic/ai_challenger_caption_train_20170902/caption_train_annotations_20170902.json:2: "
    assert named.startswith(f"{place}{reason}")
    with pytest.raises(UserError, match="1 of the 3 entries are unusable so far"):
        prepared(AicIcc(annotations=root), tmp_path / "again")


@pytest.mark.parametrize("cut", [10, 30])
def test_array_cut_short(tmp_path: Path, cut: int) -> None:
    array = json.dumps([entry("train0.jpg", "一"), entry("train1.jpg", "一")])
    root = written(tmp_path, **GOOD | {"train": array[:-cut]})
    preparation = prepared(AicIcc(annotations=root), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out") == {"train0.jpg": ("一",)}
    assert "_20170902.json:2: invalid JSON (" in skipped(preparation, tmp_path)[0]
    assert skipped(preparation, tmp_path)[0].endswith("; this entry and all after it are lost")


@pytest.mark.parametrize(
    ("images", "annotations", "reason"),
    [
        ([{"id": 7}], [], 'no "file_name"'),
        ([], [{"image_id": 9, "caption": "一"}], 'no image 9 under "images"'),
        ([], [{"image_id": 1, "caption": ""}], '"caption" is empty'),
    ],
)
def test_bad_entry_of_the_other_form(tmp_path: Path, images: list, annotations: list, reason: str) -> None:
    good = {"images": [{"id": 1, "file_name": "test_a1"}], "annotations": [{"image_id": 1, "caption": "五"}]}
    content = {"images": good["images"] + images, "annotations": good["annotations"] + annotations}
    preparation = prepared(AicIcc(annotations=written(tmp_path, **GOOD, test_a=content)), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out", "test_a") == {"test_a1.jpg": ("五",)}
    assert skipped(preparation, tmp_path)[0].endswith(f"caption_test_a_annotations_20180103.json:2: {reason}")


@pytest.mark.parametrize("content", [{"data": GOOD["train"]}, {"images": [{"id": 1, "file_name": "train1"}]}, [], ""])
def test_file_of_another_form(tmp_path: Path, content: Any) -> None:
    root = written(tmp_path, **GOOD | {"train": content})
    with pytest.raises(UserError, match="caption_train_annotations_20170902.json holds no usable annotation: it is em"):
        prepared(AicIcc(annotations=root), tmp_path / "out")


def test_missing_file(tmp_path: Path) -> None:
    root = written(tmp_path, train=GOOD["train"])
    with pytest.raises(UserError, match="annotation file .*/caption_validation_annotations_20170910.json does not"):
        AicIcc(annotations=root)
