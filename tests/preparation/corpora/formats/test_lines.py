"""Annotation files are read one annotation at a time, and every bad one has its place and reason."""

import codecs
import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.formats.fields import as_text, chosen_texts, columns, json_object
from r2d2_jax.preparation.corpora.formats.lines import begins_with, lines, parsed_array, parsed_lines


def numbered(outcomes: Any) -> list[tuple[int, Any]]:
    return [(place.line, str(outcome)) for place, outcome in outcomes]


def test_lines_with_marks_ends_and_blanks(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("\N{BYTE ORDER MARK}一\r\n\n  \n二\t \n三".encode())
    assert numbered(lines(path)) == [(1, "一"), (4, "二\t "), (5, "三")]


def test_other_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("一\u2028二\x0b三\n四\n")
    assert numbered(lines(path)) == [(1, "一\u2028二\x0b三"), (2, "四")]


def test_invalid_utf8_spoils_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes("一\n二".encode() + b"\xff\n" + "三\n".encode())
    assert numbered(lines(path)) == [(1, "一"), (2, "invalid UTF-8 at byte 3 of the line"), (3, "三")]


def test_parsed_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a"\n[1]\n{"b": 1}\n')
    found = numbered(parsed_lines(path, lambda line: json_object(line, "a", "b")))
    assert found[0] == (1, 'no "b"')
    assert found[1][1].startswith("invalid JSON (")
    assert found[2:] == [(3, "not a JSON object"), (4, 'no "a"')]


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="annotation file .*absent.txt cannot be read: No such file or directory; set"):
        next(lines(tmp_path / "absent.txt"))


def test_array_entry_by_entry(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([{"a": "一"}, 3.5, {"a": ["二"]}]))

    def parse(entry: Any) -> Any:
        if not isinstance(entry, dict):
            raise UnusableRecord("not a JSON object")
        return entry["a"]

    assert numbered(parsed_array(path, parse)) == [(1, "一"), (2, "not a JSON object"), (3, "['二']")]


@pytest.mark.parametrize("text", ['[{"a": 1}, {"a": ', '[{"a": 1}, nonsense, {"a": 3}]'])
def test_array_that_breaks_off(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    first, second = numbered(parsed_array(path, lambda entry: entry["a"]))
    assert first == (1, "1")
    assert second[0] == 2
    assert re.fullmatch(r"invalid JSON \(.*\); this entry and all after it are lost", second[1])


@pytest.mark.parametrize("mark", ["", "\N{BYTE ORDER MARK}"])
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_marks_and_compression(tmp_path: Path, mark: str, compress: Callable[[bytes], bytes]) -> None:
    path = tmp_path / ("a.json" if compress is bytes else "a.json.gz")
    path.write_bytes(compress(f"{mark} [1, 2]\n".encode()))
    assert begins_with(path, b"[")
    assert not begins_with(path, b"{")
    assert numbered(parsed_array(path, lambda entry: entry)) == [(1, "1"), (2, "2")]
    assert [line.strip() for _, line in numbered(lines(path))] == ["[1, 2]"]


def test_part_of_an_object(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text('{"other": [7], "images": [1, 2]}')
    assert numbered(parsed_array(path, lambda entry: entry, "images.item")) == [(1, "1"), (2, "2")]


@pytest.mark.parametrize("content", [gzip.compress(b"a\nb\n" * 50, mtime=0)[:-12], b"not compressed"])
def test_compressed_file_that_breaks_off(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt.gz"
    path.write_bytes(content)
    assert not begins_with(path, b"[")
    (*_, (_, last)) = numbered(lines(path))
    assert re.fullmatch(r"cannot be read further \(.*\); this line and all after it are lost", last)


def test_chosen_texts() -> None:
    entry = {"Title": " 一 ", "content": ["二", "", "一"], "Query": None, "n": 7}
    assert chosen_texts(entry, ["Query", "Content", "Title", "n", "absent"]) == ("二", "一", "7")
    with pytest.raises(UnusableRecord, match="^no text in Query, absent; there is Title, content, Query, n$"):
        chosen_texts(entry, ["Query", "absent"])


def test_a_number_where_a_text_may_be(tmp_path: Path) -> None:
    assert chosen_texts({"a": float("nan"), "b": "一", "c": [1.5, "二"]}, ["a", "b", "c"]) == ("一", "二")
    assert chosen_texts({"a": "\u200b", "b": ["\ufeff", "一"]}, ["a", "b"]) == ("一",)
    with pytest.raises(UnusableRecord, match='^"a" is not a text$'):
        chosen_texts({"a": float("nan"), "b": ""}, ["a", "b"])


def test_columns() -> None:
    assert columns("a\tb", 2, "IMAGE<tab>TEXT") == ["a", "b"]
    with pytest.raises(UnusableRecord, match="^3 tab-separated columns, expected 2: IMAGE<tab>TEXT$"):
        columns("a\tb\tc", 2, "IMAGE<tab>TEXT")


@pytest.mark.parametrize(("value", "expected"), [(" 一 ", "一"), (42, "42")])
def test_texts(value: Any, expected: str) -> None:
    assert as_text(value, "a caption") == expected


@pytest.mark.parametrize(
    ("value", "reason"),
    [("　 ", "is empty"), ("\u200b\ufeff\u00ad", "is empty"), (None, "is not a text"), (True, "is not a text")],
)
def test_no_texts(value: Any, reason: str) -> None:
    with pytest.raises(UnusableRecord, match=f"a caption {reason}"):
        as_text(value, "a caption")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("一\n二".encode("utf-16"), "UTF-16; save it as UTF-8"),
        (codecs.BOM_UTF16_BE + "一\n二".encode("utf-16-be"), "UTF-16; save it as UTF-8"),
        (gzip.compress("一\n".encode(), mtime=0), "compressed with gzip; let its name end in .gz"),
        (b"PK\x03\x04...", "a zip archive or a workbook; unpack it, or save it as text"),
        (b"PAR1...", "Parquet; choose a --corpus that reads it"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer; run `git lfs pull`"),
    ],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=re.escape(f"{path} is no text in UTF-8 but {message}")):
        list(lines(path))
