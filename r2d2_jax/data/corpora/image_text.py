"""The TFDS builder of image-text pairs: one image with one or more captions a record, in ArrayRecord shards.

The stock `GeneratorBasedBuilder` keeps a whole split in memory when its order is to be kept, and calls TensorFlow's
file system above 1 GB. This builder writes every record straight into its shard, so memory stays flat and no TensorFlow
is needed; the prepared folder is an ordinary TFDS dataset that `tfds.builder_from_directory` reads.
"""

import contextlib
import os
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer, naming, splits

FILE_FORMAT = "array_record"
MAX_SHARDS = 512  # our decision: all shards of a split are open at once, and systems commonly allow 1,024 open files


@dataclass(frozen=True)
class Example:
    """One image-text pair before it has a place in a shard.

    image: encoded bytes, as they came (JPEG, PNG, ...). captions: the image's captions, at least one.
    image_id: the image's identity; examples with the same identity show the same image.
    """

    image: bytes
    captions: tuple[str, ...]
    image_id: str


@dataclass(frozen=True)
class SplitSummary:
    """What was written into a split; `bytes` counts the serialised records."""

    name: str
    records: int
    captions: int
    bytes: int
    shards: int


class ImageText(tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg,misc]
    """Image-text pairs with encoded images."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, data_dir: str, examples: Mapping[str, Iterable[Example]], shards: int) -> None:
        """Takes the examples; `download_and_prepare` writes them.

        Args:
            data_dir: the folder in which `image_text/1.0.0` is made.
            examples: the examples of each split; every iterable is walked once, in order.
            shards: number of files a split; a split with fewer records has one record a file.
        """
        self._examples = examples
        self._shards = shards
        self.summaries: list[SplitSummary] = []
        super().__init__(data_dir=data_dir, file_format=FILE_FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({
            "image": tfds.features.Image(doc="Encoded bytes; read with SkipDecoding."),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "image_id": tfds.features.Text(),
        })
        return tfds.core.DatasetInfo(builder=self, description="Images with their captions.", features=features)

    def _make_download_manager(self, **settings: Any) -> Any:
        # Nothing is downloaded; the stock manager makes empty folders and needs a package that TFDS does not install.
        return types.SimpleNamespace(downloaded_size=0)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        infos = []
        for split, examples in self._examples.items():
            with contextlib.ExitStack() as files:
                writer = _SplitWriter(Path(self.data_path), self.name, split, self._shards, self.info.features, files)
                for example in examples:
                    writer.add(example)
            info, summary = writer.finish()
            infos.append(info)
            self.summaries.append(summary)
        self.info.set_splits(splits.SplitDict(infos))


class _SplitWriter:
    """Deals the examples of one split out to its shards in turn, so the number of examples need not be known."""

    def __init__(
        self,
        folder: Path,
        dataset: str,
        split: str,
        shards: int,
        features: tfds.features.FeaturesDict,
        files: contextlib.ExitStack,
    ) -> None:
        self._template = naming.ShardedFileTemplate(
            dataset_name=dataset, data_dir=folder, split=split, filetype_suffix=FILE_FORMAT
        )
        self._split, self._shards, self._features, self._files = split, shards, features, files
        self._serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        self._writers: list[Any] = []
        self._records = self._captions = self._bytes = 0

    def add(self, example: Example) -> None:
        """Appends one example to the next shard in turn."""
        if len(self._writers) < self._shards:
            self._writers.append(self._open(len(self._writers)))
        encoded = self._features.encode_example(
            {"image": example.image, "captions": list(example.captions), "image_id": example.image_id}
        )
        serialized = self._serializer.serialize_example(encoded)
        self._writers[self._records % self._shards].write(serialized)
        self._records += 1
        self._captions += len(example.captions)
        self._bytes += len(serialized)

    def finish(self) -> tuple[splits.SplitInfo, SplitSummary]:
        """Gives the closed shards the names that say how many there are."""
        count = len(self._writers)
        for index in range(count):
            self._unfinished(index).rename(self._template.sharded_filepath(shard_index=index, num_shards=count))
        info = splits.SplitInfo(
            name=self._split,
            shard_lengths=[len(range(index, self._records, count)) for index in range(count)],
            num_bytes=self._bytes,
            filename_template=self._template,
        )
        return info, SplitSummary(self._split, self._records, self._captions, self._bytes, count)

    def _open(self, index: int) -> Any:
        # One record a chunk ("group_size:1"), so that reading one record at random reads nothing else.
        writer = array_record_module.ArrayRecordWriter(os.fspath(self._unfinished(index)), "group_size:1")
        self._files.callback(writer.close)
        return writer

    def _unfinished(self, index: int) -> Path:
        return Path(self._template.data_dir) / f"{self._split}-{index:05d}.unfinished"
