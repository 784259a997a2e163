"""Any record of any number of shards: what TFDS itself reads, with few files open and memory that does not grow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow_datasets as tfds
from raw_data import serialized, write_raw
from small_data import example

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.records import RecordSource, dataset_folder
from r2d2_jax.data.shards import MAX_OPEN_SHARDS
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.writer import write_dataset

ROOT = Path(__file__).resolve().parents[2]


def run(program: str, *arguments: object) -> str:
    """What a program in a process of its own prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


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
import resource, sys
from r2d2_jax.data.records import RecordSource
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
source = RecordSource(sys.argv[1], "train")
captions = sum(len(source[number].captions) for number in range(len(source)))
print(captions, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    record = serialized(image=b"x" * 200)
    grown = {}
    for copies in (1, 10):
        folder = write_raw(tmp_path / str(copies), {"train": [[record] * 10_000]}, copies=copies)
        captions, before, after = map(int, run(program, folder).split())
        assert captions == copies * 10_000
        grown[copies] = after - before
        assert after < 1.1 * before
    # 90,000 captions alone would be 9 MB as Python strings; nine more open shards are 0.8 MB.
    assert grown[10] - grown[1] < 4_000, grown


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
