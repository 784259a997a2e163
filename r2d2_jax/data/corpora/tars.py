"""Samples out of a tar that is read as a stream, compressed or not; memory holds one sample at a time."""

import functools
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from r2d2_jax.data.corpora.archives import Found
from r2d2_jax.data.corpora.members import Member, grouped, split_name
from r2d2_jax.data.entries import UnusableRecord
from r2d2_jax.errors import first_line

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_META = re.compile(r"__[^/]*__($|/)")  # WebDataset's names for what is no sample


def tar_samples(archive: Path) -> Iterator[Found]:
    """The samples of a tar, in its order.

    A tar that is cut short, or broken from some point on, gives the samples before that; the last step then says so.
    """
    key = ""
    try:
        with archive.open("rb") as file:
            for key, outcome in grouped(_members(file)):
                yield Found(key, outcome, file.tell())
    except (tarfile.TarError, EOFError, OSError) as error:
        after = f"after sample {key}" if key else "before its first sample is complete"
        yield Found("", UnusableRecord(f"the archive is truncated or broken {after} ({first_line(error)}); all that "
                                       "follows is lost"), archive.stat().st_size)


class _Header(tarfile.TarInfo):
    """Tells the end mark from everything else that is no header; the stock class takes all of it for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> "_Header":
        try:
            return super().fromtarfile(tar)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            raise
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"no header and no end mark: {error}") from error


def _members(file: BinaryIO) -> Iterator[Member]:
    settings: dict[str, Any] = {"tarinfo": _Header, "errors": "replace"}
    with tarfile.open(fileobj=file, mode="r|*", **settings) as tar:
        while (header := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined] # it would keep all headers
            name = split_name(header.name)
            if header.isfile() and name and not _META.match(header.name):
                yield Member(*name, functools.partial(_content, tar, header))


def _content(tar: tarfile.TarFile, header: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(header)
    assert file is not None, header.name  # a regular file
    return file.read()
