"""A folder of images with a JSON-lines file becomes a dataset; every line that does not is named."""

import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from small_data import encode

from r2d2_jax.data import sources
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.sources import AnnotatedImages, prepare_dataset
from r2d2_jax.errors import UserError

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


def annotate(images: Path, *lines: str) -> str:
    path = images.parent / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def prepare(images: Path, *lines: str, **settings: Any) -> sources.Preparation:
    return prepare_dataset(str(images), annotate(images, *lines), str(images.parent / "out"), **settings)


def test_splits_captions_and_identities(images: Path, vocabulary: Path) -> None:
    preparation = prepare(
        images,
        line(0, captions=["一", "二"]),
        line(1, split="val"),
        "",
        line(2, image_id="same"),
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
        found[split] = {source[i].image_id: source[i] for i in range(len(source))}
    assert {split: sorted(records) for split, records in found.items()} == {
        "train": ["0.jpg", "more/a.png", "same"], "validation": ["1.jpg", "5.jpg"], "test": ["3.jpg"]
    }
    assert found["train"]["0.jpg"].captions == ("一", "二")
    assert found["train"]["same"].image == (images / "2.jpg").read_bytes()
    assert (output / "vocab.txt").read_bytes() == vocabulary.read_bytes()
    assert [(s.name, s.records, s.captions, s.shards) for s in preparation.splits] == [
        ("train", 3, 4, 2), ("validation", 2, 2, 2), ("test", 1, 1, 1)
    ]
    header, first, *_ = preparation.table().split("\n")
    assert header.split() == ["split", "records", "captions", "skipped", "bytes", "shards"]
    assert first.split()[:4] == ["train", "3", "4", "0"]


BAD_LINES = [
    ('{"image": "0.jpg", ', "invalid JSON"),
    ('["0.jpg"]', f"not a JSON object; {EXPECTED}"),
    (line(0, image=None), f'no "image"; {EXPECTED}'),
    (line(0, captions=None), f'no "captions"; {EXPECTED}'),
    (line(0, split=None), f'no "split"; {EXPECTED}'),
    (line(0, captions=[]), '"captions" is not a list with at least one text'),
    (line(0, captions="一只狗"), '"captions" is not a list with at least one text'),
    (line(0, captions=["一", "  "]), '"captions" has an empty caption'),
    (line(0, image_id=""), '"image_id" is empty'),
    (line(0, image=7), '"image" is not the path of an image'),
    (line(0, image="absent.jpg"), "images/absent.jpg cannot be read: No such file or directory"),
    (line(0, image="more"), "images/more cannot be read: Is a directory"),
    (line(0, image="cut.jpg"), "images/cut.jpg: the image cannot be decoded: image file is truncated"),
    (line(0, image="page.jpg"), "images/page.jpg: not an image: 22 bytes in no known format"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES)
def test_bad_line_is_skipped_and_named(images: Path, bad: str, reason: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        preparation = prepare(images, line(0), bad, line(1), max_broken_share=0.5)
    assert len(RecordSource(images.parent / "out", "train")) == 2
    (named,) = preparation.bad_lines
    assert named.startswith(f"{images.parent}/captions.jsonl:2: ")
    assert reason in named
    assert sum(preparation.skipped.values()) + preparation.unassigned == 1
    assert named in preparation.table()
    assert "1 lines skipped" in preparation.table()
    assert f"skipped {named}" in caplog.text


@pytest.mark.parametrize(("bad", "reason"), BAD_LINES)
def test_too_many_bad_lines_stop_it(images: Path, bad: str, reason: str) -> None:
    with pytest.raises(UserError, match=r"1 of the 3 lines of .*captions.jsonl are unusable so far, more than "
                                        r"--max-broken-share=0.01 allows; mend them or raise the share") as raised:
        prepare(images, line(0), bad, line(1))
    assert "captions.jsonl:2: " in str(raised.value)
    assert reason in str(raised.value)
    assert not list((images.parent / "out").rglob("dataset_info.json"))


def test_the_first_ten_are_listed(images: Path) -> None:
    absent = [line(number, image=f"absent{number}.jpg") for number in range(15)]
    with pytest.raises(UserError) as raised:
        prepare(images, *[line(number) for number in range(10)], *absent, max_broken_share=0.5)
    assert "13 of the 25 lines" in str(raised.value)
    assert "captions.jsonl:20: " in str(raised.value)
    assert "captions.jsonl:21: " not in str(raised.value)


def test_no_usable_line(images: Path) -> None:
    with pytest.raises(UserError, match=r"has no usable line; expected lines like (.|\n)*:1: invalid JSON"):
        prepare(images, "not json", max_broken_share=1.0)


def test_missing_annotation_file(images: Path) -> None:
    with pytest.raises(UserError, match="annotation file .*absent.jsonl does not exist; set --annotations to"):
        AnnotatedImages(images, images / "absent.jsonl", 0.0)


def test_missing_image_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="image folder .*absent does not exist; set --images"):
        AnnotatedImages(tmp_path / "absent", tmp_path / "captions.jsonl", 0.0)


def test_wrong_vocabulary_is_found_before_the_images_are_read(images: Path) -> None:
    for bad in ("absent.txt", str(images)):
        with pytest.raises(UserError, match="does not exist; expected a WordPiece vocab.txt"):
            prepare(images, line(0), vocabulary=bad)
    assert not (images.parent / "out").exists()


def test_vocabulary_must_be_a_file(images: Path, vocabulary: Path) -> None:
    with pytest.raises(UserError, match="is not a file; expected a vocab.txt to copy beside the dataset"):
        prepare(images, line(0), vocabulary=str(vocabulary.parent))


def test_progress_lines_outside_a_terminal(images: Path, capsys: pytest.CaptureFixture, monkeypatch: Any) -> None:
    monkeypatch.setattr(sources, "_LOG_SECONDS", 0.0)
    prepare(images, *[line(number) for number in range(4)])
    assert "train: 2 of 4 records, " in capsys.readouterr().err


def test_bar_on_a_terminal(images: Path, monkeypatch: Any) -> None:
    terminal = io.StringIO()
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stderr", terminal)
    prepare(images, *[line(number) for number in range(4)])
    assert "4/4" in terminal.getvalue()
    assert "records/s" in terminal.getvalue()


def test_real_photographs(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "flickr8k_cn"
    lines = (data / "captions.jsonl").read_text(encoding="utf-8").splitlines()
    chosen = lines[:15] + [text for text in lines if '"split": "val"' in text][:5]
    annotations = tmp_path / "captions.jsonl"
    annotations.write_text("\n".join(chosen), encoding="utf-8")
    preparation = prepare_dataset(str(data / "images"), str(annotations), str(tmp_path / "out"))
    assert {split.name: split.captions for split in preparation.splits}["validation"] >= 25
    entry = json.loads(chosen[0])
    record = RecordSource(tmp_path / "out", entry["split"].replace("val", "validation"))[0]
    assert (record.image_id, record.captions) == (entry["image"], tuple(entry["captions"]))
    assert record.image == (data / "images" / entry["image"]).read_bytes()
