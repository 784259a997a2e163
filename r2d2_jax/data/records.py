"""Prepared datasets: any record by its number, however many shards there are, with few of them open at once.

A prepared folder holds `NAME/1.0.0/` (a TFDS dataset in ArrayRecord shards) and usually `vocab.txt` beside it.
"""

import functools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.proto import tf_example_pb2

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.text.blank import is_blank
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.paths import check_utf8, user_path

# For all datasets together; our decision: systems commonly allow a process 256 or 1,024 open files. An open shard takes
# 8 bytes a record and about 10 kB. Opening it reads its index, about 40 microseconds for every 1,000 records, so a run
# goes through a corpus in windows of shards (see `CorpusOrder`).
MAX_OPEN_SHARDS = 128
# Each read takes one record, so reading ahead and threads would only cost. The index stays in memory while the shard is
# open: ArrayRecord would unpack its "offloaded" index as a whole at every read.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:0"
_BUFFER_BYTES = 32768  # what ArrayRecord's own data source sets


@dataclass(frozen=True)
class Record:
    """One image with its captions, from a prepared dataset.

    name: where it lies, like "train-00003-of-00008#17".
    label: 0 or 1 for whether image and text match, or the number of a class; None where the dataset has no labels.
    text_ids: the identity of each caption, "" for one without; () where the dataset has none. Captions with the same
        identity are the same text: each of its images is right.
    """

    image: bytes
    captions: tuple[str, ...]
    image_id: str
    name: str
    label: int | None = None
    text_ids: tuple[str, ...] = ()

    def check_texts(self) -> None:
        """Checks captions and identity; there may be no caption, and the image is checked when it is decoded.

        Raises:
            UnusableRecord: a caption is empty, or there is no image_id.
        """
        if any(map(is_blank, self.captions)):
            raise UnusableRecord("it has an empty caption")
        if not self.image_id:
            raise UnusableRecord("it has no image_id")


def dataset_folder(directory: str | os.PathLike[str]) -> Path:
    """Finds the one TFDS dataset in a prepared folder (or takes the folder itself, if it is a TFDS dataset).

    Raises:
        UserError: the folder does not exist, or holds no dataset, or several.
    """
    root = user_path(directory)
    check_utf8(root.absolute(), "data folder")
    if (root / "dataset_info.json").is_file():
        return root
    found = sorted(path.parent for path in root.glob("*/*/dataset_info.json") if "incomplete" not in path.parent.name)
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(
            f"{root} holds {len(found)} datasets ({', '.join(map(str, found))}); expected one. Name one of "
            "these folders instead"
        )
    missing = "holds no prepared dataset" if root.exists() else "does not exist"
    raise UserError(
        f"data folder {root} {missing}; expected NAME/1.0.0/dataset_info.json in it. Make it with "
        "launch/prepare_data.py --output=FOLDER and name that folder"
    )


def dataset_info(folder: Path) -> tfds.core.DatasetInfo:
    """Reads a TFDS dataset's description: its features, its splits and the lengths of their shards.

    Raises:
        UserError: dataset_info.json or features.json is missing, cut short or damaged, or there is no split.
    """
    try:
        info = tfds.builder_from_directory(folder).info
    except Exception as error:  # protobuf's own errors, ValueError, KeyError, OSError, ...
        raise UserError(
            f"the dataset in {folder} cannot be opened: {first_line(error)}; expected whole files "
            "dataset_info.json and features.json. Copy them back, or prepare the dataset again with "
            "launch/prepare_data.py"
        ) from error
    if not info.splits:
        raise UserError(
            f"{folder}/dataset_info.json names no split; expected one or more, such as train. Copy the "
            "file back, or prepare the dataset again with launch/prepare_data.py"
        )
    return info


class RecordSource:
    """Random access to the records of one split. It holds the names and lengths of the shards, and no open file.

    So it can be pickled, and several threads and processes can read from it.

    Attributes:
        folder: the TFDS dataset. split: the split's name.
        labelled: whether the records have a label. has_text_ids: whether they have the identities of their captions.
        dataset: the name of the dataset, such as "muge".
        class_names: what each number of a label stands for; () where the dataset does not say.
        shard_lengths: number of records in each shard, int64.
    """

    def __init__(
        self, directory: str | os.PathLike[str], split: str, *, corpus: str = "", complete: bool = True
    ) -> None:
        """Checks that the split is there with all its shards.

        Args:
            directory: a prepared folder.
            split: "train", "validation", ...
            corpus: prefix of every record's name, to tell apart datasets that are read together.
            complete: whether a missing shard raises here; if not, reading one of its records raises.

        Raises:
            UserError: dataset, split or shard is missing, damaged or empty, or the dataset is of another kind.
        """
        self.folder = dataset_folder(directory)
        self.split = split
        info = dataset_info(self.folder)
        _check_features(self.folder, info)
        if split not in info.splits:
            raise UserError(
                f"{self.folder} has no split {split!r}; it has {', '.join(sorted(info.splits))}. Name one of these"
            )
        self.labelled = "label" in info.features
        self.has_text_ids = "text_ids" in info.features
        self._prefix = f"{corpus}:{split}" if corpus else split
        self._shards = [os.fspath(path) for path in info.splits[split].filepaths]
        self.shard_lengths = np.array(info.splits[split].shard_lengths, np.int64)
        if not self.shard_lengths.sum():
            raise UserError(
                f"split {split!r} of {self.folder} has no records; expected one or more. Prepare the "
                "dataset again with launch/prepare_data.py"
            )
        self._ends = np.cumsum(self.shard_lengths)
        self._complete = complete
        self.dataset, self.class_names = info.name, _class_names(info)
        if complete:
            self._check_shards_exist()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Args:
            index: 0 to len - 1, in the order of the shards.

        Raises:
            UserError: its shard is missing or cannot be opened.
            UnusableRecord: the shard is sound but this record is not.
        """
        shard, position = self._locate(int(index))
        serialized = self._read(shard, position)
        try:
            return self._parse(serialized, self._name(shard, position))
        except UnusableRecord:
            raise
        except Exception as error:  # protobuf's own errors, text that is not UTF-8, several images
            raise UnusableRecord(f"it is not what launch/prepare_data.py writes: {error}") from error

    def name(self, index: int) -> str:
        """Where a record lies, without reading it."""
        return self._name(*self._locate(int(index)))

    def _name(self, shard: int, position: int) -> str:
        return f"{self._prefix}-{shard:05d}-of-{len(self._shards):05d}#{position}"

    def _locate(self, index: int) -> tuple[int, int]:
        """The shard's number and the position in it."""
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of split {self.split!r}, which has {len(self)}")
        shard = int(np.searchsorted(self._ends, index, side="right"))
        return shard, index - int(self._ends[shard] - self.shard_lengths[shard])

    def _read(self, shard: int, position: int) -> bytes:
        path, length = self._shards[shard], int(self.shard_lengths[shard])
        try:
            return read_shard(path, length, position)
        except Exception as error:
            if self._complete:
                self._check_shards_exist()
            open_shard(path, length)  # raises if the whole shard is damaged, not only this record
            raise UnusableRecord(f"cannot be read from {path}: {error}") from error

    def _parse(self, serialized: bytes, name: str) -> Record:
        features = tf_example_pb2.Example.FromString(serialized).features.feature
        optional = [*["label"] * self.labelled, *["text_ids"] * self.has_text_ids]
        wanted = ["image", "captions", "image_id", *optional]
        missing = [feature for feature in wanted if feature not in features]
        if missing:
            raise UnusableRecord(f"it has no feature {', '.join(missing)}")
        image, captions, image_id = (list(features[feature].bytes_list.value) for feature in wanted[:3])
        label = list(features["label"].int64_list.value) if self.labelled else [None]
        for feature, values in (("image", image), ("image_id", image_id), ("label", label)):
            if len(values) != 1:
                raise UnusableRecord(f"it has {len(values)} values of {feature}; expected one")
        texts = tuple(caption.decode("utf-8") for caption in captions)
        text_ids = tuple(text_id.decode("utf-8") for text_id in self._text_ids(features))
        if self.has_text_ids and len(text_ids) != len(texts):
            raise UnusableRecord(f"it has {len(texts)} captions and {len(text_ids)} text_ids; expected one for each")
        return Record(image[0], texts, image_id[0].decode("utf-8"), name, label[0], text_ids)

    def _text_ids(self, features: Any) -> list[bytes]:
        return list(features["text_ids"].bytes_list.value) if self.has_text_ids else []

    def _check_shards_exist(self) -> None:
        missing = [path for path in self._shards if not os.path.isfile(path)]
        if missing:
            raise UserError(
                f"shard {missing[0]} is missing ({len(missing)} of the {len(self._shards)} shards of split "
                f"{self.split!r} are); copy it back, or prepare the dataset again with "
                "launch/prepare_data.py"
            )


def _check_features(folder: Path, info: tfds.core.DatasetInfo) -> None:
    absent = {"image", "captions", "image_id"} - set(info.features or {})
    if absent:
        raise UserError(
            f"the dataset in {folder} has no {', '.join(sorted(absent))}; expected records with image, "
            "captions and image_id, as launch/prepare_data.py writes them"
        )


def _class_names(info: tfds.core.DatasetInfo) -> tuple[str, ...]:
    names = getattr(info.features["label"], "names", ()) if "label" in info.features else ()
    numbers = [str(number) for number in range(len(names))]
    return () if list(names) == numbers else tuple(names)  # TFDS's own where nobody has named them


def read_shard(path: str, records: int, position: int) -> bytes:
    """Reads one record; several threads may call this.

    Args:
        path: the shard.
        records: how many records it must have.
        position: 0 to records - 1.

    Raises:
        UserError: the shard cannot be opened, or has another number of records.
        Exception: ArrayRecord's own, if the shard opens but this record cannot be read.
    """
    # A range: the cost of `read([position])` grows with the number of records in the shard.
    (record,) = _opened(path, records).read(position, position + 1)
    return bytes(record)


@functools.lru_cache(MAX_OPEN_SHARDS)
def _opened(path: str, records: int) -> Any:
    # The cache drops the least recently used reader without closing it, so another thread can finish reading from it.
    return open_shard(path, records)


def count_records(path: str) -> int:
    """Counts the records of a shard; ArrayRecord raises its own errors if the shard is not complete."""
    return int(_reader(path).num_records())


def open_shard(path: str, records: int) -> Any:
    """Opens a shard without the cache.

    Raises:
        UserError: it cannot be opened, or has another number of records.
    """
    try:
        reader = _reader(path)
        found = reader.num_records()
        reason = f"it has {found} of the {records} records that dataset_info.json tells of"
    except Exception as error:
        found, reason = None, str(error)
    if found != records:
        raise UserError(
            f"shard {path} cannot be opened ({reason}); expected a complete ArrayRecord file. Copy it "
            "again, or prepare the dataset again with launch/prepare_data.py"
        )
    return reader


def _reader(path: str) -> Any:
    return array_record_module.ArrayRecordReader(path, _READER_OPTIONS, file_reader_buffer_size=_BUFFER_BYTES)
