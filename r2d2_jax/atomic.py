"""Files and folders that are there whole or not at all."""

import contextlib
import errno
import os
import re
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

from safetensors import SafetensorError

from r2d2_jax.errors import UserError, first_line

# What writers raise when the disk refuses: the operating system's own error, or a library's wrapping of it.
WRITE_ERRORS = (OSError, SafetensorError, sqlite3.OperationalError, RuntimeError, ValueError)
_UMASK = threading.Lock()  # it is the process's, and only read by setting it


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a name beside `path` to write a file or folder to; renames it to `path` on success, removes it otherwise.

    Raises:
        UserError: the disk is full, or the folder cannot be written to.
    """
    # A name of its own for every writer: those on machines that share the folder may have the same process id.
    unfinished = path.with_name(f"{path.name}.unfinished-{uuid.uuid4().hex}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _settle(unfinished)
        os.replace(unfinished, path)
    except WRITE_ERRORS as error:
        full = getattr(error, "errno", None) == errno.ENOSPC or re.search("No space left|disk is full", str(error))
        advice = "free some space or choose another folder" if full else "check the folder and the room on its disk"
        raise UserError(f"cannot write {path}: {first_line(error)}; nothing was left there; {advice}") from error
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing can be removed either
            if unfinished.is_dir():
                shutil.rmtree(unfinished)
            unfinished.unlink(missing_ok=True)


def _settle(path: Path) -> None:
    """Sees files onto the disk, and gives them the usual permissions: safetensors lets only their owner read them.

    Without the first, a machine that goes down may keep the name that is given next, and lose what it names.
    """
    with _UMASK:
        mask = os.umask(0)
        os.umask(mask)
    for file in (path, *path.rglob("*")):
        if file.is_file():
            file.chmod(0o666 & ~mask)
            with file.open("rb") as written:
                os.fsync(written.fileno())
