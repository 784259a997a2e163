"""Datasets are written whole or not at all, and every record is found again by its number."""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_data import encode, example

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.records import RecordSource
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.examples import Example
from r2d2_jax.preparation.writer import write_dataset

ROOT = Path(__file__).resolve().parents[2]


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


def test_no_tensorflow_or_torch_is_imported(dataset: Path, vocabulary: Path) -> None:
    """In a process of its own, as other tests need PyTorch: from a record to a batch of images and tokens."""
    program = f"""
import sys
from r2d2_jax.config.data import DataConfig
from r2d2_jax.data.mixture import Mixture
from r2d2_jax.data.train_batches import train_batches
from r2d2_jax.data.records import RecordSource
from r2d2_jax.data.text.tokenizer import load_tokenizer
stream = train_batches(Mixture([RecordSource({str(dataset)!r}, "train")]), load_tokenizer({str(vocabulary)!r}, 8),
                       DataConfig(directory=""), image_size=16, batch_size=2, seed=0, first_step=0)
assert len(next(stream)["images"]) == 2
print(sorted({{"tensorflow", "torch", "r2d2_jax"}} & set(sys.modules)))
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, timeout=60, capture_output=True, text=True)
    assert done.stdout.strip() == "['r2d2_jax']", done.stderr


def test_source_is_pickled_without_its_open_files(source: RecordSource) -> None:
    before = source[5]
    copy = pickle.loads(pickle.dumps(source))
    assert len(pickle.dumps(source)) < 5000
    assert copy[5] == before


def test_numbers_out_of_range(source: RecordSource) -> None:
    for index in (-1, 22):
        with pytest.raises(IndexError):
            source[index]


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
    with pytest.raises(UserError, match="has no split 'test'; it has train, validation. Correct"):
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
