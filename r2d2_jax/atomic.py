"""Files and folders that are there whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import stat
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from r2d2_jax.buckets.path import BucketPath, bucket_refused
from r2d2_jax.buckets.transfer import upload
from r2d2_jax.errors import UserError, first_line, naming

_SQLITE_DISK = {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY}
# Libraries in C++ and Rust raise their own exceptions, with the operating system's words in the message.
_LIBRARY_ERRORS = (SafetensorError, RuntimeError, ValueError)
_ERRNOS = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.ESTALE),
    *(errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EMFILE),
)
_SYSTEM_WORDS = re.compile("|".join([r"os error \d", "os_error_code", *map(re.escape, map(os.strerror, _ERRNOS))]))
_FULL = re.compile("|".join(["disk is full", os.strerror(errno.ENOSPC), os.strerror(errno.EDQUOT)]))


def is_disk_error(error: BaseException) -> bool:
    """Whether the operating system refused to write: its own error, or a library's that quotes it.

    Everything else that a writer raises is a bug and keeps its traceback.
    """
    if isinstance(error, sqlite3.Error):
        return getattr(error, "sqlite_errorcode", 0) & 0xFF in _SQLITE_DISK  # the low byte is the kind of error
    if isinstance(error, _LIBRARY_ERRORS):
        return bool(_SYSTEM_WORDS.search(str(error)))
    return isinstance(error, OSError)


@contextlib.contextmanager
def writing(path: Path, *, advice: str = "") -> Iterator[None]:
    """Turns what the disk refuses inside into one message about `path`; `advice` ends the message.

    Raises:
        UserError: the disk is full, or `path` cannot be written to. What else is raised inside goes through.
    """
    try:
        yield
    except Exception as error:
        if not is_disk_error(error):
            raise
        is_full = _FULL.search(str(error))
        todo = "free some space or choose another folder" if is_full else "check the folder and the room on its disk"
        raise UserError(
            f"cannot write {path}: {first_line(error)}; nothing was left there; {todo}{advice and f', and {advice}'}"
        ) from error


def check_writable(path: Path) -> None:
    """Checks before the work that a file can be written after it, and makes its folder if absent; not of a bucket.

    Raises:
        OSError: it cannot.
    """
    if isinstance(path, BucketPath):
        return
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


@contextlib.contextmanager
def written_whole(path: Path, *, advice: str = "") -> Iterator[Path]:
    """Gives a name beside `path` to write a file or folder to; renames it to `path` on success, removes it otherwise.

    What goes into a bucket is written to the disk for temporary files, and uploaded on success.

    Args:
        path: the file or folder to make; its parents are made if absent, a file of this name is replaced.
        advice: ends the message about a full disk.

    Raises:
        UserError: as `writing`, or the bucket refuses it.
    """
    if isinstance(path, BucketPath):
        with tempfile.TemporaryDirectory(prefix="r2d2_jax-") as folder:
            unfinished = Path(folder) / path.name
            with naming(str(unfinished), str(path)), writing(unfinished, advice=advice):
                yield unfinished
            with bucket_refused(path, "write"):
                upload(unfinished, path)
        return
    # A random name: writers on two machines that share the folder may have the same process id.
    unfinished = path.with_name(f"{path.name}.unfinished-{uuid.uuid4().hex}")
    try:
        with naming(unfinished.name, path.name), writing(path, advice=advice):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield unfinished
            _settle(unfinished)
            os.replace(unfinished, path)
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing can be removed either
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            unfinished.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Fsyncs files and gives them the permissions of a new file: safetensors makes files for their owner alone.

    Without fsync, a machine that loses power may keep the final name of a file whose contents never reached the disk.
    """
    mode = _new_file_mode(path)
    for file in (path, *path.rglob("*")):
        if file.is_file():
            file.chmod(mode)
            with file.open("rb") as written:
                os.fsync(written.fileno())


def _new_file_mode(path: Path) -> int:
    """Permissions of a file that is made beside `path`; the umask itself can only be read by changing it."""
    probe = path.with_name(f"{path.name}-mode")
    descriptor = os.open(probe, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        probe.unlink()
