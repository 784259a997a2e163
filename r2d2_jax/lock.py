"""One process at a time in a folder: a lock file that says who holds it."""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from r2d2_jax.errors import UserError

LOCK = "lock"


@contextlib.contextmanager
def held(folder: Path, work: str, flag: str) -> Iterator[None]:
    """Holds the folder for this process.

    The operating system holds the lock, on NFS the server: it ends with the process, however that ends, and with its
    machine. Where the file system knows no locks, such as some of Lustre, the file itself is the lock; it is taken over
    if it names a process of this machine that is gone. What ends in good order removes the file.

    Args:
        folder: made if absent.
        work: what is done in it, for messages, such as "a run".
        flag: which flag names the folder.

    Raises:
        UserError: another process holds it, and which; or the folder cannot be written to.
    """
    path = folder / LOCK
    with contextlib.ExitStack() as closed:
        while True:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = closed.enter_context(path.open("ab+", buffering=0))  # closing what is unbuffered never fails
            except OSError as error:
                raise UserError(f"cannot write {folder}: {error.strerror}; check {flag} and its permissions") from error
            _take(file, f"{work} is at work in {folder}; let it end, or choose another {flag}")
            if _is_file_of(file, path):  # and not one that its holder removed before it let go
                break
        _write(file, this_process())
        try:
            yield
            if _is_file_of(file, path):
                path.unlink(missing_ok=True)
        finally:
            _write(file, "")


def _is_file_of(file: IO[bytes], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _take(file: IO[bytes], refusal: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        holder = file.readline().decode(errors="replace").strip("\0\n")  # a machine that lost power leaves zeros
        if not isinstance(error, BlockingIOError) and (not holder or is_gone(holder)):
            return  # there are no locks here
        raise UserError(
            f"{refusal}. It is {holder or 'just starting'}; if that has ended, remove {file.name}"
        ) from error


def _write(file: IO[bytes], text: str) -> None:
    with contextlib.suppress(OSError):  # on a full disk; the lock holds without it
        file.truncate(0)
        file.write(text.encode())


def this_process() -> str:
    """What a lock says of the process that holds it."""
    return f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S %z')}"


def is_gone(holder: str) -> bool:
    """Whether a lock names a process of this machine that has ended."""
    words = holder.split()
    if len(words) < 4 or not words[1].isdecimal() or words[3] != socket.gethostname():
        return False
    try:
        os.kill(int(words[1]), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # of another user
        return False
    return False
