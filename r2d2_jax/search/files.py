"""What lies in a folder of photographs: which files look like pictures, and what is in one of them."""

import functools
import hashlib
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.data.image.decoding import FORMATS
from r2d2_jax.data.image.transforms import evaluation_image
from r2d2_jax.errors import first_line

logger = logging.getLogger(__name__)

# Photographs in formats that the decoder does not read. They are listed as broken, with the advice to convert them,
# rather than left out in silence.
_UNREAD_SUFFIXES = (".heic", ".heif", ".jxl")
# The size of a file that cannot be read or found. No file has it, so each update tries again what may be mended without
# a change of the file itself: its permissions, or the disk that a link leads to.
NEVER_READ = -1


@dataclass(frozen=True)
class FoundFile:
    """A file that looks like a picture.

    path: relative to the folder, as the file system has it, which need not be text.
    size: bytes. mtime: nanoseconds. Both tell whether the file may have changed since it was last read.
    """

    path: bytes
    size: int
    mtime: int


@dataclass(frozen=True)
class Content:
    """What was read of a file.

    digest: of all bytes; None if the file could not be read. encoded: the bytes, as long as a decoder may need them.
    pixels: uint8 [side side 3] of a picture that is to be encoded. problem: why there is no picture.
    """

    file: FoundFile
    digest: bytes | None = None
    encoded: bytes | None = None
    pixels: np.ndarray | None = None
    problem: str | None = None


@functools.cache
def suffixes() -> frozenset[str]:
    """Endings of file names, in lower case, of the formats that the decoder reads and of those it names as unread."""
    read = (suffix for suffix, name in Image.registered_extensions().items() if name in FORMATS)
    return frozenset((*read, *_UNREAD_SUFFIXES))


def found_files(folder: Path) -> Iterator[FoundFile]:
    """Files in a folder and below whose names end like those of pictures; names that begin with a dot are left out.

    Links are followed. Every folder is visited once, however many links lead to it, so a link to a folder above itself
    does no harm; where a folder is also linked to, its files are found under its own name. The order is that of names.

    Raises:
        OSError: the folder itself cannot be listed; folders below it that cannot are named in a warning.
    """
    visited: set[tuple[int, int]] = set()
    linked = [os.fsencode(folder)]
    root = linked[0]
    while linked:
        waiting = [linked.pop(0)]
        while waiting:
            current = waiting.pop()
            if not _is_new(current, visited):
                continue
            try:
                entries = sorted(os.scandir(current), key=lambda entry: entry.name)
            except OSError as error:
                if current == root:
                    raise
                logger.warning("cannot list %s: %s; it is left out", shown(current), error.strerror)
                continue
            visible = [entry for entry in entries if not entry.name.startswith(b".")]
            folders = [entry for entry in visible if _is_folder(entry)]
            linked += [entry.path for entry in folders if entry.is_symlink()]
            waiting += [entry.path for entry in reversed(folders) if not entry.is_symlink()]
            yield from (_found(entry, root) for entry in visible if _looks_like_a_picture(entry))


def read_content(folder: Path, file: FoundFile) -> Content:
    """All bytes of a file and their digest, or why it cannot be read."""
    try:
        encoded = Path(os.fsdecode(os.path.join(os.fsencode(folder), file.path))).read_bytes()
    except OSError as error:
        never = FoundFile(file.path, NEVER_READ, file.mtime)
        return Content(never, problem=f"the file cannot be read: {error.strerror}")
    return Content(file, hashlib.blake2b(encoded, digest_size=16).digest(), encoded)


def decoded(content: Content, side: int) -> Content:
    """The content with its pixels, upright, in place of its bytes; without bytes as it is.

    Args:
        content: from `read_content`.
        side: of the model's images, in pixels.
    """
    if content.encoded is None:
        return content
    try:
        return Content(content.file, content.digest, pixels=evaluation_image(content.encoded, side))
    except UnusableRecord as error:
        return Content(content.file, content.digest, problem=first_line(error))


def shown(path: str | bytes) -> str:
    """A path in one line of text: what cannot be printed, such as a line break in a name, is escaped."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in os.fsdecode(path))


def _is_new(folder: bytes, visited: set[tuple[int, int]]) -> bool:
    try:
        status = os.stat(folder)
    except OSError:  # removed meanwhile; listing it says so
        return True
    identity = (status.st_dev, status.st_ino)
    if identity in visited:
        return False
    visited.add(identity)
    return True


def _is_folder(entry: "os.DirEntry[bytes]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _looks_like_a_picture(entry: "os.DirEntry[bytes]") -> bool:
    return os.path.splitext(os.fsdecode(entry.name))[1].lower() in suffixes() and not _is_folder(entry)


def _found(entry: "os.DirEntry[bytes]", root: bytes) -> FoundFile:
    path = os.path.relpath(entry.path, root)
    try:
        status = entry.stat()
    except OSError:  # a link to nothing
        return FoundFile(path, 0, 0)
    return FoundFile(path, status.st_size, status.st_mtime_ns)
