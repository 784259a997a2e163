"""Folders of images and a file of names become a dataset with labels."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from small_corpora import labels, prepared, records, skipped, texts, write, write_images
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.classification import Classification

THREE = ["飞机", "汽车", "鸟"]


@pytest.mark.parametrize("form", ["{}", "{:03d}"])
def test_elevater(tmp_path: Path, form: str) -> None:
    root = tmp_path / "cifar"
    write(root / "label_cn.txt", *THREE)
    write(root / "label.txt", "plane", "car", "bird")
    for split in ("train", "test"):
        for number in (2, 0, 1):
            write_images(root / split / form.format(number), f"{split}a.jpg", f"{split}b.jpg")
    write(root / "test" / form.format(0) / ".DS_Store", "hidden")
    prepared(Classification(str(root)), tmp_path / "out")
    assert labels(tmp_path / "out", "test") == [name for name in THREE for _ in "ab"]
    assert labels(tmp_path / "out", "train") == labels(tmp_path / "out", "test")
    assert list(texts(tmp_path / "out", "test").items())[:2] == [
        (f"test/{form.format(0)}/testa.jpg", ()),
        (f"test/{form.format(0)}/testb.jpg", ()),
    ]
    assert records(tmp_path / "out", "test")[1].image == encode(seed=1)


CLASSES = [{"id": 1, "name": "rose", "name_zh": "玫瑰"}, {"id": 0, "name": "daisy", "name_zh": "雏菊"}]


@pytest.mark.parametrize(
    ("name", "content", "folders", "names"),
    [
        ("classes.json", json.dumps(CLASSES), ("daisy", "rose"), ["雏菊", "玫瑰"]),
        ("classes.json", json.dumps(CLASSES), ("雏菊", "玫瑰"), ["雏菊", "玫瑰"]),
        ("classes.json", json.dumps(CLASSES), ("0", "1"), ["雏菊", "玫瑰"]),
        ("classes.json", json.dumps([{"id": 0, "name": "雏菊"}]), ("雏菊",), ["雏菊"]),
        ("classes.tsv", "daisy\t雏菊\nrose\t玫瑰", ("daisy", "rose"), ["雏菊", "玫瑰"]),
        ("names.txt", "雏菊\n玫瑰", ("雏菊", "玫瑰"), ["雏菊", "玫瑰"]),
        ("names.txt", "1\n0", ("1", "0"), ["1", "0"]),  # names have precedence over numbers
    ],
)
def test_ones_own(tmp_path: Path, name: str, content: str, folders: tuple[str, ...], names: list[str]) -> None:
    images = write_images(tmp_path / "images", *(f"{folder}/a.png" for folder in folders))
    prepared(Classification(str(images), str(write(tmp_path / name, content))), tmp_path / "out")
    assert list(texts(tmp_path / "out", "test")) == [f"{folder}/a.png" for folder in folders]
    assert labels(tmp_path / "out", "test") == names


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("x.txt", "image 000/x.txt: not an image: 4 bytes"),
        ("folder", "image cifar/test/000/folder cannot be read: Is a directory"),
    ],
)
def test_file_that_is_no_image(tmp_path: Path, bad: str, reason: str) -> None:
    root = tmp_path / "cifar"
    write(root / "names.txt", "飞机")
    write_images(root / "test", "000/a.jpg", "000/b.jpg")
    if bad == "folder":
        (root / "test" / "000" / "folder").mkdir()
    else:
        write(root / "test" / "000" / bad, "txt")
    corpus = Classification(str(root / "test"), str(root / "names.txt"))
    preparation = prepared(corpus, tmp_path / "out", 0.5)
    assert len(records(tmp_path / "out", "test")) == 2
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"cifar/test/000:3: {reason}")
    with pytest.raises(UserError, match="1 of the 3 entries are unusable so far"):
        prepared(corpus, tmp_path / "again")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("names.txt", "飞机\n汽车\n飞机", "class name 飞机 is in .*names.txt more than once; give each class its own"),
        ("names.txt", "飞机", "the folders in .*images are not the 1 classes of .*names.txt: no class for 001$"),
        ("names.txt", "\n".join(THREE), "are not the 3 classes of .*names.txt: no folder for 002$"),
        ("names.txt", "\n", "names.txt names no class"),
        ("names.txt", b"\xff", "names.txt:1: invalid UTF-8 at byte 0 of the line; expected the name of a class"),
        ("names.tsv", "000\t飞机\n001", "names.tsv:2: 1 tab-separated columns, expected 2: FOLDER<tab>NAME; exp"),
        ("names.tsv", "000\t飞机\n001\t ", "names.tsv:2: the class's name is empty; expected the name of a class"),
        ("names.tsv", "000\t飞机\n000\t汽车", "folder 000 is in .*names.tsv more than once"),
        ("names.json", "{", r"names.json cannot be read \(JSONDecodeError: .*\); expected a list like \[{\"id\": 0, "),
        ("names.json", '[{"id": 0}]', r"names.json cannot be read \(KeyError: 'name'\); expected a list like"),
        ("names.json", '["a"]', r"names.json cannot be read \(TypeError: .*\); expected a list like"),
        ("names.json", '[{"id": 0, "name": "a"}, {"id": 2, "name": "b"}]', "the ids in .* are not 0 to 1, each once"),
        (
            "names.json",
            '[{"id": 0, "name": "a"}, {"id": 1, "name": ""}]',
            r"cannot be read \(UnusableRecord: \"name\" is",
        ),
    ],
)
def test_names_that_do_not_fit(tmp_path: Path, name: str, content: Any, message: str) -> None:
    images = write_images(tmp_path / "images", "000/a.jpg", "001/a.jpg")
    with pytest.raises(UserError, match=message):
        Classification(str(images), str(write(tmp_path / name, content)))


def test_file_whose_name_is_no_utf8(tmp_path: Path) -> None:
    root = tmp_path / "cifar"
    write(root / "label_cn.txt", "飞机")
    write_images(root / "test" / "0", "a.jpg", os.fsdecode("马.jpg".encode("gbk")))
    preparation = prepared(Classification(str(root)), tmp_path / "out", 0.5)
    assert list(texts(tmp_path / "out", "test")) == ["test/0/a.jpg"]
    assert skipped(preparation, tmp_path) == [
        r"cifar/test/0:2: the name test/0/\xc2\xed.jpg is no UTF-8; rename the file"
    ]


def test_folder_whose_name_is_no_utf8(tmp_path: Path) -> None:
    write(tmp_path / "label_cn.txt", "飞机")
    write_images(tmp_path / "test" / os.fsdecode("马".encode("gbk")), "a.jpg")
    with pytest.raises(UserError, match=r"no folder for 飞机; no class for \\xc2\\xed$"):
        Classification(str(tmp_path))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="corpus classification needs --images; set it"):
        Classification()
    with pytest.raises(UserError, match="image folder .*absent does not exist; set --images"):
        Classification(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="annotation file .*label_cn.txt does not exist"):
        Classification(str(tmp_path))
    write(tmp_path / "label_cn.txt", *THREE)
    with pytest.raises(UserError, match="image folder .* holds no folders; expected one for each class, or train/ and"):
        Classification(str(tmp_path))


def test_an_image_that_comes_or_goes_makes_another_corpus(tmp_path: Path) -> None:
    write(tmp_path / "label_cn.txt", "飞机")
    write_images(tmp_path / "test", "0/a.jpg")
    before = Classification(str(tmp_path)).identity()
    assert json.loads(json.dumps(before)) == before == Classification(str(tmp_path)).identity()
    write_images(tmp_path / "test", "0/a.jpg", "0/b.jpg")
    assert Classification(str(tmp_path)).identity() != before


def test_real_flowers(shared: Path, tmp_path: Path) -> None:
    flowers = shared / "data" / "flowers5_zh"
    corpus = Classification(str(flowers / "images"), str(flowers / "classes.json"))
    (split,) = prepared(corpus, tmp_path).splits
    assert (split.name, split.records, split.captions) == ("test", 1000, 0)
    lines = [json.loads(line) for line in (flowers / "labels.jsonl").read_text(encoding="utf-8").splitlines()]
    classes = json.loads((flowers / "classes.json").read_text(encoding="utf-8"))
    names = {entry["id"]: entry["name_zh"] for entry in classes}
    found = dict(zip((record.image_id for record in records(tmp_path, "test")), labels(tmp_path, "test"), strict=True))
    assert found == {line["image"]: names[line["label"]] for line in lines}
