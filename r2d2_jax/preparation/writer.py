"""Shards of records, and the TFDS dataset that they make together.

A `GeneratorBasedBuilder` of TFDS keeps a whole split in memory to preserve its order, and uses TensorFlow's file system
above 1 GB. Here any process writes any shard at any time; publishing a dataset links the finished shards into one
folder and writes TFDS's metadata beside them. `tfds.builder_from_directory` reads the folder like any other.
"""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module

from r2d2_jax.atomic import writing, written_whole
from r2d2_jax.data.records import count_records
from r2d2_jax.errors import UserError, naming
from r2d2_jax.paths import check_utf8, user_path
from r2d2_jax.preparation.corpora.corpus import split_problem
from r2d2_jax.preparation.examples import Example

FILE_FORMAT = tfds.core.FileFormat.ARRAY_RECORD
VERSION = "1.0.0"
MAX_OPEN_SHARDS = 512  # our decision: `write_dataset` has all of them open, and systems commonly allow 1,024 files
# One record a chunk, so that reading one record at random reads nothing else; encoded images do not shrink further.
# No threads: shards are written by several processes already, and records that wait for a thread fill the memory.
_WRITER_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"
_MODULE = "r2d2_jax.data.writer"  # part of the format: dataset_info.json has named this module since the first version


@dataclass(frozen=True)
class ShardSummary:
    """Counts of a shard; `bytes` is the size of the serialised records."""

    records: int
    captions: int
    bytes: int


@dataclass(frozen=True)
class SplitSummary:
    """Counts of a split; `bytes` is the size of the serialised records."""

    name: str
    records: int
    captions: int
    bytes: int
    shards: int


def dataset_features(class_names: Sequence[str] = (), *, text_ids: bool = False) -> tfds.features.FeaturesDict:
    """The fields of a record: image (encoded bytes), captions, image_id; a label if there are classes.

    Args:
        class_names: names of the labels, by number; () for none.
        text_ids: whether the corpus gives texts an identity; then there is one for each caption, "" for none.
    """
    features = {
        "image": tfds.features.Image(doc="Encoded bytes; read with SkipDecoding."),
        "captions": tfds.features.Sequence(tfds.features.Text()),
        "image_id": tfds.features.Text(),
    }
    if class_names:
        features["label"] = tfds.features.ClassLabel(names=list(class_names))
    if text_ids:
        features["text_ids"] = tfds.features.Sequence(tfds.features.Text())
    return tfds.features.FeaturesDict(features)


class ShardWriter:
    """Writes examples into one file, in order; the same examples give the same bytes."""

    def __init__(self, path: Path, features: tfds.features.FeaturesDict) -> None:
        """Opens the file."""
        self._path, self._features = path, features
        self._serializer = tfds.core.ExampleSerializer(features.get_serialized_info())
        self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)
        self._records = self._captions = self._bytes = 0

    def add(self, example: Example) -> None:
        """Appends an example."""
        fields: dict[str, Any] = {"image": example.image, "captions": list(example.captions)}
        fields["image_id"] = example.image_id
        if example.label is not None:
            fields["label"] = example.label
        if "text_ids" in self._features:
            fields["text_ids"] = list(example.text_ids) or [""] * len(example.captions)
        encoded = self._serializer.get_tf_example(self._features.encode_example(fields))
        serialized = encoded.SerializeToString(deterministic=True)  # otherwise fields come in any order
        self._writer.write(serialized)
        self._records += 1
        self._captions += len(example.captions)
        self._bytes += len(serialized)

    def finish(self) -> ShardSummary:
        """Closes the file and counts its records, because ArrayRecord does not always report a full disk.

        Raises:
            OSError: records are missing.
            RuntimeError: ArrayRecord cannot write; the message has the system's reason.
        """
        self._writer.close()
        if self._records and (found := self._records_on_disk()) != self._records:
            raise OSError(f"{found} of {self._records} records arrived")
        return ShardSummary(self._records, self._captions, self._bytes)

    def close(self) -> None:
        """Closes the file, finished or not, without looking at it."""
        with contextlib.suppress(RuntimeError):  # of the disk, which the caller knows of already
            self._writer.close()

    def _records_on_disk(self) -> int:
        try:
            return count_records(os.fspath(self._path))
        except RuntimeError:  # it does not end like a shard
            return 0


def publish_dataset(
    directory: str | os.PathLike[str],
    name: str,
    shards: Mapping[str, Iterable[tuple[Path, ShardSummary]]],
    *,
    files: Sequence[Path] = (),
    class_names: Sequence[str] = (),
    text_ids: bool = False,
    description: str = "Images with their captions.",
    homepage: str = "",
    advice: str = "",
) -> list[SplitSummary]:
    """Makes the dataset `directory/name/1.0.0` of finished shards; it appears there complete or not at all.

    Args:
        directory: the folder to hold the dataset; made if absent.
        name: the dataset's name.
        shards: split name -> its shards in order, on the same file system as `directory`; empty ones are left out.
        files: other files that belong beside the shards.
        class_names, text_ids: of the shards' features, see `dataset_features`.
        description: one sentence about it.
        homepage: address of its source.
        advice: what else to do when the disk is full, as for `written_whole`.

    Returns:
        The counts of each split.

    Raises:
        UserError: there is a dataset already, a split has no record, or the disk is full.
    """
    kept = {split: [shard for shard in items if shard[1].records] for split, items in shards.items()}
    for split, items in kept.items():
        if not items:
            raise UserError(
                f"split {split!r} has no usable record; no dataset was made. Leave the split out, or mend "
                "its annotations"
            )
    dataset = dataset_path(directory, name)
    check_absent(dataset)
    features = dataset_features(class_names, text_ids=text_ids)
    about = dict(features=features, description=description, homepage=homepage)
    with written_whole(dataset, advice=advice) as folder:
        folder.mkdir()
        for path in files:
            _link(path, folder / path.name)
        splits = [_take_shards(name, split, items, folder) for split, items in kept.items()]
        _write_metadata(folder, name, splits, about)
    return [_summary(split, [summary for _, summary in items]) for split, items in kept.items()]


def _write_metadata(folder: Path, name: str, splits: list[tfds.core.SplitInfo], about: dict[str, Any]) -> None:
    identity = tfds.core.DatasetIdentity(name, tfds.core.Version(VERSION), os.fspath(folder), _MODULE)
    info = tfds.core.DatasetInfo(builder=identity, split_dict=tfds.core.SplitDict(splits), **about)
    info.set_file_format(FILE_FORMAT)
    info.write_to_directory(folder)


def _take_shards(
    name: str, split: str, shards: Sequence[tuple[Path, ShardSummary]], folder: Path
) -> tfds.core.SplitInfo:
    """Links finished shards into the folder under the names by which TFDS finds them."""
    template = tfds.core.ShardedFileTemplate(
        dataset_name=name, data_dir=folder, split=split, filetype_suffix=FILE_FORMAT.value
    )
    targets = template.sharded_filepaths(len(shards))
    for (path, _), target in zip(shards, targets, strict=True):
        _link(path, Path(target))
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[summary.records for _, summary in shards],
        num_bytes=sum(summary.bytes for _, summary in shards),
        filename_template=template,
    )


def dataset_path(directory: str | os.PathLike[str], name: str) -> Path:
    """The folder of the dataset of this name in `directory`."""
    return user_path(directory) / name / VERSION


def check_absent(dataset: Path) -> None:
    """Raises UserError if there is a dataset already."""
    if dataset.exists():
        raise UserError(f"{dataset} holds a dataset already; choose another output folder, or delete that one first")


def _summary(split: str, shards: Sequence[ShardSummary]) -> SplitSummary:
    def total(count: str) -> int:
        return sum(getattr(shard, count) for shard in shards)

    return SplitSummary(split, total("records"), total("captions"), total("bytes"), len(shards))


def _link(path: Path, target: Path) -> None:
    # A second name rather than a move: after an interruption the finished shards are still where they were.
    try:
        target.hardlink_to(path)
    except OSError:  # file systems without hard links
        path.rename(target)


def write_dataset(
    directory: str | os.PathLike[str],
    examples: Mapping[str, Iterable[Example]],
    *,
    shards: int = 1,
    text_ids: bool = False,
    class_names: Sequence[str] = (),
) -> list[SplitSummary]:
    """Writes the dataset `directory/image_text/1.0.0` in this process, whole or not at all.

    Memory does not grow with the number of examples. Example i of a split goes to shard i modulo `shards`.

    Args:
        directory: the folder to hold the dataset; made if absent.
        examples: split name -> its examples; every iterable is walked once, in order.
        shards: number of files a split, 1 to 512; a split with fewer records has one record a file.
        text_ids: whether to write the identities of texts.
        class_names: names of the labels, by number; () for examples without labels.

    Returns:
        The counts of each split, in the order of `examples`.

    Raises:
        UserError: there is a dataset already, a split name is not a plain word, a split has no example, or `shards` is
            out of range; or the disk is full.
    """
    if not 1 <= shards <= MAX_OPEN_SHARDS:
        raise UserError(f"shards is {shards}; expected 1 to {MAX_OPEN_SHARDS} files a split")
    for split in examples:
        if problem := split_problem(split):
            raise UserError(problem)
    check_absent(dataset_path(directory, "image_text"))
    root = user_path(directory)
    check_utf8(root.absolute(), "--output")
    with contextlib.ExitStack() as work:
        work.enter_context(writing(root))
        root.mkdir(parents=True, exist_ok=True)
        folder = Path(work.enter_context(tempfile.TemporaryDirectory(prefix="unfinished-", dir=root)))
        work.enter_context(naming(str(folder), str(root)))
        features = dataset_features(class_names, text_ids=text_ids)
        written = {
            split: _write_split([folder / f"{split}-{index:05d}" for index in range(shards)], items, features)
            for split, items in examples.items()
        }
        return publish_dataset(root, "image_text", written, class_names=class_names, text_ids=text_ids)


def _write_split(
    paths: Sequence[Path], examples: Iterable[Example], features: tfds.features.FeaturesDict
) -> list[tuple[Path, ShardSummary]]:
    with contextlib.ExitStack() as closed:
        writers = [closed.enter_context(contextlib.closing(ShardWriter(path, features))) for path in paths]
        for example, writer in zip(examples, itertools.cycle(writers)):  # noqa: B905 - one of them never ends
            writer.add(example)
        return [(path, writer.finish()) for path, writer in zip(paths, writers, strict=True)]
