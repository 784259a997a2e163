"""Samples out of a tar that is read as a stream, compressed or not; memory holds one sample at a time."""

import bz2
import contextlib
import functools
import gzip
import lzma
import re
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import first_line
from r2d2_jax.preparation.corpora.archive_corpus import Found
from r2d2_jax.preparation.corpora.formats.fields import readable
from r2d2_jax.preparation.corpora.formats.samples import Member, grouped, split_name

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's names for what is no sample
# By their first bytes. These modules go on where one compressed stream follows another, as pbzip2 writes; tarfile's own
# decompression takes the end of the first one for the end.
_COMPRESSIONS: dict[bytes, Any] = {b"\x1f\x8b": gzip, b"BZh": bz2, b"\xfd7zXZ": lzma, b"\x5d\x00\x00\x80": lzma}
# The last one: of numbers in a header that are none.
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)


def tar_samples(archive: Path) -> Iterator[Found]:
    """The samples of a tar, in its order; tars that follow one another in the file are read on, as --ignore-zeros does.

    A tar that is cut short, or broken from some point on, gives the samples before that; the last step then says so.
    How many are lost is estimated from the bytes that are left and those that a sample took so far (our decision); of a
    tar that is cut short nothing is left, and the loss counts as one.
    """
    key, count, size = "", 0, archive.stat().st_size
    with archive.open("rb") as file:
        try:
            with _opened(file) as tar:
                for key, outcome in grouped(_members(tar)):
                    count += 1
                    yield Found(key, outcome, file.tell())
                if tar.after_end:
                    raise tar.after_end
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


class _Header(tarfile.TarInfo):
    """Tells end marks and padding from all else that is no header; the stock class takes all of it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "_Header":
        # Zeros at the end of a file need not fill a block.
        whole = buf.ljust(tarfile.BLOCKSIZE, b"\0") if buf and not any(buf) else buf
        return super().frombuf(whole, encoding, errors)

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Header":
        assert isinstance(tar, _Tar)
        try:
            header = super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tar.ended = True
            raise
        except tarfile.HeaderError as error:
            if tar.ended and isinstance(error, tarfile.EmptyHeaderError):  # type: ignore[attr-defined]
                raise  # the file's end, after an end mark
            broken = tarfile.ReadError(f"no header and no end mark: {error}")
            if tar.ended:
                tar.after_end = broken
                raise tarfile.EmptyHeaderError from error  # type: ignore[attr-defined] # no more members
            raise broken from error
        if tar.ended:
            tar.ended, tar.number = False, tar.number + 1
        return header


class _Tar(tarfile.TarFile):
    """One or several tars in a file.

    Attributes:
        ended: whether what was read last is an end mark.
        number: which of the tars the last header belongs to, from 1.
        after_end: what is wrong with that which follows an end mark; the samples before the mark are whole.
    """

    tarinfo = _Header
    ended = False
    number = 1
    after_end: tarfile.ReadError | None = None


@contextlib.contextmanager
def _opened(file: BinaryIO) -> Iterator[_Tar]:
    settings: dict[str, Any] = {"ignore_zeros": True, "encoding": "utf-8", "errors": "surrogateescape"}
    with _decompressed(file) as content, _Tar.open(fileobj=content, mode="r|", **settings) as tar:
        assert isinstance(tar, _Tar)
        yield tar


def _members(tar: _Tar) -> Iterator[Member]:
    while (header := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined] # it would keep all headers
        name = split_name(header.name)
        if header.isfile() and name and not _META.match(header.name):
            key, extension = name
            # Tars that were joined may have the same names in them.
            key = key if tar.number == 1 else f"{tar.number}:{key}"
            yield Member(key, extension, functools.partial(_content, tar, header))


def _decompressed(file: BinaryIO) -> Any:
    start = file.read(6)
    file.seek(0)
    for mark, compression in _COMPRESSIONS.items():
        if start.startswith(mark):
            return compression.open(file, "rb")
    return contextlib.nullcontext(file)


def _content(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(header)
    assert file is not None, header.name  # a regular file
    return file.read()
