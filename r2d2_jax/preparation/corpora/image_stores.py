"""Where a corpus keeps its images: files in a folder, or Base64 in a table."""

import abc
import base64
import binascii
import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.catalog import Blob, Catalog
from r2d2_jax.preparation.corpora.formats.lines import open_annotations
from r2d2_jax.preparation.examples import MissingImage, Place

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class ImageStore(abc.ABC):
    """The bytes of every image of a corpus, by the image's name."""

    @abc.abstractmethod
    def index(self, catalog: Catalog) -> None:
        """Notes in the catalog where the images lie, if their names do not say so."""

    @abc.abstractmethod
    def read(self, name: str, catalog: Catalog) -> bytes:
        """The encoded image.

        Raises:
            MissingImage: there is no image of that name, or it cannot be read.
            UnusableRecord: the bytes are no image.
        """


class ImageFolder(ImageStore):
    """Files below a folder; an image's name is its path in there."""

    def __init__(self, root: Path, *, flat: bool = False, extensions: Sequence[str] = ()) -> None:
        """Checks that the folder exists.

        Args:
            root: the folder.
            flat: whether an image that is not at its path may lie in the folder itself.
            extensions: what may be missing at the end of a name, each with its dot.

        Raises:
            UserError: the folder does not exist.
        """
        if not root.is_dir():
            raise UserError(f"image folder {root} does not exist; set --images to the folder with the images")
        self._root, self._flat, self._endings = root, flat, ("", *extensions)

    def index(self, catalog: Catalog) -> None:
        """Nothing to note: the names say where the images lie."""

    def read(self, name: str, catalog: Catalog) -> bytes:
        """Reads the file."""
        tried = self._places(name)
        for path in tried:
            try:
                return path.read_bytes()
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
                reason = getattr(error, "strerror", None) or error
                raise MissingImage(f"image {path} cannot be read: {reason}") from error
        ending = f", nor with an ending such as {self._endings[1]}" if self._endings[1:] else ""
        named = " or ".join(map(str, tried[:: len(self._endings)]))
        raise MissingImage(f"image {named} cannot be read: No such file or directory{ending}")

    def _places(self, name: str) -> list[Path]:
        paths = [self._root / name]
        if self._flat and "/" in name:
            paths.append(self._root / Path(name).name)
        return [Path(f"{path}{ending}") for path in paths for ending in self._endings]


class Base64Table(ImageStore):
    """Tables of two tab-separated columns, the image's id and its bytes in Base64 (either alphabet).

        1000002<tab>/9j/4AAQSkZJ...

    An image's name is PREFIX/ID; the prefix tells apart equal ids of different tables.
    """

    def __init__(self, tables: Mapping[str, Path]) -> None:
        """Takes the tables: prefix -> file."""
        self._tables = dict(tables)

    def index(self, catalog: Catalog) -> None:
        """Notes the place of every image; skips and counts lines without one."""
        for prefix, table in self._tables.items():
            for place, position, line in _rows(table):
                try:
                    name, start, length = _cells(line)
                    catalog.add_blob(f"{prefix}/{name}", Blob(place, position + start, length))
                except UnusableRecord as reason:
                    catalog.skip(place, prefix, reason)

    def ids(self, prefix: str) -> Iterator[tuple[Place, str]]:
        """The ids in a table, in its order."""
        for place, _, line in _rows(self._tables[prefix]):
            with contextlib.suppress(UnusableRecord):  # `index` has counted it
                yield place, _cells(line)[0]

    def read(self, name: str, catalog: Catalog) -> bytes:
        """Reads and decodes the image's cell.

        Raises:
            UserError: the table does not exist any more, or has changed.
        """
        prefix, _, image = name.partition("/")
        blob = catalog.blob(name)
        if blob is None:
            raise MissingImage(f"no image {image} in {self._tables[prefix]}")
        encoded = _cell(blob)
        try:
            return base64.b64decode(encoded.translate(_URL_SAFE), validate=True)
        except binascii.Error as error:
            raise UnusableRecord(f"broken Base64 of image {image} in {blob.place}: {error}") from error


def _cell(blob: Blob) -> bytes:
    try:
        with open(blob.place.file, "rb") as file:
            encoded = os.pread(file.fileno(), blob.length, blob.position)
    except OSError as error:
        raise UserError(
            f"table {blob.place.file} cannot be read any more: {error.strerror}; put it back and start "
            "again: finished shards are kept"
        ) from error
    if len(encoded) < blob.length:
        raise UserError(
            f"table {blob.place.file} has become shorter since the preparation began; put back the one "
            "that was there and start again: finished shards are kept"
        )
    return encoded


def _rows(table: Path) -> Iterator[tuple[Place, int, bytes]]:
    """The lines that are not blank, each with its place and the number of bytes before it."""
    position = 0
    with open_annotations(table) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                yield Place(str(table), number), position, line
            position += len(line)


def _cells(line: bytes) -> tuple[str, int, int]:
    """The image's id, and start and length of its Base64 within the line."""
    cells = line.rstrip(b"\r\n").split(b"\t")
    if len(cells) != 2:
        raise UnusableRecord(f"{len(cells)} tab-separated columns, expected 2: IMAGE<tab>BASE64")
    try:
        name = cells[0].decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UnusableRecord(f"invalid UTF-8 at byte {error.start} of the line") from error
    if not name:
        raise UnusableRecord("the image's id is empty; expected IMAGE<tab>BASE64")
    return name, len(cells[0]) + 1, len(cells[1])
