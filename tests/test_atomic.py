"""What the disk refuses is one message, a bug in a writer is a traceback, and neither leaves anything behind."""

import errno
import os
import resource
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tensorstore
from array_record.python import array_record_module
from safetensors import SafetensorError
from safetensors.numpy import save_file

from r2d2_jax.atomic import is_disk_error, written_whole
from r2d2_jax.errors import UserError

LIMIT = 100_000  # bytes; more is written by everything below


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file may grow longer than LIMIT."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def plain(path: Path) -> None:
    path.write_bytes(bytes(2 * LIMIT))


def safetensors(path: Path) -> None:
    save_file({"a": np.zeros(2 * LIMIT, np.uint8)}, path)


def sqlite(path: Path) -> None:
    database = sqlite3.connect(path)
    try:
        database.execute("CREATE TABLE numbers (bytes)")
        database.execute("INSERT INTO numbers VALUES (?)", (bytes(2 * LIMIT),))
        database.commit()
    finally:
        database.close()


def array_record(path: Path) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:1,uncompressed,max_parallelism:1")
    writer.write(bytes(2 * LIMIT))
    writer.close()


def zarr(path: Path) -> None:
    store = {"driver": "zarr", "kvstore": {"driver": "file", "path": str(path)}, "metadata": {"compressor": None}}
    array = tensorstore.open(store, create=True, dtype=tensorstore.uint8, shape=[2 * LIMIT]).result()
    array.write(np.ones(2 * LIMIT, np.uint8)).result()


@pytest.mark.parametrize("write", [plain, safetensors, sqlite, array_record, zarr])
@pytest.mark.usefixtures("small_disk")
def test_a_disk_that_is_full(tmp_path: Path, write: Callable[[Path], None]) -> None:
    with (
        pytest.raises(UserError, match=r"cannot write .*/made: .*; nothing was left there; "),
        written_whole(tmp_path / "made") as unfinished,
    ):
        write(unfinished)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [
        KeyError("colour"),
        ValueError("image_size must be a multiple of patch_size"),
        RuntimeError("Out of memory allocating 16 bytes"),
        SafetensorError("Error while serializing: InvalidHeader"),
        sqlite3.OperationalError("no such table: entry"),
        AssertionError("cannot be"),
        UserError("of the writer itself"),
    ],
)
def test_a_bug_in_a_writer_keeps_its_traceback(tmp_path: Path, error: Exception) -> None:
    def write(folder: Path) -> None:
        folder.mkdir()
        (folder / "half").write_text("half of it")
        raise error

    with pytest.raises(type(error)) as raised, written_whole(tmp_path / "made") as unfinished:
        write(unfinished)
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_statement_that_sqlite_does_not_understand(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError, match="no such table"), written_whole(tmp_path / "made") as unfinished:
        sqlite3.connect(unfinished).execute("SELECT * FROM absent")
    assert list(tmp_path.iterdir()) == []


def test_a_writable_file_of_sqlite_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(sqlite3.OperationalError) as raised:
        sqlite3.connect(tmp_path / "absent" / "catalog.sqlite")
    assert is_disk_error(raised.value)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_what_to_do_about_a_full_disk(tmp_path: Path, code: int) -> None:
    message = r"; nothing was left there; free some space or choose another folder, and start again$"
    with pytest.raises(UserError, match=message), written_whole(tmp_path / "made", advice="start again"):
        raise OSError(code, os.strerror(code))


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    """Nothing can be removed there either, which must not hide the message."""
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="cannot write .*/file/a/b: .*Not a directory.*; check the folder and the room"),
        written_whole(tmp_path / "file" / "a" / "b"),
    ):
        pytest.fail("there is nowhere to write to")


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_permissions_are_those_of_a_new_file(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        with written_whole(tmp_path / "made") as unfinished:
            unfinished.mkdir()
            (unfinished / "file").touch(0o600)
    finally:
        assert os.umask(before) == mask
    assert (tmp_path / "made" / "file").stat().st_mode & 0o777 == mode
    assert [path.name for path in tmp_path.iterdir()] == ["made"]


def test_messages_name_what_lasts(tmp_path: Path) -> None:
    """Of the disk, and of whatever is wrong inside: the name that is written to first is gone when they are read."""
    for fail in (lambda path: path.write_bytes(b""), lambda path: refuse(path)):
        with pytest.raises(UserError) as raised, written_whole(tmp_path / "made") as unfinished:
            fail(unfinished / "absent" / "vocab.txt")
        assert f"{tmp_path}/made/absent/vocab.txt" in str(raised.value)
        assert "unfinished" not in str(raised.value)


def refuse(path: Path) -> None:
    raise UserError(f"vocabulary {path} cannot be read")
