"""Datasets are written whole or not at all, and every record is found again by its number."""

import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tensorflow_datasets as tfds
from raw_data import serialized, write_raw
from small_data import encode, example

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.records import MAX_OPEN_SHARDS, RecordSource, dataset_folder
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset

ROOT = Path(__file__).resolve().parents[2]


def run(program: str, *arguments: object) -> str:
    """What a program in a process of its own prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_records_come_back_byte_for_byte(tmp_path: Path) -> None:
    kinds = ["JPEG", "PNG", "WEBP"]
    written = [Example(encode(seed=i, kind=kinds[i % 3]), (f"第{i}只狗", "“红球”"), f"图{i}") for i in range(7)]
    (summary,) = write_dataset(tmp_path, {"train": iter(written)}, shards=3)
    assert (summary.name, summary.records, summary.captions, summary.shards) == ("train", 7, 14, 3)

    source = RecordSource(tmp_path, "train")
    assert len(source) == 7
    read = [source[index] for index in range(7)]
    assert [record.name for record in read] == [
        *(f"train-00000-of-00003#{i}" for i in range(3)),
        *(f"train-00001-of-00003#{i}" for i in range(2)),
        *(f"train-00002-of-00003#{i}" for i in range(2)),
    ]
    in_order = sorted(read, key=lambda record: record.image_id)
    assert [Example(r.image, r.captions, r.image_id) for r in in_order] == written


def test_a_second_writing_gives_the_same_files(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_dataset(tmp_path / folder, {"train": map(example, range(9))}, shards=2)
    first, second = (sorted(path for path in (tmp_path / name).rglob("*") if path.is_file()) for name in ("a", "b"))
    assert [path.name for path in first] == [path.name for path in second]
    assert all(a.read_bytes() == b.read_bytes() for a, b in zip(first, second, strict=True))


def test_fewer_records_than_shards(tmp_path: Path) -> None:
    (summary,) = write_dataset(tmp_path, {"train": map(example, range(2))}, shards=5)
    assert summary.shards == 2
    assert [RecordSource(tmp_path, "train")[i].image_id for i in range(2)] == ["image0", "image1"]


def test_neither_tensorflow_nor_torch_nor_transformers_is_imported(reading_process: dict[str, Any]) -> None:
    """From a record to a batch of images and tokens, in a process of its own: other tests import these."""
    absent = {"tensorflow", "torch", "transformers"}
    assert absent & {*reading_process["modules"], *reading_process["modules_with_words"]} == set()
    assert "r2d2_jax" in reading_process["modules"]


def test_source_is_pickled_without_its_open_files(source: RecordSource) -> None:
    before = source[5]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 5000
    assert copy[5] == before


def test_numbers_out_of_range(source: RecordSource) -> None:
    for index in (-1, 22):
        with pytest.raises(IndexError):
            source[index]


@pytest.mark.parametrize("caption", [" ", "\u200b", "\ufeff\u00ad\u3000", "\u3164"])
def test_a_caption_of_which_nothing_can_be_seen(tmp_path: Path, caption: str) -> None:
    write_dataset(tmp_path, {"train": [example(0, "狗", caption), example(1, "\u200b狗")]})
    source = RecordSource(tmp_path, "train")
    with pytest.raises(UnusableRecord, match="it has an empty caption"):
        source[0].check_texts()
    source[1].check_texts()


def test_an_existing_dataset_is_refused_and_kept(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [example(0)]})
    with pytest.raises(UserError, match=r"image_text/1.0.0 holds a dataset already; choose another output folder"):
        write_dataset(tmp_path, {"train": [example(1)]})
    assert RecordSource(tmp_path, "train")[0].image_id == "image0"


def test_an_interrupted_writing_leaves_no_dataset(tmp_path: Path) -> None:
    def interrupted() -> Iterator[Example]:
        yield example(0)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path, {"train": interrupted()})
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    write_dataset(tmp_path, {"train": [example(1)]})
    assert len(RecordSource(tmp_path, "train")) == 1


def test_bad_requests_to_write(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="shards is 0; expected 1 to 512"):
        write_dataset(tmp_path, {"train": [example(0)]}, shards=0)
    with pytest.raises(UserError, match="'a/b' cannot name a split"):
        write_dataset(tmp_path, {"a/b": [example(0)]})
    with pytest.raises(UserError, match="split 'validation' has no usable record; no dataset was made"):
        write_dataset(tmp_path, {"train": [example(0)], "validation": []})
    with pytest.raises(UserError, match="holds no prepared dataset"):
        RecordSource(tmp_path, "train")


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere does not exist; expected NAME/1.0.0/dataset_info.json"):
        RecordSource(tmp_path / "nowhere", "train")


def test_several_datasets_in_one_folder(tmp_path: Path) -> None:
    for version in ("1.0.0", "2.0.0"):
        (tmp_path / "image_text" / version).mkdir(parents=True)
        (tmp_path / "image_text" / version / "dataset_info.json").write_text("{}")
    with pytest.raises(UserError, match="holds 2 datasets"):
        RecordSource(tmp_path, "train")


def test_missing_split(dataset: Path) -> None:
    with pytest.raises(UserError, match="has no split 'test'; it has train, validation. Name one of these"):
        RecordSource(dataset, "test")


def test_missing_shard(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": map(example, range(6))}, shards=3)
    shard = next(tmp_path.rglob("*00001-of-00003"))
    opened = RecordSource(tmp_path, "train")
    shard.unlink()
    message = r"train.array_record-00001-of-00003 is missing \(1 of the 3 shards of split 'train' are\); copy it back"
    with pytest.raises(UserError, match=message):
        RecordSource(tmp_path, "train")
    with pytest.raises(UserError, match=message):
        opened[2]


def test_truncated_shard(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": map(example, range(6))}, shards=3)
    shard = next(tmp_path.rglob("*00001-of-00003"))
    shard.write_bytes(shard.read_bytes()[:-100])
    source = RecordSource(tmp_path, "train")
    assert source[0].image_id == "image0"
    with pytest.raises(UserError, match="00001-of-00003 cannot be opened .* expected a complete ArrayRecord file"):
        source[2]


def test_a_flipped_byte_spoils_one_record_only(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": map(example, range(3))})
    shard = next(tmp_path.rglob("*00000-of-00001"))
    content = bytearray(shard.read_bytes())
    content[300] ^= 0xFF  # within the first record; the file begins with less than 200 bytes of headers
    shard.write_bytes(content)
    source = RecordSource(tmp_path, "train")
    with pytest.raises(UnusableRecord, match="cannot be read from"):
        source[0]
    assert source[1].image_id == "image1"


def test_foreign_dataset(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [example(0)]})
    features = next(tmp_path.rglob("features.json"))
    features.write_text(features.read_text().replace('"captions"', '"sentences"'))
    with pytest.raises(UserError, match="has no captions; expected records with image, captions and image_id"):
        RecordSource(tmp_path, "train")


@pytest.mark.parametrize("name", ["dataset_info.json", "features.json"])
@pytest.mark.parametrize("damage", ["cut", "not text", "empty object", "missing"])
def test_a_damaged_description(tmp_path: Path, name: str, damage: str) -> None:
    write_dataset(tmp_path, {"train": [example(0)]})
    file = next(tmp_path.rglob(name))
    if damage == "missing":
        file.unlink()
    else:
        contents = {"cut": file.read_bytes()[:40], "not text": b"\xff\xfe", "empty object": b"{}"}
        file.write_bytes(contents[damage])
    message = r"image_text/1.0.0 cannot be opened: .+; expected whole files dataset_info.json and features.json. Copy"
    if (name, damage) == ("dataset_info.json", "missing"):
        message = "holds no prepared dataset"
    with pytest.raises(UserError, match=message):
        RecordSource(tmp_path, "train")


@pytest.mark.parametrize("lengths", [[], ["0"]])
def test_a_split_without_records(tmp_path: Path, lengths: list[str]) -> None:
    write_dataset(tmp_path, {"train": [example(0)]})
    file = next(tmp_path.rglob("dataset_info.json"))
    description = json.loads(file.read_text())
    description["splits"][0]["shardLengths"] = lengths
    file.write_text(json.dumps(description))
    with pytest.raises(UserError, match="split 'train' of .*image_text/1.0.0 has no records; expected one or more"):
        RecordSource(tmp_path, "train")


def test_no_split_at_all(tmp_path: Path) -> None:
    write_dataset(tmp_path, {"train": [example(0)]})
    file = next(tmp_path.rglob("dataset_info.json"))
    file.write_text(json.dumps(json.loads(file.read_text()) | {"splits": []}))
    with pytest.raises(UserError, match="dataset_info.json names no split; expected one or more"):
        RecordSource(tmp_path, "train")


# --- any number of shards ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_names", [(), ("不匹配", "匹配")])
def test_records_are_those_that_tfds_reads(tmp_path: Path, class_names: tuple[str, ...]) -> None:
    texts = ["红球。", "🐶 一只狗", "两只\n狗"]
    label = {"label": 1} if class_names else {}
    records = [
        serialized(number, captions=[text.encode() for text in texts[: number % 4]], **label) for number in range(11)
    ]
    write_raw(tmp_path, {"train": [records[:2], records[2:3], records[3:]]}, class_names)
    builder = tfds.builder_from_directory(dataset_folder(tmp_path))
    expected = builder.as_data_source("train", decoders={"image": tfds.decode.SkipDecoding()})
    source = RecordSource(tmp_path, "train")
    assert len(source) == len(expected) == 11
    for index, row in enumerate(expected):
        record = source[index]
        assert record.image == row["image"]
        assert record.captions == tuple(caption.decode() for caption in row["captions"])
        assert record.image_id == row["image_id"].decode() == f"image{index}"
        assert (record.label, row.get("label")) == ((1, 1) if class_names else (None, None))


def test_more_shards_than_files_may_be_open(tmp_path: Path) -> None:
    """1,500 shards of two records where a process may have 200 files open, read in any order by four threads."""
    write_raw(tmp_path, {"train": [[serialized(shard * 2 + place) for place in range(2)] for shard in range(5)]},
              copies=300)  # fmt: skip
    program = """
import os, random, resource, sys
from concurrent.futures import ThreadPoolExecutor
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
from r2d2_jax.data.records import RecordSource
source = RecordSource(sys.argv[1], "train")
numbers = random.Random(0).sample(range(len(source)), len(source))
with ThreadPoolExecutor(4) as pool:
    read = list(pool.map(lambda number: source[number].image_id, numbers))
assert read == [f"image{number % 10}" for number in numbers]
print(len(read), len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0)
"""
    read, still_open = map(int, run(program, tmp_path).split())
    assert read == 3000
    assert still_open < MAX_OPEN_SHARDS + 40


def test_a_forked_process_reads_beside_its_parent(tmp_path: Path) -> None:
    """Both read from files that the parent had opened."""
    write_raw(tmp_path, {"train": [map(serialized, range(50))]})
    program = """
import multiprocessing, sys
from r2d2_jax.data.records import RecordSource
source = RecordSource(sys.argv[1], "train")
expected = [source[number] for number in range(50)]
def read(seed):
    return all(source[number] == expected[number] for _ in range(20) for number in range(50))
with multiprocessing.get_context("fork").Pool(2) as pool:
    theirs = pool.map_async(read, range(2))
    print(read(0), *theirs.get(60))
"""
    assert run(program, tmp_path).split() == ["True"] * 3


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Peak memory of opening and reading everything: 100,000 records against 10,000, in shards of 10,000."""
    program = """
import re, sys
from r2d2_jax.data.records import RecordSource

def peak():  # of this process alone; that of getrusage begins with its parent's
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])

peaks = [peak()]
for folder, records in ((sys.argv[1], 10_000), (sys.argv[2], 100_000)):
    source = RecordSource(folder, "train")
    assert sum(len(source[number].captions) for number in range(len(source))) == records
    peaks.append(peak())
print(*peaks)
"""
    record = serialized(image=b"x" * 200)
    small, large = (
        write_raw(tmp_path / str(copies), {"train": [[record] * 10_000]}, copies=copies) for copies in (1, 10)
    )
    before, after_small, after_large = map(int, run(program, small, large).split())
    assert after_large < 1.1 * before
    # 90,000 captions alone would be 9 MB as Python strings; nine more open shards are 0.8 MB.
    assert after_large - after_small < 4_000


@pytest.mark.parametrize("told, found", [(2, 3), (3, 2)])
def test_a_shard_of_another_dataset(tmp_path: Path, told: int, found: int) -> None:
    for folder, count in (("a", told), ("b", found)):
        write_dataset(tmp_path / folder, {"train": map(example, range(count))})
    ours, other = (next((tmp_path / folder).rglob("*array_record-00000*")) for folder in ("a", "b"))
    ours.write_bytes(other.read_bytes())
    message = f"shard {ours} cannot be opened (it has {found} of the {told} records that dataset_info.json tells of)"
    with pytest.raises(UserError, match=re.escape(message)):
        RecordSource(tmp_path / "a", "train")[0]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"no Example at all", "it is not what launch/prepare_data.py writes: .*"),
        (b"", "it has no feature image, captions, image_id"),
        (serialized(captions=None), "it has no feature captions"),
        (serialized(captions=b"\xff\xfe"), "it is not what .* writes: 'utf-8' codec can't decode .*"),
        (serialized(image_id=[b"a", b"b"]), "it has 2 values of image_id; expected one"),
        (serialized(image=[]), "it has 0 values of image; expected one"),
    ],
)
def test_records_of_another_kind(tmp_path: Path, record: bytes, reason: str) -> None:
    write_raw(tmp_path, {"train": [[record, serialized(1)]]})
    source = RecordSource(tmp_path, "train")
    with pytest.raises(UnusableRecord) as told:
        source[0]
    assert re.fullmatch(reason, str(told.value), re.DOTALL)
    assert source[1].image_id == "image1"


def test_a_label_that_is_missing(tmp_path: Path) -> None:
    write_raw(tmp_path, {"train": [[serialized(), serialized(label=0)]]}, ("花", "树"))
    source = RecordSource(tmp_path, "train")
    with pytest.raises(UnusableRecord, match="it has no feature label"):
        source[0]
    assert source[1].label == 0


def test_text_ids_that_do_not_fit_the_captions(tmp_path: Path) -> None:
    sound = serialized(0, text_ids=[b"q1"])
    bad = serialized(1, captions=[b"a", b"b"], text_ids=[b"q1"])
    source = RecordSource(write_raw(tmp_path, {"train": [[sound, bad, serialized(2)]]}, text_ids=True), "train")
    assert source[0].text_ids == ("q1",)
    with pytest.raises(UnusableRecord, match="it has 2 captions and 1 text_ids; expected one for each"):
        source[1]
    with pytest.raises(UnusableRecord, match="it has no feature text_ids"):
        source[2]
