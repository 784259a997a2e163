"""Shards of records, and the TFDS dataset that they make together.

The stock `GeneratorBasedBuilder` keeps a whole split in memory when its order is to be kept, and calls TensorFlow's
file system above 1 GB. Here every shard is a file of its own that any process writes at any time; the builder only
takes finished shards. The prepared folder is an ordinary TFDS dataset that `tfds.builder_from_directory` reads.
"""

import contextlib
import io
import itertools
import os
import tempfile
import types
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python import array_record_module
from tensorflow_datasets.core import example_serializer, naming, splits

from r2d2_jax.data.shards import count_records
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.corpus import split_problem
from r2d2_jax.preparation.examples import Example

FILE_FORMAT = "array_record"
VERSION = "1.0.0"
MAX_OPEN_SHARDS = 512  # our decision: `write_dataset` has all of them open, and systems commonly allow 1,024 files
# One record a chunk, so that reading one record at random reads nothing else; encoded images do not shrink further.
# No threads: there are processes for that, and what threads have not written yet fills the memory.
_WRITER_OPTIONS = "group_size:1,uncompressed,max_parallelism:1"


@dataclass(frozen=True)
class ShardSummary:
    """What was written into a shard; `bytes` counts the serialised records."""

    records: int
    captions: int
    bytes: int


@dataclass(frozen=True)
class SplitSummary:
    """What was written into a split; `bytes` counts the serialised records."""

    name: str
    records: int
    captions: int
    bytes: int
    shards: int


def dataset_features(class_names: Sequence[str] = ()) -> tfds.features.FeaturesDict:
    """What a record holds: image (encoded bytes), captions, image_id, and a label where there are classes."""
    features = {
        "image": tfds.features.Image(doc="Encoded bytes; read with SkipDecoding."),
        "captions": tfds.features.Sequence(tfds.features.Text()),
        "image_id": tfds.features.Text(),
    }
    if class_names:
        features["label"] = tfds.features.ClassLabel(names=list(class_names))
    return tfds.features.FeaturesDict(features)


class ShardWriter:
    """Writes examples into one file, in order; the same examples give the same bytes."""

    def __init__(self, path: Path, features: tfds.features.FeaturesDict) -> None:
        """Opens the file."""
        self._path, self._features = path, features
        self._serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
        self._writer = array_record_module.ArrayRecordWriter(os.fspath(path), _WRITER_OPTIONS)
        self._records = self._captions = self._bytes = 0

    def add(self, example: Example) -> None:
        """Appends an example."""
        fields: dict[str, Any] = {"image": example.image, "captions": list(example.captions)}
        fields["image_id"] = example.image_id
        if example.label is not None:
            fields["label"] = example.label
        encoded = self._serializer.get_tf_example(self._features.encode_example(fields))
        serialized = encoded.SerializeToString(deterministic=True)  # otherwise fields come in any order
        self._writer.write(serialized)
        self._records += 1
        self._captions += len(example.captions)
        self._bytes += len(serialized)

    def finish(self) -> ShardSummary:
        """Closes the file and sees that all of it is there.

        Raises:
            OSError: it is not; the disk may be full, which the writer itself does not always say.
        """
        self._writer.close()
        if self._records:
            found = count_records(os.fspath(self._path))
            if found != self._records:
                raise OSError(f"{found} of {self._records} records arrived")
        return ShardSummary(self._records, self._captions, self._bytes)

    def abandon(self) -> None:
        """Closes the file without a look at it."""
        with contextlib.suppress(Exception):
            self._writer.close()


class _Dataset(tfds.core.dataset_builder.FileReaderBuilder, skip_registration=True):  # type: ignore[call-arg,misc]
    """Takes finished shards and gives them the names by which TFDS finds them."""

    VERSION = tfds.core.Version(VERSION)

    def __init__(
        self,
        name: str,
        data_dir: str,
        shards: Mapping[str, Sequence[tuple[Path, ShardSummary]]],
        files: Sequence[Path],
        **about: Any,
    ) -> None:
        self.name, self._shards, self._files, self._about = name, shards, files, about
        super().__init__(data_dir=data_dir, file_format=FILE_FORMAT)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(builder=self, **self._about)

    def _make_download_manager(self, **settings: Any) -> Any:
        # Nothing is downloaded; the stock manager makes empty folders and needs a package that TFDS does not install.
        return types.SimpleNamespace(downloaded_size=0)

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        self.info.set_splits(splits.SplitDict([self._take(split) for split in self._shards]))
        for path in self._files:
            _link(path, Path(self.data_path) / path.name)

    def _take(self, split: str) -> splits.SplitInfo:
        template = naming.ShardedFileTemplate(
            dataset_name=self.name, data_dir=Path(self.data_path), split=split, filetype_suffix=FILE_FORMAT
        )
        shards = self._shards[split]
        for index, (path, _) in enumerate(shards):
            _link(path, Path(template.sharded_filepath(shard_index=index, num_shards=len(shards))))
        return splits.SplitInfo(
            name=split,
            shard_lengths=[summary.records for _, summary in shards],
            num_bytes=sum(summary.bytes for _, summary in shards),
            filename_template=template,
        )


def publish_dataset(
    directory: str | os.PathLike[str],
    name: str,
    shards: Mapping[str, Iterable[tuple[Path, ShardSummary]]],
    *,
    files: Sequence[Path] = (),
    class_names: Sequence[str] = (),
    description: str = "Images with their captions.",
    homepage: str = "",
) -> list[SplitSummary]:
    """Makes the dataset `directory/name/1.0.0` of finished shards; it appears there complete or not at all.

    Args:
        directory: the folder to hold the dataset; made if absent.
        name: the dataset's name.
        shards: split name -> its shards in order, on the same file system as `directory`; empty ones are left out.
        files: other files that belong beside the shards.
        class_names: names of the labels, by number.
        description: one sentence on what it is.
        homepage: where it comes from.

    Returns:
        What the dataset holds, split by split.

    Raises:
        UserError: there is a dataset already, or a split has no record.
    """
    kept = {split: [shard for shard in items if shard[1].records] for split, items in shards.items()}
    for split, items in kept.items():
        if not items:
            raise UserError(
                f"split {split!r} has no usable record; no dataset was made. Leave the split out, or mend "
                "its annotations"
            )
    check_absent(dataset_path(directory, name))
    about = dict(features=dataset_features(class_names), description=description, homepage=homepage or None)
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download, which there is none of
        builder = _Dataset(name, os.fspath(Path(directory).expanduser()), kept, files, **about)
        try:
            builder.download_and_prepare()
        except OSError as error:
            raise UserError(
                f"cannot write {builder.data_path}: {error.strerror or error}; free some space or choose "
                "another folder, and start again: finished shards are kept"
            ) from error
    return [_summary(split, [summary for _, summary in items]) for split, items in kept.items()]


def dataset_path(directory: str | os.PathLike[str], name: str) -> Path:
    """Where in `directory` the dataset of this name lies, or will lie."""
    return Path(directory).expanduser() / name / VERSION


def check_absent(dataset: Path) -> None:
    """Raises UserError if there is a dataset already."""
    if dataset.exists():
        raise UserError(f"{dataset} holds a dataset already; choose another output folder, or delete that one first")


def _summary(split: str, shards: Sequence[ShardSummary]) -> SplitSummary:
    def total(count: str) -> int:
        return sum(getattr(shard, count) for shard in shards)

    return SplitSummary(split, total("records"), total("captions"), total("bytes"), len(shards))


def _link(path: Path, target: Path) -> None:
    # A second name rather than a move: should this be interrupted, the finished shards are still where they were.
    try:
        target.hardlink_to(path)
    except OSError:  # file systems without hard links
        path.rename(target)


def write_dataset(
    directory: str | os.PathLike[str], examples: Mapping[str, Iterable[Example]], *, shards: int = 1
) -> list[SplitSummary]:
    """Writes the dataset `directory/image_text/1.0.0` in this process, or nothing.

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
    if not 1 <= shards <= MAX_OPEN_SHARDS:
        raise UserError(f"shards is {shards}; expected 1 to {MAX_OPEN_SHARDS} files a split")
    for split in examples:
        if problem := split_problem(split):
            raise UserError(problem)
    check_absent(dataset_path(directory, "image_text"))
    root = Path(directory).expanduser()
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=root) as work:
        written = {split: _write_split(Path(work), split, items, shards) for split, items in examples.items()}
        return publish_dataset(root, "image_text", written)


def _write_split(folder: Path, split: str, examples: Iterable[Example], shards: int) -> list[tuple[Path, ShardSummary]]:
    paths = [folder / f"{split}-{index:05d}" for index in range(shards)]
    with contextlib.ExitStack() as abandoned:
        writers = []
        for path in paths:
            writers.append(ShardWriter(path, dataset_features()))
            abandoned.callback(writers[-1].abandon)
        for example, writer in zip(examples, itertools.cycle(writers)):  # noqa: B905 - one of them never ends
            writer.add(example)
        abandoned.pop_all()
        return [(path, writer.finish()) for path, writer in zip(paths, writers, strict=True)]
