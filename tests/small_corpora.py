"""Writing corpora as they are published, preparing them, and reading back what came of it."""

import io
import pickle
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from small_data import encode

from r2d2_jax.data.records import Record, RecordSource, dataset_folder
from r2d2_jax.preparation.corpora import Corpus
from r2d2_jax.preparation.prepare import Preparation, Settings, prepare


def write(path: Path, *lines: str | bytes) -> Path:
    """A file of these lines, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join((line.encode() if isinstance(line, str) else line) + b"\n" for line in lines))
    return path


def write_images(folder: Path, *names: str) -> Path:
    """Sound images, each different by its place in the list."""
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encode(seed=number))
    return folder


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], mode: str = "w") -> Path:
    """A tar of these files, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, content in members:
            header = tarfile.TarInfo(name)
            header.size = len(content)
            tar.addfile(header, io.BytesIO(content))
    return path


def prepared(corpus: Corpus, output: Path, max_broken_share: float = 0.0, **settings: Any) -> Preparation:
    """Prepares a corpus as a process does that got it from another one."""
    settings |= {"max_broken_share": max_broken_share}
    return prepare(pickle.loads(pickle.dumps(corpus)), str(output), Settings(**settings))


def records(output: Path, split: str = "train") -> list[Record]:
    """All records of a split."""
    source = RecordSource(output, split)
    return [source[index] for index in range(len(source))]


def texts(output: Path, split: str = "train") -> dict[str, tuple[str, ...]]:
    """Image id -> captions, which must tell all records of a split apart."""
    found = records(output, split)
    by_id = {record.image_id: record.captions for record in found}
    assert len(by_id) == len(found)
    return by_id


def labels(output: Path, split: str) -> list[str]:
    """The names of the labels of a split."""
    builder = tfds.builder_from_directory(dataset_folder(output))
    names = builder.info.features["label"].names
    rows = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    return [names[row["label"]] for row in rows]


def skipped(preparation: Preparation, root: Path) -> list[str]:
    """Every entry that was left out, without the folder of the test."""
    assert sum(preparation.skipped.values()) == (len(preparation.first_skipped) if preparation.skipped_file else 0)
    return [line.replace(f"{root}/", "") for line in preparation.first_skipped]
