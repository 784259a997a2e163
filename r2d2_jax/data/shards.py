"""Random reads from ArrayRecord shards, however many there are, with few of them open at once."""

import functools
from typing import Any

from array_record.python import array_record_module

from r2d2_jax.errors import UserError

# Our decision: far below the 256 or 1,024 open files that systems commonly allow a process, for all datasets together.
# An open shard costs 8 bytes a record and about 10 kB. Opening one reads its index, about 40 microseconds for every
# 1,000 records in it; so runs go through a corpus in windows of shards (see `mixture`).
MAX_OPEN_SHARDS = 128
# No reading ahead and no threads: each read is of one record. The index stays in memory while the shard is open,
# because ArrayRecord's "offloaded" index is unpacked as a whole at every single read.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0,footer_prefetch_bytes:0"
_BUFFER_BYTES = 32768  # that of ArrayRecord's own data source


def read_shard(path: str, records: int, position: int) -> bytes:
    """Reads one record; can be called from several threads.

    Args:
        path: the shard.
        records: how many records it must have.
        position: 0 to records - 1.

    Raises:
        UserError: the shard cannot be opened, or has another number of records.
        Exception: of ArrayRecord, where the shard opens but this record cannot be read.
    """
    # A range, because what `read([position])` costs grows with the number of records in the shard.
    (record,) = _opened(path, records).read(position, position + 1)
    return bytes(record)


@functools.lru_cache(MAX_OPEN_SHARDS)
def _opened(path: str, records: int) -> Any:
    # The least recently used reader is dropped, not closed: one that another thread is reading from ends after that.
    return open_shard(path, records)


def count_records(path: str) -> int:
    """How many records a shard has; whatever ArrayRecord raises if it is no complete shard."""
    return int(_reader(path).num_records())


def open_shard(path: str, records: int) -> Any:
    """Opens a shard anew, to read from or to see that it is sound.

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
