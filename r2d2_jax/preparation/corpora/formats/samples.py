"""Samples, as files that share a name: 000000123.jpg, 000000123.json, 000000123.txt.

The rules are those of WebDataset: the key is the name up to the first dot of its last part, the extension is the rest,
in lower case; consecutive files with the same key are a sample.
"""

import functools
import itertools
import operator
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.corpora.formats.fields import json_object, readable

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff", "jfif", "avif", "jp2", "ppm")
_READ_EXTENSIONS = frozenset({*IMAGE_EXTENSIONS, "json", "txt"})


@dataclass(frozen=True)
class Sample:
    """An image of an archive: its encoded bytes, and fields such as texts and addresses."""

    image: bytes
    fields: dict[str, Any]


@dataclass(frozen=True)
class Found:
    """One step of reading an archive.

    key: the sample's name within the archive, with surrogates for bytes that are no UTF-8; "" for the whole archive.
    outcome: the sample, or why there is none.
    reached: how much of the archive's weight has been read so far.
    lost: how many samples are lost, if `outcome` is no sample.
    """

    key: str
    outcome: Sample | UnusableRecord
    reached: int
    lost: int = 1


@dataclass(frozen=True)
class Member:
    """A file of a sample; `read` it before taking the next one."""

    key: str
    extension: str
    read: Callable[[], bytes]


def split_name(name: str) -> tuple[str, str] | None:
    """Key and extension; None for files that belong to no sample: hidden files, and files without an extension."""
    folder, slash, last = name.rpartition("/")
    stem, dot, extension = last.partition(".")
    return (f"{folder}{slash}{stem}", extension.lower()) if stem and dot else None


def grouped(members: Iterable[Member]) -> Iterator[tuple[str, Sample | UnusableRecord]]:
    """Key and sample of every run of members with the same key; yields a sample before reading the next run's files."""
    for key, run in itertools.groupby(members, key=lambda member: member.key):
        try:
            yield key, _sample(run)
        except UnusableRecord as error:
            yield key, error


def folder_samples(folder: Path, weight: int) -> Iterator[Found]:
    """The samples of a folder of files, in the order of their names.

    Args:
        folder: holds all files of its samples; folders in it are not read.
        weight: the weight of all samples together.
    """
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file() and split_name(entry.name))
    except OSError as error:
        yield Found("", UnusableRecord(f"cannot be read ({error.strerror}); all samples are lost"), weight)
        return
    remaining = iter(names)
    for key, outcome in grouped(_members(folder, remaining)):
        yield Found(key, outcome, weight * (len(names) - operator.length_hint(remaining)) // len(names))


def _members(folder: Path, names: Iterable[str]) -> Iterator[Member]:
    for name in names:
        if parts := split_name(name):
            yield Member(*parts, functools.partial(_content, folder / name))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UnusableRecord(f"{readable(str(path))} cannot be read: {error.strerror}") from error


def _sample(members: Iterable[Member]) -> Sample:
    contents: dict[str, bytes] = {}
    for member in members:
        if member.extension in contents:
            raise UnusableRecord(f".{member.extension} is there twice")
        contents[member.extension] = member.read() if member.extension in _READ_EXTENSIONS else b""
    images = [contents[extension] for extension in IMAGE_EXTENSIONS if extension in contents]
    if len(images) != 1:
        raise UnusableRecord(f"{len(images) or 'no'} images among .{', .'.join(contents)}; expected one")
    fields = _object(contents["json"]) if "json" in contents else {}
    if "txt" in contents:
        fields["txt"] = _text(contents["txt"], ".txt")
    return Sample(images[0], fields)


def _object(content: bytes) -> dict[str, Any]:
    text = _text(content, ".json")
    try:
        return json_object(text)
    except UnusableRecord as error:
        raise UnusableRecord(f".json: {error}") from error


def _text(content: bytes, what: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableRecord(f"{what}: invalid UTF-8 at byte {error.start}") from error
