"""Prepared datasets: writing them, and reading any record of them by its number.

A prepared folder holds `image_text/1.0.0/` (a TFDS dataset in ArrayRecord shards) and usually `vocab.txt` beside it.
"""

import bisect
import contextlib
import io
import itertools
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from r2d2_jax.data.corpora.image_text import MAX_SHARDS, Example, ImageText, SplitSummary
from r2d2_jax.errors import UserError

__all__ = ["Example", "Record", "RecordSource", "SplitSummary", "UnusableRecord", "dataset_folder", "write_dataset"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Record:
    """One image-text pair of a prepared dataset; `name` says where it lies, like "train-00003-of-00008#17"."""

    image: bytes
    captions: tuple[str, ...]
    image_id: str
    name: str


class UnusableRecord(Exception):
    """A single record that nothing can be learned from; the message is the reason, without the record's name."""


def write_dataset(
    directory: str | os.PathLike[str], examples: Mapping[str, Iterable[Example]], *, shards: int = 1
) -> list[SplitSummary]:
    """Writes all splits of a dataset, or nothing: the dataset appears under its name only when it is complete.

    Memory does not grow with the number of examples. Example i of a split goes to shard i modulo `shards`.

    Args:
        directory: the folder to hold the dataset; made if absent.
        examples: split name -> its examples; every iterable is walked once, in order.
        shards: number of files a split, 1 to 512; a split with fewer records has one record a file.

    Returns:
        What was written, split by split, in the order of `examples`.

    Raises:
        UserError: there is a dataset already, a split name is not a plain word, a split has no example, or `shards` is
            out of range.
    """
    if not 1 <= shards <= MAX_SHARDS:
        raise UserError(f"shards is {shards}; expected 1 to {MAX_SHARDS} files a split")
    for split in examples:
        if not re.fullmatch(r"[A-Za-z]\w*", split):
            raise UserError(f"{split!r} cannot name a split; use letters, digits and underscores, a letter first")
    builder = ImageText(data_dir=os.fspath(directory), examples=_not_empty(examples), shards=shards)
    target = Path(builder.data_dir)
    if target.exists():
        raise UserError(f"{target} holds a dataset already; choose another output folder, or delete that one first")
    for left_over in target.parent.glob("*incomplete*"):
        logger.warning("%s was left over by an interrupted preparation and can be deleted", left_over)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, which there is none of
        builder.download_and_prepare()
    return builder.summaries


def _not_empty(examples: Mapping[str, Iterable[Example]]) -> dict[str, Iterable[Example]]:
    def walk(split: str, items: Iterable[Example]) -> Iterable[Example]:
        empty = True
        for item in items:
            empty = False
            yield item
        if empty:
            raise UserError(f"split {split!r} has no usable record; nothing was written. Leave the split out, or mend "
                            "its annotations")

    return {split: walk(split, items) for split, items in examples.items()}


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
    raise UserError(f"data folder {root} {missing}; expected image_text/1.0.0/dataset_info.json in it. Make it with "
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
