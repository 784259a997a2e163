"""Prepared datasets: reading any record of them by its number.

A prepared folder holds `NAME/1.0.0/` (a TFDS dataset in ArrayRecord shards) and usually `vocab.txt` beside it.
"""

import bisect
import itertools
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from r2d2_jax.data.entries import UnusableRecord
from r2d2_jax.errors import UserError

__all__ = ["Record", "RecordSource", "UnusableRecord", "dataset_folder"]


@dataclass(frozen=True)
class Record:
    """One image-text pair of a prepared dataset; `name` says where it lies, like "train-00003-of-00008#17"."""

    image: bytes
    captions: tuple[str, ...]
    image_id: str
    name: str


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
        raise UserError(f"{root} holds {len(found)} datasets ({', '.join(map(str, found))}); expected one. Name one of "
                        "these folders instead")
    missing = "holds no prepared dataset" if root.is_dir() else "does not exist"
    raise UserError(f"data folder {root} {missing}; expected NAME/1.0.0/dataset_info.json in it. Make it with "
                    "launch/prepare_data.py --output=FOLDER and set data.directory to that folder")


class RecordSource:
    """Random access to the records of one split; nothing but file names and lengths is held in memory.

    Shards are opened at the first read, in each process that reads; pickling hands over only the place of the dataset.
    """

    def __init__(self, directory: str | os.PathLike[str], split: str) -> None:
        """Checks that the split is there with all its shards.

        Raises:
            UserError: no dataset, no such split, another kind of dataset, or a missing shard.
        """
        self.folder = dataset_folder(directory)
        self.split = split
        info = tfds.builder_from_directory(self.folder).info
        _check_features(self.folder, info)
        if split not in info.splits:
            raise UserError(f"{self.folder} has no split {split!r}; it has {', '.join(sorted(info.splits))}. Correct "
                            "the split's name in the data configuration")
        self._shards = [Path(path) for path in info.splits[split].filepaths]
        self._ends = list(itertools.accumulate(info.splits[split].shard_lengths))
        self._opened: Any = None
        self._check_shards_exist()

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        """Reads one record.

        Args:
            index: 0 to len - 1, in the order of the shards.

        Raises:
            UserError: its shard has gone or cannot be opened.
            UnusableRecord: the shard is sound but this record is not.
        """
        index = int(index)
        shard, name = self._locate(index)
        try:
            row = self._open()[index]
            captions = tuple(caption.decode("utf-8") for caption in row["captions"])
            return Record(row["image"], captions, row["image_id"].decode("utf-8"), name)
        except Exception as error:
            self._check_shard_opens(shard)
            raise UnusableRecord(f"cannot be read from {shard}: {error}") from error

    def name(self, index: int) -> str:
        """Where a record lies, without reading it."""
        return self._locate(int(index))[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}

    def _locate(self, index: int) -> tuple[Path, str]:
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of split {self.split!r}, which has {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        position = index - (self._ends[shard - 1] if shard else 0)
        return self._shards[shard], f"{self.split}-{shard:05d}-of-{len(self._shards):05d}#{position}"

    def _open(self) -> Any:
        if self._opened is None:
            builder = tfds.builder_from_directory(self.folder)
            self._opened = builder.as_data_source(self.split, decoders={"image": tfds.decode.SkipDecoding()})
        return self._opened

    def _check_shards_exist(self) -> None:
        missing = [path for path in self._shards if not path.is_file()]
        if missing:
            raise UserError(f"shard {missing[0]} is missing ({len(missing)} of the {len(self._shards)} shards of split "
                            f"{self.split!r} are); copy it back, or prepare the dataset again with "
                            "launch/prepare_data.py")

    def _check_shard_opens(self, shard: Path) -> None:
        self._check_shards_exist()
        try:
            array_record_module.ArrayRecordReader(os.fspath(shard)).close()
        except Exception as error:
            raise UserError(f"shard {shard} cannot be opened ({error}); expected a complete ArrayRecord file. Copy it "
                            "again, or prepare the dataset again with launch/prepare_data.py") from error


def _check_features(folder: Path, info: tfds.core.DatasetInfo) -> None:
    absent = {"image", "captions", "image_id"} - set(info.features or {})
    if absent:
        raise UserError(f"the dataset in {folder} has no {', '.join(sorted(absent))}; expected records with image, "
                        "captions and image_id, as launch/prepare_data.py writes them")
