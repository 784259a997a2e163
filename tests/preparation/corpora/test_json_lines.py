"""A folder of images with a JSON-lines file becomes a dataset; every line that does not is named."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from small_data import encode

from r2d2_jax.data.records import RecordSource
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.prepare import Preparation, Settings, prepare

EXPECTED = 'expected {"image": "a.jpg", "captions": ["..."], "split": "train"}'


def line(number: int, **changes: Any) -> str:
    entry = {"image": f"{number}.jpg", "captions": [f"第{number}只狗"], "split": "train"} | changes
    return json.dumps({key: value for key, value in entry.items() if value is not None}, ensure_ascii=False)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten sound images 0.jpg to 9.jpg, cut.jpg of which the end is missing, and page.jpg that is no image."""
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for number in range(10):
        (folder / f"{number}.jpg").write_bytes(encode(seed=number))
    (folder / "more" / "a.png").write_bytes(encode(kind="PNG"))
    (folder / "cut.jpg").write_bytes(encode((90, 70))[:-300])
    (folder / "page.jpg").write_text("<html>not found</html>")
    return folder


def annotate(images: Path, *lines: str | bytes) -> str:
    path = images.parent / "captions.jsonl"
    path.write_bytes(b"".join((text.encode() if isinstance(text, str) else text) + b"\n" for text in lines))
    return str(path)


def prepared(images: Path, *lines: str | bytes, vocabulary: str = "", **settings: Any) -> Preparation:
    corpus = JsonLines(str(images), annotate(images, *lines))
    return prepare(corpus, str(images.parent / "out"), Settings(**settings), vocabulary=vocabulary)


def test_splits_captions_and_identities(images: Path, vocabulary: Path) -> None:
    preparation = prepared(
        images,
        "\N{BYTE ORDER MARK}" + line(0, captions=["一", "二"]),
        line(1, split="val"),
        "",
        line(2, image_id="same") + "\r",
        line(3, split="test"),
        line(4, image="more/a.png", source="ignored"),
        line(5, split="validation"),
        vocabulary=str(vocabulary),
        shards=2,
    )
    output = images.parent / "out"
    found = {}
    for split in ("train", "validation", "test"):
        source = RecordSource(output, split)
        found[split] = [source[i] for i in range(len(source))]
    assert {split: [record.image_id for record in records] for split, records in found.items()} == {
        "train": ["0.jpg", "same", "more/a.png"],
        "validation": ["1.jpg", "5.jpg"],
        "test": ["3.jpg"],
    }
    assert found["train"][0].captions == ("一", "二")
    assert found["train"][1].image == (images / "2.jpg").read_bytes()
    assert (output / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    assert [(s.name, s.records, s.captions, s.shards) for s in preparation.splits] == [
        ("train", 3, 4, 2),
        ("validation", 2, 2, 2),
        ("test", 1, 1, 1),
    ]
    assert sorted(path.name for path in output.iterdir()) == ["json_lines", "vocab.txt"]


BAD_LINES: list[tuple[str | bytes, str]] = [
    ('{"image": "0.jpg", ', "invalid JSON"),
    ('"0.jpg"', f"not a JSON object; {EXPECTED}"),
    (line(3, image=None), f'no "image"; {EXPECTED}'),
    (line(3, captions=None), f'no "captions"; {EXPECTED}'),
    (line(3, split=None), f'no "split"; {EXPECTED}'),
    (line(3, captions=[]), '"captions" is not a list with at least one text'),
    (line(3, captions="一只狗"), '"captions" is not a list with at least one text'),
    (line(3, captions=["一", "  "]), 'a text of "captions" is empty'),
    (line(3, captions=["\u200b\ufeff", "一"]), 'a text of "captions" is empty'),
    (line(3, captions=["\u00ad\u3164\u3000"]), 'a text of "captions" is empty'),
    (line(3, captions=["一", ["二"]]), 'a text of "captions" is not a text'),
    (line(3, image_id=""), '"image_id" is empty'),
    (line(3, image=[7]), '"image" is not a text'),
    (
        line(3, text_ids="q1"),
        '"text_ids" is not a list of 1 ids, one for each caption (null for a caption without one)',
    ),
    (line(3, text_ids=["q1", "q2"]), '"text_ids" is not a list of 1 ids, one for each caption'),
    (line(3, text_ids=[]), '"text_ids" is not a list of 1 ids, one for each caption'),
    (line(3, text_ids=[" "]), 'an id of "text_ids" is empty'),
    (line(3, text_ids=[["q1"]]), 'an id of "text_ids" is not a text'),
    (line(3, split="a/b"), "'a/b' cannot name a split; use letters, digits and underscores, a letter first"),
    (line(3, image="a\0b.jpg"), '"image" has half a surrogate pair or a NUL in it'),
    ('{"image": "3.jpg", "captions": ["\\ud83d"], "split": "train"}', 'a text of "captions" has half a surrogate'),
    (line(0), "0.jpg has been annotated before, in "),
    (line(3).encode()[:-20] + b"\xff" + line(3).encode()[-20:], "invalid UTF-8 at byte "),
    (line(3, image="absent.jpg"), "images/absent.jpg cannot be read: No such file or directory"),
    (line(3, image="more"), "images/more cannot be read: Is a directory"),
    (line(3, image="cut.jpg"), "image cut.jpg: the image cannot be decoded: image file is truncated"),
    (line(3, image="page.jpg"), "image page.jpg: not an image: 22 bytes in no known format"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES)
def test_bad_line_is_skipped_counted_and_named(
    images: Path, bad: str | bytes, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        preparation = prepared(images, line(0), bad, line(1), max_broken_share=0.5)
    source = RecordSource(images.parent / "out", "train")
    assert [source[index].image_id for index in range(len(source))] == ["0.jpg", "1.jpg"]
    (named,) = preparation.first_skipped
    assert named.startswith(f"{images.parent}/captions.jsonl:2: ")
    assert reason in named
    assert sum(preparation.skipped.values()) == 1
    assert named in preparation.table()
    assert "1 entries skipped" in preparation.table()
    assert caplog.text.count(f"skipped {named}") == 1
    assert preparation.skipped_file
    assert preparation.skipped_file.read_text() == f"{named}\n"


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES)
def test_too_many_bad_lines_stop_it(images: Path, bad: str | bytes, reason: str) -> None:
    with pytest.raises(
        UserError,
        match=r"1 of the 3 entries are unusable so far, more than --max_broken_share=0.01 "
        "allows; mend them or raise the share",
    ) as raised:
        prepared(images, line(0), bad, line(1))
    assert "captions.jsonl:2: " in str(raised.value)
    assert reason in str(raised.value)
    assert not list((images.parent / "out").rglob("dataset_info.json"))


def test_the_same_image_may_be_in_two_splits(images: Path) -> None:
    preparation = prepared(images, line(0), line(0, split="test"))
    assert [split.records for split in preparation.splits] == [1, 1]


def test_the_first_ten_are_listed(images: Path) -> None:
    absent = [line(number, image=f"absent{number}.jpg") for number in range(15)]
    with pytest.raises(UserError) as raised:
        prepared(images, *[line(number) for number in range(10)], *absent, max_broken_share=0.5, shards=1)
    assert "of the 25 entries" in str(raised.value)
    assert "captions.jsonl:20: " in str(raised.value)
    assert "captions.jsonl:21: " not in str(raised.value)


def test_image_id_of_null_is_left_out(images: Path) -> None:
    prepared(images, '{"image": "0.jpg", "captions": ["一"], "split": "train", "image_id": null}')
    assert RecordSource(images.parent / "out", "train")[0].image_id == "0.jpg"


def test_text_ids_of_captions(images: Path) -> None:
    """Numbers count as text; a line or a caption may have none. Without any, the dataset has no such feature."""
    prepared(
        images,
        line(0, captions=["一", "二"], text_ids=["q1", None]),
        line(1),
        line(2, captions=["一", "三"], text_ids=["q1", 7]),
        line(3, text_ids=[None], split="test"),
    )
    source = RecordSource(images.parent / "out", "train")
    assert source.has_text_ids
    assert [source[index].text_ids for index in range(3)] == [("q1", ""), ("",), ("q1", "7")]
    assert RecordSource(images.parent / "out", "test")[0].text_ids == ("",)
    plain = JsonLines(str(images), annotate(images, line(0, text_ids=[None]), line(1)))
    prepare(plain, str(images.parent / "plain"))
    source = RecordSource(images.parent / "plain", "train")
    assert (source.has_text_ids, source[0].text_ids) == (False, ())


def test_an_array_is_refused(images: Path) -> None:
    with pytest.raises(UserError, match=r"captions.jsonl is a JSON array; expected one object a line, like {\"image\""):
        prepared(images, f"[{line(0)}, {line(1)}]")


def test_no_usable_line(images: Path) -> None:
    with pytest.raises(UserError, match=r"corpus json_lines has no usable entry(.|\n)*:1: invalid JSON"):
        prepared(images, "not json", max_broken_share=1.0)


def test_missing_annotation_file(images: Path) -> None:
    with pytest.raises(UserError, match="annotation file .*absent.jsonl does not exist; set --annotations to"):
        JsonLines(str(images), str(images / "absent.jsonl"))


def test_missing_image_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image folder .*absent does not exist; set --images"):
        JsonLines(str(tmp_path / "absent"), str(tmp_path / "captions.jsonl"))


def test_real_photographs(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "flickr8k_cn"
    lines = (data / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = lines[:15] + [text for text in lines if '"split": "val"' in text][:5]
    annotations = tmp_path / "captions.jsonl"
    annotations.write_text("\n".join(chosen), encoding="utf-8")
    preparation = prepare(JsonLines(str(data / "images"), str(annotations)), str(tmp_path / "out"))
    assert {split.name: split.captions for split in preparation.splits}["validation"] >= 25
    entry = json.loads(chosen[0])
    record = RecordSource(tmp_path / "out", entry["split"].replace("val", "validation"))[0]
    assert (record.image_id, record.captions) == (entry["image"], tuple(entry["captions"]))
    assert record.image == (data / "images" / entry["image"]).read_bytes()
