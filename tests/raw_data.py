"""Prepared datasets whose records are written byte by byte, sound or not."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from array_record.python import array_record_module
from small_data import encode
from tensorflow_datasets.proto import tf_example_pb2

from r2d2_jax.preparation.writer import ShardSummary, publish_dataset


def serialized(number: int = 0, **features: bytes | list[bytes] | int | None) -> bytes:
    """A record as it lies in a shard; `features` are laid over those of record `number`, None leaves one out."""
    given = {"image": encode(seed=number), "captions": [f"{number}只狗".encode()], "image_id": b"image%d" % number}
    example = tf_example_pb2.Example()
    for name, value in (given | features).items():
        if isinstance(value, int):
            example.features.feature[name].int64_list.value.append(value)
        elif value is not None:
            example.features.feature[name].bytes_list.value.extend([value] if isinstance(value, bytes) else value)
    return example.SerializeToString(deterministic=True)


def write_raw(
    folder: Path,
    splits: Mapping[str, Sequence[Iterable[bytes]]],
    class_names: Sequence[str] = (),
    copies: int = 1,
    *,
    text_ids: bool = False,
) -> Path:
    """Publishes shards of such records; returns the folder.

    Args:
        splits: split name -> its shards' records.
        copies: how often the shards of every split follow each other; a copy is only another name of the same file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        shards = {
            split: [_shard(Path(work) / f"{split}{index}", records) for index, records in enumerate(parts)] * copies
            for split, parts in splits.items()
        }
        publish_dataset(folder, "image_text", shards, class_names=class_names, text_ids=text_ids)
    return folder


def _shard(path: Path, records: Iterable[bytes]) -> tuple[Path, ShardSummary]:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed")
    count = 0
    for record in records:
        writer.write(record)
        count += 1
    writer.close()
    return path, ShardSummary(count, count, 0)
