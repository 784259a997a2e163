"""Own labelled pairs become a labelled dataset; every line that does not is named."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_data import encode

from r2d2_jax.data.records import RecordSource
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora import CORPORA
from r2d2_jax.preparation.prepare import Settings, prepare


def prepared(folder: Path, *lines: dict[str, Any] | str, **settings: Any) -> None:
    images = folder / "images"
    images.mkdir(exist_ok=True)
    for number in range(3):
        (images / f"{number}.jpg").write_bytes(encode(seed=number))
    texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
    (folder / "pairs.jsonl").write_text("\n".join(texts) + "\n", encoding="utf-8")
    corpus = CORPORA["pairs"](str(images), str(folder / "pairs.jsonl"))
    prepare(corpus, str(folder / "out"), Settings(shards=1, **settings))


def line(image: int, text: str, label: Any, split: str = "train", **more: Any) -> dict[str, Any]:
    return {"image": f"{image}.jpg", "text": text, "label": label, "split": split, **more}


def test_every_pair_is_a_record_and_keeps_its_image_id(tmp_path: Path) -> None:
    prepared(
        tmp_path,
        line(0, "一只狗", 1, image_id="the same"),
        line(0, "红球", 0, image_id="the same"),
        line(1, "红球", "1"),
        {"image": "2.jpg", "captions": ["一只狗"], "label": 0, "split": "train"},
        line(2, "二", 1, "val"),
    )
    source = RecordSource(tmp_path / "out", "train")
    assert source.labelled
    records = [source[index] for index in range(len(source))]
    assert [(record.image_id, record.captions, record.label) for record in records] == [
        ("the same", ("一只狗",), 1),
        ("the same", ("红球",), 0),
        ("1.jpg", ("红球",), 1),
        ("2.jpg", ("一只狗",), 0),
    ]
    assert RecordSource(tmp_path / "out", "validation")[0].captions == ("二",)


@pytest.mark.parametrize(
    "bad, message",
    [
        (line(0, "一", 2), '"label" is 2; expected 1 (match) or 0 (no match)'),
        (line(0, "一", True), '"label" is True; expected'),
        ({"image": "0.jpg", "text": "一", "split": "train"}, 'no "label"; expected {"image": "a.jpg", "text"'),
        ({"image": "0.jpg", "label": 1, "split": "train"}, 'no "text"; expected'),
        ({"image": "0.jpg", "captions": ["一", "二"], "label": 1, "split": "train"}, "2 captions for one label"),
    ],
)
def test_bad_lines(bad: dict[str, Any], message: str, tmp_path: Path) -> None:
    prepared(tmp_path, line(0, "一", 1), bad, max_broken_share=0.6)
    assert message in next((tmp_path / "out").rglob("skipped.txt")).read_text(encoding="utf-8")


def test_an_array(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='expected .*{"image": "a.jpg", "text": "...", "label": 1'):
        prepared(tmp_path, "[")
