"""The samples of a tar, compressed or not, read as a stream with one sample in memory at a time."""

import bz2
import contextlib
import functools
import gzip
import itertools
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import first_line
from r2d2_jax.preparation.corpora.formats.fields import readable
from r2d2_jax.preparation.corpora.formats.samples import Found, Member, grouped, split_name

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_BLOCK = 512  # bytes; POSIX: headers and contents fill whole blocks
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's names for what is no sample
# By their first bytes. Unlike tarfile's own decompression, these modules read on where another compressed stream
# follows, as in what pbzip2 writes.
_COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ": lzma, b"\x5d\x00\x00\x80": lzma}
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)  # the last: bad numbers


def tar_samples(archive: Path) -> Iterator[Found]:
    """The samples of a tar, in its order, and of tars that follow it in the file, as with tar's --ignore-zeros.

    A tar that is cut short, or broken from some point on, gives the samples before that point; the last step says so.
    The number of lost samples is estimated from the unread bytes and the mean size of a sample so far (our decision).
    Of a tar that is cut short no byte is unread, so the loss counts as one.
    """
    key, count, size = "", 0, archive.stat().st_size
    with archive.open("rb") as file:
        try:
            with _decompressed(file) as content:
                tars = _Tars(content)
                for key, outcome in grouped(tars.members()):
                    count += 1
                    yield Found(key, outcome, file.tell())
                if tars.after_end:
                    raise tars.after_end
        except _BROKEN as error:
            lost = _lost(count, file.tell(), size)
            yield Found("", UnusableRecord(_reason(key, lost, error)), size, lost)


def _lost(count: int, reached: int, size: int) -> int:
    """How many samples the unread rest of a file may hold; at least one."""
    return max(1, round(count * (size - reached) / reached)) if reached else 1


def _reason(key: str, lost: int, error: Exception) -> str:
    after = f"after sample {readable(key)}" if key else "before its first sample is complete"
    estimate = f", about {lost:,} samples by the bytes that are left" if lost > 1 else ""
    return f"the archive is truncated or broken {after} ({first_line(error)}); all that follows is lost{estimate}"


class _Tars:
    """One or several tars in a file.

    tarfile takes everything that is not a header for the end of a tar. So it reads through this class, block by block:
    if the last block that it read is zeros, the tar has ended; if not, the file is broken.

    Attributes:
        after_end: why the bytes after an end mark are no tar; the samples before the mark are whole.
    """

    def __init__(self, content: BinaryIO) -> None:
        """Takes the decompressed file."""
        self.after_end: tarfile.ReadError | None = None
        self._content, self._last, self._ahead = content, b"", b""

    def members(self) -> Iterator[Member]:
        """The files of all samples, tar after tar; where the file is broken it raises an error of `_BROKEN`."""
        for number in itertools.count(1):
            try:
                tar = self._opened()
            except tarfile.ReadError as error:
                if number == 1:
                    raise
                self.after_end = error
                return
            with tar:
                # Joined tars may have the same names in them.
                yield from _members(tar, f"{number}:" if number > 1 else "")
            if not self._last or any(self._last):
                raise tarfile.ReadError("neither a header nor an end mark follows" if self._last else "no end mark")
            if not self._another():
                return

    def read(self, size: int) -> bytes:
        """Reads a block for tarfile; zeros at the end of the file need not fill one."""
        block, self._ahead = self._ahead or self._content.read(size), b""
        self._last = block.ljust(size, b"\0") if block and not any(block) else block
        return self._last

    def _opened(self) -> tarfile.TarFile:
        file: Any = self  # of a file's methods, tarfile needs `read` alone
        try:
            return tarfile.open(fileobj=file, mode="r|", bufsize=_BLOCK, encoding="utf-8", errors="surrogateescape")
        except tarfile.ReadError as error:
            raise tarfile.ReadError(f"no header and no end mark: {error}") from error

    def _another(self) -> bool:
        """Skips the zeros between tars; returns whether something follows them."""
        while (block := self._content.read(_BLOCK)) and not any(block):
            pass
        self._ahead = block
        return bool(block)


def _members(tar: tarfile.TarFile, prefix: str) -> Iterator[Member]:
    while (header := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined] # else it keeps every header until the end
        name = split_name(header.name)
        if header.isfile() and name and not _META.match(header.name):
            key, extension = name
            yield Member(prefix + key, extension, functools.partial(_content, tar, header))


def _content(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    return cast(IO[bytes], tar.extractfile(header)).read()  # None only for what is no regular file


def _decompressed(file: BinaryIO) -> Any:
    start = file.read(6)
    file.seek(0)
    for mark, compression in _COMPRESSIONS.items():
        if start.startswith(mark):
            return compression.open(file, "rb")
    return contextlib.nullcontext(file)
