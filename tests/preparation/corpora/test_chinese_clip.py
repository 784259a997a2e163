"""Base64 tables with JSON lines become a dataset, with galleries, and texts of several images."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from small_corpora import prepared, records, skipped, texts, write
from small_data import encode

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.chinese_clip import ChineseClip, Muge
from r2d2_jax.preparation.corpora.corpus import Piece


def image(number: int | str, seed: int | None = None, *, url_safe: bool = False) -> str:
    encoded = encode(seed=int(number) if seed is None else seed)
    return f"{number}\t{(base64.urlsafe_b64encode if url_safe else base64.b64encode)(encoded).decode()}"


def text(number: int, content: str, *images: int | str, **changes: Any) -> str:
    entry = {"text_id": number, "text": content, "image_ids": list(images)} | changes
    return json.dumps({key: value for key, value in entry.items() if value is not ...}, ensure_ascii=False)


def written(folder: Path, split: str, images: list[str | bytes], lines: list[str | bytes]) -> str:
    write(folder / f"{split}_imgs.tsv", *images)
    write(folder / f"{split}_texts.jsonl", *lines)
    return str(folder)


def test_texts_of_several_images_and_images_of_several_texts(tmp_path: Path) -> None:
    folder = tmp_path / "MUGE"
    written(
        folder,
        "train",
        ["\N{BYTE ORDER MARK}" + image(1), image(2, url_safe=True), image(3), "", image(4)],
        [text(10, "一", 2, 1), text(11, "二", 1), text(12, "三", 4)],
    )
    written(folder, "valid", [image(1, 7), image(5), image(6)], [text(10, "四", 6)])
    written(folder, "test", [image(8), image(9)], [text(13, "五"), text(14, "六")])
    preparation = prepared(Muge(annotations=str(folder)), tmp_path / "out")
    assert texts(tmp_path / "out") == {"2": ("一",), "1": ("一", "二"), "4": ("三",)}
    assert texts(tmp_path / "out", "validation") == {"1": (), "5": (), "6": ("四",)}
    assert texts(tmp_path / "out", "test") == {"8": (), "9": ()}
    ids = {record.image_id: record.text_ids for record in records(tmp_path / "out")}
    assert ids == {"2": ("10",), "1": ("10", "11"), "4": ("12",)}
    assert [record.text_ids for record in records(tmp_path / "out", "validation")] == [(), (), ("10",)]
    assert [record.image for record in records(tmp_path / "out")] == [encode(seed=seed) for seed in (2, 1, 4)]
    assert records(tmp_path / "out", "validation")[0].image == encode(seed=7)
    assert preparation.remarks == (
        "test: 2 texts name no image (no truth is published for them); left out",
        "train: 1 images that no text names; left out",
    )


def test_alphabets_differ_where_it_matters() -> None:
    """The images of these tests have bytes that the two alphabets write differently."""
    assert {"-", "_"} & set(image(2, url_safe=True))
    assert {"+", "/"} & set(image(1))


def test_names_of_the_original_release(tmp_path: Path) -> None:
    write(tmp_path / "MR_train_imgs.tsv", image(1), image(2))
    write(tmp_path / "MR_train_queries.jsonl", '{"query_id": 1, "query_text": "一", "item_ids": [1, 2]}')
    write(tmp_path / "MR_test_imgs.tsv", image(3))
    write(tmp_path / "MR_test_queries.jsonl", '{"query_id": 2, "query_text": "二"}')
    write(tmp_path / "example_pred.jsonl", "no file of ours")
    preparation = prepared(Muge(annotations=str(tmp_path)), tmp_path / "out")
    assert texts(tmp_path / "out") == {"1": ("一",), "2": ("一",)}
    assert {record.text_ids for record in records(tmp_path / "out")} == {("1",)}
    assert texts(tmp_path / "out", "test") == {"3": ()}
    assert preparation.remarks == ("test: 1 texts name no image (no truth is published for them); left out",)


def test_names_as_ids(tmp_path: Path) -> None:
    written(tmp_path, "train", [image("x.jpg", 1)], [text(1, "一", "x.jpg", text_id="x.jpg")])
    prepared(ChineseClip(annotations=str(tmp_path)), tmp_path / "out")
    assert texts(tmp_path / "out") == {"x.jpg": ("一",)}


EXPECTED = '; expected {"text_id": 8428, "text": "...", "image_ids": [1076345]}'


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (text(20, "二", text_id=...), f'no "text_id"{EXPECTED}'),
        (text(20, ""), f'"text" is empty{EXPECTED}'),
        (text(20, "二", image_ids=1), f'"image_ids" is not a list{EXPECTED}'),
        (text(20, "二", image_ids=[1, "1"]), f"an image is named twice{EXPECTED}"),
        (text(20, "二", image_ids=[[1]]), f"an image id is not a text{EXPECTED}"),
        (text(10, "二", 2, 1), "text 10 has been annotated before, in "),
        (text(20, "二", 99), "no image 99 in train_imgs.tsv"),
        (text(20, "二", 1)[:-2], "invalid JSON ("),
        (text(20, "二", 1).encode().replace("二".encode(), b"\xff"), "invalid UTF-8 at byte "),
    ],
)
def test_bad_text(tmp_path: Path, bad: str | bytes, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path, "train", [image(1), image(2)], [text(10, "一", 1), bad, text(11, "三", 2)])
    preparation = prepared(ChineseClip(annotations="."), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out") == {"1": ("一",), "2": ("三",)}
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"train_texts.jsonl:2: {reason}")
    with pytest.raises(UserError, match="1 of the [34] entries are unusable so far"):
        prepared(ChineseClip(annotations="."), tmp_path / "again")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("3", "1 tab-separated columns, expected 2: IMAGE<tab>BASE64"),
        (image(3) + "\tx", "3 tab-separated columns, expected 2: IMAGE<tab>BASE64"),
        (image(1, 5), "image train/1 has been given before, in "),
        (" \tabcd", "the image's id is empty; expected IMAGE<tab>BASE64"),
        (b"\xff3\tabcd", "invalid UTF-8 at byte 0 of the line"),
    ],
)
def test_bad_row_of_images(tmp_path: Path, bad: str | bytes, reason: str) -> None:
    written(tmp_path, "train", [image(1), bad, image(2)], [text(10, "一", 1), text(11, "三", 2)])
    preparation = prepared(ChineseClip(annotations=str(tmp_path)), tmp_path / "out", 0.5)
    assert [record.image for record in records(tmp_path / "out")] == [encode(seed=1), encode(seed=2)]
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"train_imgs.tsv:2: {reason}")


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("abc", "broken Base64 of image 3 in "),
        ("ab*c", "broken Base64 of image 3 in "),
        ("abcd", "image 3: not an image: 3 bytes"),
        ("", "image 3: not an image: 0 bytes"),
    ],
)
def test_image_that_is_none(tmp_path: Path, cell: str, reason: str) -> None:
    written(tmp_path, "valid", [image(1), f"3\t{cell}"], [text(10, "一", 1, 3)])
    preparation = prepared(ChineseClip(annotations=str(tmp_path)), tmp_path / "out", 0.5)
    assert texts(tmp_path / "out", "validation") == {"1": ("一",)}
    (named,) = skipped(preparation, tmp_path)
    assert named.startswith(f"valid_imgs.tsv:2: {reason}")


@pytest.mark.parametrize("gone", [True, False])
def test_table_that_has_gone_or_changed(tmp_path: Path, gone: bool) -> None:
    folder = written(tmp_path, "train", [image(1)], [text(10, "一", 1)])
    corpus, catalog = ChineseClip(annotations=folder), Catalog(tmp_path / "catalog", create=True)
    corpus.index(catalog)
    catalog.close()
    if gone:
        (tmp_path / "train_imgs.tsv").unlink()
    else:
        write(tmp_path / "train_imgs.tsv", image(1)[:-50])
    with pytest.raises(UserError, match="table .*train_imgs.tsv .*start again: finished shards are kept"):
        list(corpus.read(Piece("train", 1, start=0, stop=1), Catalog(tmp_path / "catalog")))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([f"[{text(1, '一', 1)}]"], 'train_texts.jsonl is a JSON array; expected one object a line, like {"text_id"'),
        ([], "annotation file .*train_texts.jsonl holds no usable annotation: it is empty, or not of the"),
    ],
)
def test_texts_of_another_form(tmp_path: Path, lines: list[str | bytes], message: str) -> None:
    folder = written(tmp_path, "train", [image(1)], lines)
    written(tmp_path, "valid", [image(1)], [text(1, "一", 1)])
    with pytest.raises(UserError, match=message):
        prepared(ChineseClip(annotations=folder), tmp_path / "out")


def test_missing_and_unknown_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="corpus chinese_clip needs --annotations; set it"):
        ChineseClip()
    with pytest.raises(UserError, match="corpus muge has no use for --images; leave it out"):
        Muge(images=str(tmp_path), annotations=str(tmp_path))
    with pytest.raises(UserError, match="folder .* holds no split; expected train_imgs.tsv and train_texts.jsonl"):
        ChineseClip(annotations=str(tmp_path))
    write(tmp_path / "train_imgs.tsv", image(1))
    with pytest.raises(UserError, match="annotation file .*train_texts.jsonl does not exist"):
        ChineseClip(annotations=str(tmp_path))
    write(tmp_path / "train_texts.jsonl", text(1, "一", 1))
    write(tmp_path / "dev_texts.jsonl", text(1, "一", 1))
    with pytest.raises(UserError, match="holds dev_texts.jsonl, of no known split .*; the splits are train, v"):
        ChineseClip(annotations=str(tmp_path))


def test_split_under_two_names(tmp_path: Path) -> None:
    written(tmp_path, "val", [image(1)], [text(1, "一", 1)])
    written(tmp_path, "valid", [image(1)], [text(1, "一", 1)])
    with pytest.raises(UserError, match="holds split validation under two names; move one of them away"):
        ChineseClip(annotations=str(tmp_path))
