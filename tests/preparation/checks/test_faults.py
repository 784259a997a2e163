"""Damaged data is counted; settings out of range and a machine that fails are one message each."""

import errno
import functools
import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from small_check import checked, settings
from small_data import example

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.checks import repeats
from r2d2_jax.preparation.checks.checking import check
from r2d2_jax.preparation.checks.repeats import Sightings
from r2d2_jax.preparation.checks.sources import CorpusSource, DatasetSource, Part, vocabulary_of
from r2d2_jax.preparation.checks.table import table
from r2d2_jax.preparation.corpora.json_lines import JsonLines
from r2d2_jax.preparation.examples import Entry
from r2d2_jax.preparation.progress import ProgressBar
from r2d2_jax.preparation.writer import write_dataset


def test_records_that_training_would_leave_out(tmp_path: Path) -> None:
    examples = [example(0), example(1, " "), example(2, image_id=""), example(3), example(4, "\u200b\ufeff\u00ad")]
    write_dataset(tmp_path, {"train": examples})
    train = checked(tmp_path).splits["train"]
    assert (train.entries, train.usable, train.captions.count) == (5, 2, 4)
    assert train.first_unusable == {
        "empty_caption": [f"train-00000-of-00001#{number}: it has an empty caption" for number in (1, 4)],
        "no_image_id": ["train-00000-of-00001#2: it has no image_id"],
    }


def test_a_damaged_record(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": map(example, range(3))})
    shard = next(tmp_path.rglob("*00000-of-00001"))
    content = bytearray(shard.read_bytes())
    content[300] ^= 0xFF  # within the first record
    shard.write_bytes(content)
    train = checked(tmp_path).splits["train"]
    assert (train.usable, train.unusable["unreadable"]) == (2, 1)
    assert train.first_unusable["unreadable"][0].startswith("train-00000-of-00001#0: cannot be read from ")


def test_a_damaged_description_is_one_message(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [example(0)]})
    file = next(tmp_path.rglob("dataset_info.json"))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match="image_text/1.0.0 cannot be opened: "):
        checked(tmp_path)


def test_a_split_without_records_is_one_message(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [example(0)], "test": [example(1)]})
    file = next(tmp_path.rglob("dataset_info.json"))
    description = json.loads(file.read_text())
    for split in description["splits"]:
        split["shardLengths"] = [] if split["name"] == "test" else split["shardLengths"]
    file.write_text(json.dumps(description))
    with pytest.raises(UserError, match="split 'test' of .* has no records; expected one or more"):
        checked(tmp_path)


@pytest.mark.parametrize("missing", [True, False])
def test_a_damaged_shard(tmp_path: Path, missing: bool) -> None:
    write_dataset(tmp_path, {"train": map(example, range(6))}, shards=3)
    shard = next(tmp_path.rglob("*00001-of-00003"))
    if missing:
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-100])
    report = checked(tmp_path)
    train = report.splits["train"]
    assert (train.usable, train.unusable["damaged_shard"], train.damaged_shards) == (4, 2, {shard.name: 2})
    assert train.first_unusable["damaged_shard"][0].startswith("train-00001-of-00003#0: shard ")
    assert (f"train: 1 of the shards are missing or damaged, which training stops at: {shard.name}") in report.errors
    assert report.status == 1


def test_the_vocabulary_of_a_prepared_folder(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [example(0)]})
    assert vocabulary_of(str(tmp_path)) is None
    (tmp_path / "vocab.txt").touch()
    assert vocabulary_of(str(tmp_path)) == str(tmp_path / "vocab.txt")
    assert vocabulary_of(str(tmp_path / "image_text" / "1.0.0")) == str(tmp_path / "vocab.txt")


def test_the_work_folder_is_left_empty(many: Path, tmp_path: Path) -> None:
    check(lambda folder: DatasetSource(str(many)), "dataset", settings(), work=str(tmp_path / "work"))
    assert list((tmp_path / "work").iterdir()) == []


def test_messages_name_the_work_folder_that_lasts(many: Path, tmp_path: Path) -> None:
    def refuse(folder: Path) -> DatasetSource:
        raise UserError(f"cannot write {folder / 'catalog.sqlite'}: the disk is full")

    with pytest.raises(UserError, match=f"^cannot write {tmp_path}/work/catalog.sqlite: the disk is full$"):
        check(refuse, "dataset", settings(), work=str(tmp_path / "work"))


def test_a_work_folder_that_cannot_be(many: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"--work=.*file/work cannot be made: Not a directory; name a folder that"):
        check(lambda folder: DatasetSource(str(many)), "dataset", settings(), work=str(tmp_path / "file" / "work"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_length": 2}, "--text_length is 2; expected 3 or more"),
        ({"image_size": 0}, "--image_size is 0; expected 1 or more"),
        ({"hosts": 0}, "--hosts is 0; expected 1 or more"),
        ({"max_broken_share": 1.5}, "--max_broken_share is 1.5; expected a share, 0 to 1"),
        ({"max_unknown_share": -1}, "--max_unknown_share is -1; expected a share, 0 to 1"),
    ],
)
def test_settings_out_of_range(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**changes)


def test_nothing_usable(tmp_path: Path) -> None:
    (tmp_path / "captions.jsonl").write_text("{}\n" * 3)
    corpus = JsonLines(str(tmp_path), str(tmp_path / "captions.jsonl"))
    report = check(functools.partial(CorpusSource, corpus), "corpus", settings())
    assert report.status == 1
    assert report.errors[0] == "there is no entry at all: every annotation is unusable, or there is none"
    assert "error: there is no entry at all" in table(report)


def test_a_corpus_that_changes_while_it_is_checked(
    corpus: JsonLines, vocabulary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(source: CorpusSource, part: Part, number: int) -> Entry:
        return Entry("captions.jsonl:1", UnusableRecord("image a.jpg cannot be read"))

    monkeypatch.setattr(CorpusSource, "entry", gone)
    with pytest.raises(UserError, match="captions.jsonl:1 has changed since the check began; check again when nothing"):
        check(functools.partial(CorpusSource, corpus), "corpus", settings(vocabulary))


def test_a_killed_process_is_one_message(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def take(*_: object) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    monkeypatch.setattr(ProgressBar, "take", take)
    with pytest.raises(
        UserError,
        match="a process that reads the data was killed, perhaps for want of memory; lower --processes and start again",
    ):
        checked(many, processes=2)


def test_a_full_disk_is_one_message(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Sightings, "write", write)
    with pytest.raises(
        UserError, match="cannot write to .*: .*No space left on device; name a folder with more room by --work"
    ):
        checked(many)


def test_a_disk_that_fills_up_while_repeats_are_merged(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def merged(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(repeats, "_FILES", 2)
    monkeypatch.setattr(repeats, "_merged", merged)
    with pytest.raises(UserError, match="cannot write to .*: .*No space left on device; name a folder with more room"):
        checked(many)
