"""Prepared datasets: reading any record of them by its number.

A prepared folder holds `NAME/1.0.0/` (a TFDS dataset in ArrayRecord shards) and usually `vocab.txt` beside it.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.shards import open_shard, read_shard
from r2d2_jax.errors import UserError, first_line


@dataclass(frozen=True)
class Record:
    """One image-text pair of a prepared dataset; `name` says where it lies, like "train-00003-of-00008#17".

    label: 0 or 1 for whether image and text match, or the number of a class; None where the dataset has no labels.
    """

    image: bytes
    captions: tuple[str, ...]
    image_id: str
    name: str
    label: int | None = None


def dataset_folder(directory: str | os.PathLike[str]) -> Path:
    """Finds the one TFDS dataset in a prepared folder (or takes the folder itself, if it is a TFDS dataset).

    Raises:
        UserError: the folder does not exist, or holds no dataset, or several.
    """
    root = Path(directory).expanduser()
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
    missing = "holds no prepared dataset" if root.is_dir() else "does not exist"
    raise UserError(
        f"data folder {root} {missing}; expected NAME/1.0.0/dataset_info.json in it. Make it with "
        "launch/prepare_data.py --output=FOLDER and set data.directory to that folder"
    )


def dataset_info(folder: Path) -> tfds.core.DatasetInfo:
    """What a TFDS dataset says of itself: its features, its splits and the lengths of their shards.

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
    """Random access to the records of one split; nothing is held but the names and lengths of its shards.

    It holds no open file (see `shards`), so it can be pickled, and read from in several threads and processes.

    Attributes:
        folder: the TFDS dataset. split: the split's name.
        labelled: whether the records have a label.
        shard_lengths: number of records in each shard, int64.
    """

    def __init__(
        self, directory: str | os.PathLike[str], split: str, *, corpus: str = "", complete: bool = True
    ) -> None:
        """Checks that the split is there with all its shards.

        Args:
            directory: a prepared folder.
            split: "train", "validation", ...
            corpus: stands before the name of every record, where records of several datasets are read together.
            complete: whether a missing shard is an error now; else it is one when it is first read from.

        Raises:
            UserError: no dataset or a damaged one, no such split or an empty one, another kind of dataset, or a missing
                shard.
        """
        self.folder = dataset_folder(directory)
        self.split = split
        info = dataset_info(self.folder)
        _check_features(self.folder, info)
        if split not in info.splits:
            raise UserError(
                f"{self.folder} has no split {split!r}; it has {', '.join(sorted(info.splits))}. Correct "
                "the split's name in the data configuration"
            )
        self.labelled = "label" in info.features
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
        if complete:
            self._check_shards_exist()

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Args:
            index: 0 to len - 1, in the order of the shards.

        Raises:
            UserError: its shard has gone or cannot be opened.
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
            open_shard(path, length)  # it may be the shard that has gone bad, not this record alone
            raise UnusableRecord(f"cannot be read from {path}: {error}") from error

    def _parse(self, serialized: bytes, name: str) -> Record:
        features = tf_example_pb2.Example.FromString(serialized).features.feature
        wanted = ("image", "captions", "image_id", "label") if self.labelled else ("image", "captions", "image_id")
        missing = [feature for feature in wanted if feature not in features]
        if missing:
            raise UnusableRecord(f"it has no feature {', '.join(missing)}")
        image, captions, image_id = (list(features[feature].bytes_list.value) for feature in wanted[:3])
        label = list(features["label"].int64_list.value) if self.labelled else [None]
        for feature, values in (("image", image), ("image_id", image_id), ("label", label)):
            if len(values) != 1:
                raise UnusableRecord(f"it has {len(values)} values of {feature}; expected one")
        texts = tuple(caption.decode("utf-8") for caption in captions)
        return Record(image[0], texts, image_id[0].decode("utf-8"), name, label[0])

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
