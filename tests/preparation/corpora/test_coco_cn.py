"""COCO-CN becomes a dataset; its lists say which captions belong to which split."""

from pathlib import Path

import pytest
from small_corpora import prepared, records, skipped, texts, write, write_images
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.coco_cn import CocoCn

NAMES = {number: f"COCO_{'val' if number == 3 else 'train'}2014_{number:012d}" for number in range(5)}


@pytest.fixture
def images(tmp_path: Path) -> str:
    """COCO's two folders, with one image outside."""
    paths = [f"{NAMES[number].split('_')[1]}/{NAMES[number]}.jpg" for number in range(4)]
    return str(write_images(tmp_path / "images", *paths, f"{NAMES[4]}.jpg"))


def written(root: Path, captions: list[str | bytes], **lists: list[str | bytes]) -> str:
    folder = root / "coco-cn-version1805v1.1"
    write(folder / "imageid.human-written-caption.txt", *captions)
    for split in ("train", "val", "test"):
        write(folder / f"coco-cn_{split}.txt", *lists.get(split, []))
    return str(folder)


def test_coco_cn(tmp_path: Path, images: str) -> None:
    order = ((3, "0\t三"), (0, "0\t零"), (1, "0\t一"), (2, "0\t二"), (0, "1\t又零"), (4, "0\t四"))
    captions = [f"{NAMES[number]}#{rest}" for number, rest in order]
    root = written(tmp_path, captions, train=[NAMES[0], NAMES[3]], val=[NAMES[1]], test=[NAMES[4], NAMES[2]])
    prepared(CocoCn(images, root), tmp_path / "out")
    assert texts(tmp_path / "out") == {NAMES[3]: ("三",), NAMES[0]: ("零", "又零")}
    assert texts(tmp_path / "out", "validation") == {NAMES[1]: ("一",)}
    assert texts(tmp_path / "out", "test") == {NAMES[2]: ("二",), NAMES[4]: ("四",)}
    found = [record.image for split in ("train", "validation", "test") for record in records(tmp_path / "out", split)]
    assert found == [encode(seed=seed) for seed in (3, 0, 1, 2, 4)]


CAPTIONS = "imageid.human-written-caption.txt"


@pytest.mark.parametrize(
    ("caption", "listed", "file", "reason"),
    [
        ("x#0\t一", [], CAPTIONS, "x is in none of the lists train, val, test"),
        (f"{NAMES[0]}#0", [], CAPTIONS, "1 tab-separated columns, expected 2: IMAGE#N<tab>CAPTION"),
        (f"{NAMES[0]}#1\t ", [], CAPTIONS, "the caption is empty"),
        ("#1\t一", [], CAPTIONS, "the image's name is empty"),
        (f"{NAMES[0]}#0\t一", [], CAPTIONS, f"{NAMES[0]}#0 has been annotated before, in "),
        (b"x#0\t\xff", [], CAPTIONS, "invalid UTF-8 at byte 4 of the line"),
        ("COCO_#0\t一", ["COCO_"], CAPTIONS, "image images/COCO_.jpg cannot be read"),
        (None, [NAMES[0]], "coco-cn_val.txt", f"{NAMES[0]} has been listed before, in "),
        (None, [NAMES[2]], "coco-cn_val.txt", f"{NAMES[2]} has no caption in "),
        (None, [b"\xff"], "coco-cn_val.txt", "invalid UTF-8 at byte 0 of the line"),
    ],
)
def test_bad_line(
    tmp_path: Path, images: str, caption: str | bytes | None, listed: list[str | bytes], file: str, reason: str
) -> None:
    captions = [f"{NAMES[0]}#0\t零", *([] if caption is None else [caption]), f"{NAMES[1]}#0\t一"]
    root = written(tmp_path, captions, train=[NAMES[0]], val=[NAMES[1], *listed])
    preparation = prepared(CocoCn(images, root), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out") == {NAMES[0]: ("零",)}
    assert texts(tmp_path / "out", "validation") == {NAMES[1]: ("一",)}
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"coco-cn-version1805v1.1/{file}:2: {reason}")
    with pytest.raises(UserError, match="1 of the 3 entries are unusable so far"):
        prepared(CocoCn(images, root), tmp_path / "again")


def test_missing_list(tmp_path: Path, images: str) -> None:
    root = written(tmp_path, [f"{NAMES[0]}#0\t零"], train=[NAMES[0]])
    Path(root, "coco-cn_test.txt").unlink()
    with pytest.raises(UserError, match="annotation file .*/coco-cn_test.txt does not exist; set --annotations"):
        CocoCn(images, root)
