"""Zero's list of links and a folder of images become a dataset, as lines or an array, compressed or not."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from small_corpora import prepared, records, skipped, texts, write, write_images
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.zero_folder import ZeroFolder


def link(key: str, **changes: Any) -> dict[str, Any]:
    return {
        "Url": "http://site/p.html",
        "Title": f"{key}的标题",
        "Content": "上下文",
        "Keywords": "词",
        "ImageKey": key,
        "ImageUrl": f"http://img/{key}.jpg",
        "ImageQuery": "搜索词",
    } | changes


def line(key: str, **changes: Any) -> str:
    return json.dumps({name: value for name, value in link(key, **changes).items() if value is not ...})


@pytest.fixture
def images(tmp_path: Path) -> str:
    """Images by their keys, with several extensions."""
    return str(write_images(tmp_path / "images", "a.jpg", "b.png", "c.webp", "d"))


def test_every_extension_and_what_counts_as_a_text(tmp_path: Path, images: str) -> None:
    links = write(
        tmp_path / "links.jsonl",
        line("a"),
        line("b", ImageQuery="", Content=None),
        line("c", Title=["一", "二"], ImageQuery=...),
        line("d", Content="d的标题"),
    )
    prepared(ZeroFolder(images, str(links)), tmp_path / "out")
    assert texts(tmp_path / "out") == {
        "a": ("a的标题", "搜索词", "上下文"),
        "b": ("b的标题",),
        "c": ("一", "二", "上下文"),
        "d": ("d的标题", "搜索词"),
    }
    assert [record.image for record in records(tmp_path / "out")] == [encode(seed=seed) for seed in range(4)]


@pytest.mark.parametrize("name", ["links.json", "links.json.gz"])
def test_array(tmp_path: Path, images: str, name: str) -> None:
    content = json.dumps([link("a"), 7, link("b")], indent=1).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    preparation = prepared(ZeroFolder(images, str(tmp_path / name)), tmp_path / "out", 0.5)
    assert list(texts(tmp_path / "out")) == ["a", "b"]
    assert skipped(preparation, tmp_path) == [f"{name}:2: not a JSON object"]


def test_folder_of_lists_and_chosen_fields(tmp_path: Path, images: str) -> None:
    lists = tmp_path / "lists"
    write(lists / "1.jsonl", line("c"))
    (lists / "0.json.gz").write_bytes(gzip.compress(line("b").encode()))
    write(lists / "notes.txt", "no list")
    prepared(ZeroFolder(images, str(lists), ["Keywords"]), tmp_path / "out")
    assert texts(tmp_path / "out") == {"b": ("词",), "c": ("词",)}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line("b", ImageKey=...), 'no "ImageKey"'),
        (line("b", ImageKey=""), '"ImageKey" is empty'),
        (
            line("b", Title="", ImageQuery=None, Content=[]),
            "no text in Title, ImageQuery, Content; there is Url, Title, ",
        ),
        (line("b", Title={}), '"Title" is not a text'),
        (line("b")[:-9], "invalid JSON ("),
        (line("b").encode()[:-3] + b"\xff", "invalid UTF-8 at byte "),
        (line("a"), "a has been annotated before, in "),
        (line("gone"), "image images/gone cannot be read: No such file or directory, nor with an ending such as .jpg"),
    ],
)
def test_bad_link(tmp_path: Path, images: str, bad: str | bytes, reason: str) -> None:
    links = write(tmp_path / "links.jsonl", line("a"), bad, line("c"))
    preparation = prepared(ZeroFolder(images, str(links)), tmp_path / "out", 0.5)
    assert list(texts(tmp_path / "out")) == ["a", "c"]
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"links.jsonl:2: {reason}")
    with pytest.raises(UserError, match="1 of the 3 entries are unusable so far"):
        prepared(ZeroFolder(images, str(links)), tmp_path / "again")


def test_list_cut_short(tmp_path: Path, images: str) -> None:
    lines = [line("a"), *(line(f"{n}", Content=f"{n * 7919 % 1000}") for n in range(9000)), line("b")]
    whole = gzip.compress("\n".join(lines).encode())
    (tmp_path / "links.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    corpus = ZeroFolder(images, str(tmp_path / "links.jsonl.gz"))
    (*_, (place, split, reason)) = corpus.outcomes()
    assert (2000 < place.line < 8000, split) == (True, "train")
    assert str(reason).startswith("cannot be read further (Compressed file ended before")


def test_missing_lists(tmp_path: Path, images: str) -> None:
    (tmp_path / "lists").mkdir()
    with pytest.raises(UserError, match=r"folder .*lists holds no list of links; expected files named \*.jsonl or"):
        ZeroFolder(images, str(tmp_path / "lists"))
    with pytest.raises(UserError, match="annotation file .*absent.jsonl does not exist"):
        ZeroFolder(images, str(tmp_path / "absent.jsonl"))
