"""Where a corpus keeps its images: files in a folder, or Base64 in a table."""

import abc
import base64
import binascii
import os
from collections.abc import Sequence
from pathlib import Path

from r2d2_jax.data.corpora.catalog import Blob, Catalog
from r2d2_jax.data.corpora.lines import open_annotations
from r2d2_jax.data.entries import Place, UnusableRecord
from r2d2_jax.errors import UserError

_URL_SAFE = bytes.maketrans(b"-_", b"+/")


class ImageStore(abc.ABC):
    """The bytes of every image of a corpus, by the image's name."""

    @abc.abstractmethod
    def index(self, catalog: Catalog) -> None:
        """Notes in the catalog where the images lie, if that has to be looked for."""

    @abc.abstractmethod
    def read(self, name: str, catalog: Catalog) -> bytes:
        """The encoded image.

        Raises:
            UnusableRecord: there is none of that name, or it cannot be read.
        """


class ImageFolder(ImageStore):
    """Files below a folder; an image's name is its path in there."""

    def __init__(self, root: Path) -> None:
        """Checks that the folder is there; raises UserError otherwise."""
        if not root.is_dir():
            raise UserError(f"image folder {root} does not exist; set --images to the folder with the images")
        self._root = root

    def index(self, catalog: Catalog) -> None:
        """The names say where the images lie."""

    def read(self, name: str, catalog: Catalog) -> bytes:
        """Reads the file."""
        path = self._root / name
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:  # a NUL in the name is a ValueError
            reason = getattr(error, "strerror", None) or error
            raise UnusableRecord(f"image {path} cannot be read: {reason}") from error


class Base64Table(ImageStore):
    """Tables of two tab-separated columns, the image's name and its bytes in Base64 (either alphabet).

        1000002<tab>/9j/4AAQSkZJ...
    """

    def __init__(self, tables: Sequence[Path]) -> None:
        """Takes the tables' files."""
        self._tables = tuple(tables)

    def index(self, catalog: Catalog) -> None:
        """Notes the place of every image; lines that are none are skipped and counted."""
        for table in self._tables:
            position = 0
            with open_annotations(table) as file:
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        _index_line(catalog, Place(str(table), number), line, position)
                    position += len(line)

    def read(self, name: str, catalog: Catalog) -> bytes:
        """Reads and decodes the image's cell."""
        blob = catalog.blob(name)
        if blob is None:
            raise UnusableRecord(f"no image {name} in {', '.join(map(str, self._tables))}")
        with open(blob.place.file, "rb") as file:
            encoded = os.pread(file.fileno(), blob.length, blob.position)
        try:
            return base64.b64decode(encoded.translate(_URL_SAFE), validate=True)
        except binascii.Error as error:
            raise UnusableRecord(f"broken Base64 of image {name} in {blob.place}: {error}") from error


def _index_line(catalog: Catalog, place: Place, line: bytes, position: int) -> None:
    cells = line.rstrip(b"\r\n").split(b"\t")
    try:
        if len(cells) != 2:
            raise UnusableRecord(f"{len(cells)} tab-separated columns, expected 2: IMAGE<tab>BASE64")
        try:
            name = cells[0].decode("utf-8").strip()
        except UnicodeDecodeError as error:
            raise UnusableRecord(f"invalid UTF-8 at byte {error.start} of the line") from error
        catalog.add_blob(name, Blob(place, position + len(cells[0]) + 1, len(cells[1])))
    except UnusableRecord as reason:
        catalog.skip(place, "", reason)
