"""Flickr30k-CN and Flickr30k-CNA become datasets, segmented texts joined back."""

from pathlib import Path

import pytest
from small_corpora import prepared, records, skipped, texts, write, write_images
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.flickr30k_cn import Flickr30kCn, joined
from r2d2_jax.preparation.corpora.flickr30k_cna import Flickr30kCna

CN_FOLDERS = {"train": "flickr30kzhbbosontrain", "val": "flickr30kzhbbosonval", "test": "flickr30kzhmbosontest"}


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Photographs 1000 to 1003."""
    return str(write_images(tmp_path / "images", *(f"{number}.jpg" for number in range(1000, 1004))))


def cn(root: Path, **splits: list[str | bytes]) -> str:
    for split, lines in splits.items():
        name = CN_FOLDERS[split]
        write(root / "cn" / name / "TextData" / f"seg.{name}.caption.txt", *lines)
    return str(root / "cn")


def cna(root: Path, test_name: str = "flickr30k_cn_test.txt", **splits: list[str | bytes]) -> str:
    for split, lines in splits.items():
        name = test_name if split == "test" else f"flickr30k_cna_{split}.txt"
        write(root / "cna" / split / name, *lines)
    return str(root / "cna")


def test_flickr30k_cn(tmp_path: Path, images: str) -> None:
    root = cn(
        tmp_path,
        train=["1000#zhb#0 两个 年轻人 在 院子 里", "1002#zhb#0 狗", "1000#zhb#1 一 件 T 恤  和 New York 2 号 "],
        val=["1001.jpg#zhb#0 猫"],
        test=["1003#zhm#0 男人:n 戴:v 着:u 橙色:n 帽子:n ，:wd 10:30:t", "1003#zhm#1 看 iPhone:nx 6:m"],
    )
    prepared(Flickr30kCn(images, root), tmp_path / "out")
    assert texts(tmp_path / "out") == {"1000": ("两个年轻人在院子里", "一件T恤和New York 2号"), "1002": ("狗",)}
    assert texts(tmp_path / "out", "validation") == {"1001": ("猫",)}
    assert texts(tmp_path / "out", "test") == {"1003": ("男人戴着橙色帽子，10:30", "看iPhone 6")}
    assert [record.image for record in records(tmp_path / "out")] == [encode(seed=0), encode(seed=2)]


def test_joining() -> None:
    assert joined(["a", "b", "一", "c", "二", "三"]) == "a b一c二三"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("1001#zhb#0", "not a caption; expected ID#zhb#N or ID#zhm#N, a blank, and words"),
        ("1001 两个 年轻人", "not a caption; expected "),
        ("1001#enc#0 two dogs", "not a caption; expected "),
        ("1001#zhm#0 :n :wd", "the caption is empty"),
        ("1000#zhb#0 狗", "1000#zhb#0 has been annotated before, in "),
        ("7#zhb#0 狗", "image images/7.jpg cannot be read: No such file"),
        (b"1001#zhb#0 \xff", "invalid UTF-8 at byte 11 of the line"),
    ],
)
def test_bad_line_of_flickr30k_cn(tmp_path: Path, images: str, bad: str | bytes, reason: str) -> None:
    root = cn(tmp_path, train=["1000#zhb#0 狗", bad], val=["1001#zhb#0 猫"], test=["1002#zhm#0 狗:n"])
    preparation = prepared(Flickr30kCn(images, root), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out") == {"1000": ("狗",)}
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"cn/flickr30kzhbbosontrain/TextData/seg.flickr30kzhbbosontrain.caption.txt:2: {reason}")
    with pytest.raises(UserError, match="1 of the 4 entries are unusable so far"):
        prepared(Flickr30kCn(images, root), tmp_path / "again")


@pytest.mark.parametrize("test_name", ["flickr30k_cn_test.txt", "flickr30k_cna_test.txt"])
def test_flickr30k_cna(tmp_path: Path, images: str, test_name: str) -> None:
    root = cna(
        tmp_path,
        test_name,
        train=["1000\t一个孩子跑过喷泉。", "1002\t狗", "1000\t两个孩子 "],
        val=["1001.jpg#0\t猫", "1001.jpg#1\t黑猫"],
        test=["1003#zhm#0\t男人", "1003#zhm#1\t帽子"],
    )
    prepared(Flickr30kCna(images, root), tmp_path / "out")
    assert texts(tmp_path / "out") == {"1000": ("一个孩子跑过喷泉。", "两个孩子"), "1002": ("狗",)}
    assert texts(tmp_path / "out", "validation") == {"1001": ("猫", "黑猫")}
    assert texts(tmp_path / "out", "test") == {"1003": ("男人", "帽子")}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("1001", "1 tab-separated columns, expected 2: ID<tab>CAPTION or ID#zhm#N<tab>CAPTION"),
        ("1001\t狗\t猫", "3 tab-separated columns, expected 2: "),
        ("1001\t ", "the caption is empty"),
        ("\t狗", "the image's id is empty"),
        ("1000#zhm#0\t狗", "1000#zhm#0 has been annotated before, in "),
        ("7\t狗", "image images/7.jpg cannot be read: No such file"),
        (b"1001\t\xff", "invalid UTF-8 at byte 5 of the line"),
    ],
)
def test_bad_line_of_flickr30k_cna(tmp_path: Path, images: str, bad: str | bytes, reason: str) -> None:
    root = cna(tmp_path, train=["1000#zhm#0\t狗", bad], val=["1001\t猫"], test=["1002#zhm#0\t狗"])
    preparation = prepared(Flickr30kCna(images, root), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out") == {"1000": ("狗",)}
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"cna/train/flickr30k_cna_train.txt:2: {reason}")
    with pytest.raises(UserError, match="1 of the 4 entries are unusable so far"):
        prepared(Flickr30kCna(images, root), tmp_path / "again")


def test_missing_files(tmp_path: Path, images: str) -> None:
    root = cn(tmp_path, train=["1000#zhb#0 狗"], val=["1001#zhb#0 猫"])
    with pytest.raises(UserError, match="file .*/flickr30kzhmbosontest/TextData/seg.*.caption.txt does not exist; set"):
        Flickr30kCn(images, root)
    root = cna(tmp_path, train=["1000\t狗"])
    with pytest.raises(UserError, match=r"(?s)flickr30k_cna_val.txt and others do not exist.*  - .*/flickr30k_cn_t"):
        Flickr30kCna(images, root)


def test_test_file_under_both_names(tmp_path: Path, images: str) -> None:
    root = cna(tmp_path, train=["1000\t狗"], val=["1001\t猫"], test=["1002\t狗"])
    cna(tmp_path, "flickr30k_cna_test.txt", test=["1002\t狗"])
    with pytest.raises(UserError, match="flickr30k_cn_test.txt and .*flickr30k_cna_test.txt are both there; they are"):
        Flickr30kCna(images, root)
