"""Hugging Face datasets in Parquet files, as its hub has them and `Dataset.to_parquet` writes them.

    FOLDER/
        data/train-00000-of-00002.parquet  data/train-00001-of-00002.parquet
        data/validation-00000-of-00001.parquet

A row is an image and its texts:

    image (struct<bytes: binary, path: string>)    {"bytes": ..., "path": "0001.jpg"}
    text (string), or caption, or captions (list)  "两只狗在路上打架。"

The split is the first word of _KEYWORDS in a file's name, else in its folder's, as in train/0000.parquet; a file that
names none belongs to training. These are the rules of the library `datasets`, as its documentation states them. Images
are also taken from a column of plain bytes. Where `bytes` is null, the image is the file `path`, beside the Parquet
file or in FOLDER. An image's identity is the column image_id, if there is one, otherwise FILE#ROW.
"""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError
from r2d2_jax.paths import refuse_pointer
from r2d2_jax.preparation.corpora.archive_corpus import ArchiveCorpus
from r2d2_jax.preparation.corpora.corpus import split_problem
from r2d2_jax.preparation.corpora.formats.fields import as_text, readable
from r2d2_jax.preparation.corpora.formats.parquet import (
    DAMAGED,
    Layout,
    columns_with_types,
    parquet_files,
    parquet_samples,
)
from r2d2_jax.preparation.corpora.formats.samples import Found, Sample
from r2d2_jax.preparation.examples import MissingImage

_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "webp")  # the first one there is, if several columns hold bytes
_IMAGE_ID = "image_id"
_SHARD_NAME = re.compile(r"(.+)-\d+-of-\d+(-[0-9a-f]+)?")
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_KEYWORDS = {keyword: split for split, keywords in _SPLITS.items() for keyword in keywords}


class HuggingFace(ArchiveCorpus):
    """Parquet files of images with texts."""

    name = "huggingface"
    description = "Images with their texts, from Parquet files of a Hugging Face dataset."
    default_text_fields = ("text", "caption", "captions", "txt")

    def check(self) -> None:
        """Checks that there are Parquet files, and that the first one of each split has images and texts."""
        super().check()
        archives = self.archives()
        if not archives:
            raise UserError(_what_is_missing(self.images))
        for split, files in archives.items():
            if problem := split_problem(split):
                raise UserError(f"{files[0]} is of split {split!r}, but {problem}")
            self._check_layout(files[0])

    def archives(self) -> dict[str, list[Path]]:
        """The Parquet files of all folders, those of training first."""
        found: dict[str, list[Path]] = {"train": []}
        for path in parquet_files(self.images):
            found.setdefault(_split(path.relative_to(self.images)), []).append(path)
        return {split: files for split, files in found.items() if files}

    def samples(self, archive: Path) -> Iterator[Found]:
        """The rows of a file."""
        return parquet_samples(archive, self._layout(archive))

    def image_id(self, archive: Path, key: str, fields: dict[str, Any]) -> str:
        """The column image_id, else the row's place."""
        if fields.get(_IMAGE_ID) is not None:
            return as_text(fields[_IMAGE_ID], f'"{_IMAGE_ID}"')
        return f"{self.name_in_corpus(archive)}#{key}"

    def _layout(self, archive: Path) -> "_Rows":
        return _Rows(self.text_fields, [archive.parent, self.images])

    def _check_layout(self, archive: Path) -> None:
        refuse_pointer(archive)
        try:
            self._layout(archive).columns(pyarrow.parquet.read_schema(archive))
        except UnusableRecord as error:
            raise UserError(f"{archive}: {error}") from error
        except DAMAGED:
            pass  # the file is damaged: an unusable entry, of which some are tolerated


class _Rows(Layout):
    """The columns of a Hugging Face dataset."""

    def __init__(self, text_fields: Sequence[str], folders: Sequence[Path]) -> None:
        """Takes the columns that may hold texts, and the folders in which images may lie as files."""
        self._text_fields, self._folders = text_fields, folders
        self._image = ""

    def columns(self, schema: pyarrow.Schema) -> list[str]:
        """The image, the texts, and the identity if there is one."""
        self._image = _image_column(schema)
        texts = [name for field in self._text_fields for name in dict.fromkeys((field, field.lower()))]
        texts = [name for name in texts if name in schema.names]
        if not texts:
            raise UnusableRecord(
                f"no column {', '.join(self._text_fields)} for the texts; there is {columns_with_types(schema)}. "
                "Name the columns with --text_fields"
            )
        return list(dict.fromkeys([self._image, *texts, *[_IMAGE_ID] * (_IMAGE_ID in schema.names)]))

    def sample(self, number: int, row: dict[str, Any]) -> tuple[str, Sample | UnusableRecord]:
        """Image and texts of a row."""
        try:
            return str(number), Sample(self._bytes(row.pop(self._image)), row)
        except UnusableRecord as error:
            return str(number), error

    def _bytes(self, image: Any) -> bytes:
        struct = image if isinstance(image, dict) else {"bytes": image}
        content, path = struct["bytes"], struct.get("path")
        if content is not None:
            return bytes(content)
        if path:
            return self._beside(str(path))
        raise MissingImage("the image is null")

    def _beside(self, path: str) -> bytes:
        """The file that a path names, within the dataset's folder: whoever made it may name any other, too."""
        root = self._folders[-1]
        for folder in self._folders:
            file = Path(os.path.normpath(folder / path))  # not resolved: the hub's cache is made of links to elsewhere
            if file.is_relative_to(root):
                with contextlib.suppress(OSError, ValueError):  # no file, or a name that the system cannot have
                    return file.read_bytes()
        raise MissingImage(
            f"the image has no bytes, and its path {readable(path)} is no file in {self._folders[-1]}; put it there, "
            "or write the dataset again with the images embedded"
        )


def _split(path: Path) -> str:
    """The split of a file, by its path within the dataset."""
    named = _SHARD_NAME.fullmatch(path.stem)
    if named and path.parent.name == "data":  # where `datasets` takes any word for a split
        return _KEYWORDS.get(named[1].lower(), named[1])
    for part in (path.stem, *reversed(path.parent.parts)):
        for word in re.split("[^a-z]+", part.lower()):
            if word in _KEYWORDS:
                return _KEYWORDS[word]
    return "train"


def _image_column(schema: pyarrow.Schema) -> str:
    found = [field.name for field in schema if _is_image(field.type)]
    named = [name for name in _IMAGE_COLUMNS if name in found]
    if named or len(found) == 1:
        return (named or found)[0]
    if found:
        raise UnusableRecord(f"several columns hold bytes: {', '.join(found)}; call the one with the images image")
    raise UnusableRecord(
        f"no column holds one image a row; there is {columns_with_types(schema)}. Expected image "
        "(struct<bytes, path>), or a column of bytes"
    )


def _is_image(kind: pyarrow.DataType) -> bool:
    if pyarrow.types.is_struct(kind):
        fields = {field.name: field.type for field in kind}  # all bytes may be null, and the images files
        return "bytes" in fields and (_is_bytes(fields["bytes"]) or pyarrow.types.is_null(fields["bytes"]))
    return _is_bytes(kind)


def _is_bytes(kind: pyarrow.DataType) -> bool:
    types = pyarrow.types
    if types.is_dictionary(kind):
        return _is_bytes(kind.value_type)
    return any(of(kind) for of in (types.is_binary, types.is_large_binary, types.is_binary_view))


def _what_is_missing(folder: Path) -> str:
    arrow = next(folder.rglob("*.arrow"), None)
    if arrow is None:
        return (
            f"{folder} and the folders in it hold no Parquet file; expected files like "
            "data/train-00000-of-00002.parquet"
        )
    return (
        f"{folder} holds Arrow files, such as {arrow}, as `save_to_disk` and the cache of `datasets` have them; "
        "expected Parquet. Write it in Python: for split, rows in datasets.load_from_disk(FOLDER).items(): "
        'rows.to_parquet(f"OUTPUT/{split}.parquet")'
    )
