"""One process at a time in a folder: a lock file that says who holds it."""

import contextlib
import errno
import fcntl
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from r2d2_jax import lease
from r2d2_jax.errors import UserError
from r2d2_jax.holder import this_process

logger = logging.getLogger(__name__)

LOCK = "lock"
# What a file system says that knows no locks: NFS 3 without its lock service, Lustre mounted without flock.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


@contextlib.contextmanager
def held(folder: Path, work: str, flag: str) -> Iterator[None]:
    """Holds the folder for this process.

    The operating system holds the lock, on NFS the server: it ends with the process, however that ends, and with its
    machine. Where the file system knows no locks, the file itself is one that its holder writes again and again
    (`lease`), and a warning says so. What ends in good order removes the file.

    Args:
        folder: made if absent.
        work: what is done in it, for messages, such as "a run".
        flag: which flag names the folder.

    Raises:
        UserError: another process holds it, and which; or the folder cannot be written to, or nothing locked there.
    """
    path = folder / LOCK
    refusal = f"{work} is at work in {folder}; let it end, or choose another {flag}"
    with contextlib.ExitStack() as ends:
        file = _opened_and_locked(folder, refusal, flag, ends)
        if file is None:
            ends.enter_context(_leased(path, refusal, flag))
            yield
            return
        _write(file, this_process())
        try:
            yield
            if _is_file_of(file, path):
                path.unlink(missing_ok=True)
        finally:
            _write(file, "")


def _opened_and_locked(folder: Path, refusal: str, flag: str, ends: contextlib.ExitStack) -> IO[bytes] | None:
    """The lock file, locked; None where the file system knows no locks."""
    path = folder / LOCK
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = ends.enter_context(path.open("ab+", buffering=0))  # closing what is unbuffered never fails
        except OSError as error:
            raise UserError(f"cannot write {folder}: {error.strerror}; check {flag} and its permissions") from error
        if not _take(file, refusal, flag):
            file.close()
            return None
        lease.FileLease(path).heed(refusal)
        if _is_file_of(file, path):  # and not one that its holder has removed, before it let go or meanwhile
            return file


def _take(file: IO[bytes], refusal: str, flag: str) -> bool:
    """Locks a file; False where the file system knows no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = _text_in(file).partition("\n")[0]
        raise UserError(
            f"{refusal}. It is {holder or 'just starting'}; if that has ended, remove {file.name}"
        ) from error
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise UserError(
                f"cannot lock {file.name}: {error.strerror}; check the file system, or choose another {flag}"
            ) from error
        logger.warning(
            "%s lies on a file system without locks (%s): its lock is a file that this process writes every %.0f s, "
            "and after a kill the next process may wait %.0f s. With locks it would not: mount Lustre with flock, NFS "
            "as version 4, or as version 3 with its lock service at work on both sides",
            Path(file.name).parent, error.strerror, lease.BEAT_SECONDS, lease.LAPSES_AFTER,
        )  # fmt: skip
        return False
    return True


@contextlib.contextmanager
def _leased(path: Path, refusal: str, flag: str) -> Iterator[None]:
    taken = lease.FileLease(path)
    try:
        taken.take(refusal)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; check {flag} and its permissions") from error
    with lease.beating(taken):
        yield


def _is_file_of(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _text_in(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace").strip("\0\n")  # a machine that lost power leaves zeros


def _write(file: IO[bytes], text: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk; the lock holds without it
        file.truncate(0)
        file.write(text.encode())
