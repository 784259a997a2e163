"""ICR, IQR, ICM and IQM become datasets, the latter two with labels."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_corpora import labels, prepared, records, skipped, texts, write, write_images
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora import CORPORA

STEMS = {"icr": "long_itr", "iqr": "short_itr", "icm": "long_itm", "iqm": "short_itm"}


def line(image: str, text: str, **more: Any) -> str:
    return json.dumps({"image_path": image, "text": text} | more, ensure_ascii=False)


@pytest.fixture
def images(tmp_path: Path) -> str:
    """The flat folder of all four, and one image at a path of its own."""
    return str(write_images(tmp_path / "images", "a.jpg", "b.jpg", "own/place.jpg"))


def written(root: Path, name: str, **splits: list[str | bytes]) -> str:
    for split, lines in splits.items():
        write(root / "data" / name.upper() / split / f"{STEMS[name]}_{split}.json", *lines)
    return str(root / "data")


@pytest.mark.parametrize("name", ["icr", "iqr"])
def test_retrieval(tmp_path: Path, images: str, name: str) -> None:
    train = [line("dir/a.jpg", "一"), line("b.jpg", "二"), line("dir/a.jpg", "三")]
    root = written(tmp_path, name, train=train, val=[line("own/place.jpg", "四")], test=[line("x/b.jpg", "五")])
    prepared(CORPORA[name](images, root), tmp_path / "out")
    assert texts(tmp_path / "out") == {"a.jpg": ("一", "三"), "b.jpg": ("二",)}
    assert texts(tmp_path / "out", "validation") == {"own/place.jpg": ("四",)}
    assert texts(tmp_path / "out", "test") == {"b.jpg": ("五",)}
    found = [record.image for split in ("train", "validation", "test") for record in records(tmp_path / "out", split)]
    assert found == [encode(seed=seed) for seed in (0, 1, 2, 1)]


@pytest.mark.parametrize("name", ["icm", "iqm"])
def test_matching(tmp_path: Path, images: str, name: str) -> None:
    train = [line("a.jpg", "一", label=1), line("a.jpg", "二", label="0"), line("b.jpg", "一", label=0)]
    root = written(tmp_path, name, train=train, val=[line("b.jpg", "三", label="1")])
    prepared(CORPORA[name](images, f"{root}/{name.upper()}"), tmp_path / "out")
    assert [(record.image_id, record.captions) for record in records(tmp_path / "out")] == [
        ("a.jpg", ("一",)),
        ("a.jpg", ("二",)),
        ("b.jpg", ("一",)),
    ]
    assert labels(tmp_path / "out", "train") == ["match", "no match", "no match"]
    assert labels(tmp_path / "out", "validation") == ["match"]


def test_images_of_one_stem_are_different(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", "a/x.jpg", "b/x.jpg", "x.jpg", "x.png")
    lines = [line(image, image, label=1) for image in ("a/x.jpg", "b/x.jpg", "c/x.jpg", "x.png", "c/x.png")]
    root = written(tmp_path, "icm", train=lines, val=[line("x.jpg", "一", label=1)])
    prepared(CORPORA["icm"](str(images), root), tmp_path / "out")
    assert [record.image_id for record in records(tmp_path / "out")] == [
        "a/x.jpg",
        "b/x.jpg",
        "x.jpg",
        "x.png",
        "x.png",
    ]


def test_an_array_is_refused(tmp_path: Path, images: str) -> None:
    root = written(tmp_path, "icr", train=[f"[{line('a.jpg', '一')}]"], val=[line("a.jpg", "一")])
    with pytest.raises(UserError, match=r"long_itr_train.json is a JSON array; expected one object a line, like {\"im"):
        CORPORA["icr"](images, root)


BAD = [
    ("icr", line("a.jpg", " "), '"text" is empty'),
    ("icr", '{"image_path": "a.jpg"}', 'no "text"'),
    ("icr", '{"text": "一"}', 'no "image_path"'),
    ("icr", line("x/absent.jpg", "一"), "image images/x/absent.jpg or images/absent.jpg cannot be read: No such file"),
    ("icr", '{"text": "一", ', "invalid JSON ("),
    ("icr", b'{"text": "\xff"}', "invalid UTF-8 at byte 10"),
    ("icm", line("a.jpg", "一"), 'no "label"'),
    ("icm", line("a.jpg", "一", label=2), '"label" is 2; expected 1 (match) or 0 (no match)'),
    ("icm", line("a.jpg", "一", label="x"), "\"label\" is 'x'; expected 1 (match) or 0 (no match)"),
    ("icm", line("a.jpg", "一", label=True), '"label" is True; expected 1 (match) or 0 (no match)'),
    ("icm", line("a.jpg", "一", label=None), '"label" is None; expected 1 (match) or 0 (no match)'),
]


@pytest.mark.parametrize(("name", "bad", "reason"), BAD)
def test_bad_line(tmp_path: Path, images: str, name: str, bad: str | bytes, reason: str) -> None:
    good = line("b.jpg", "好", label=1)
    root = written(tmp_path, name, train=[good, bad], val=[good])
    preparation = prepared(CORPORA[name](images, root), tmp_path / "out", 0.5)
    assert len(records(tmp_path / "out")) == 1
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"data/{name.upper()}/train/{STEMS[name]}_train.json:2: {reason}")
    with pytest.raises(UserError, match="1 of the 3 entries are unusable so far"):
        prepared(CORPORA[name](images, root), tmp_path / "again")


def test_missing_files(tmp_path: Path, images: str) -> None:
    write(tmp_path / "data" / "ICR" / "train" / "long_itr_train.json", line("a.jpg", "一"))
    with pytest.raises(UserError, match="annotation file .*data/ICR/val/long_itr_val.json does not exist; set --annot"):
        CORPORA["icr"](images, str(tmp_path / "data"))
    with pytest.raises(UserError, match="(?s)short_itm_train.json and others do not exist.*  - .*/short_itm_val.json"):
        CORPORA["iqm"](images, str(tmp_path / "data"))
