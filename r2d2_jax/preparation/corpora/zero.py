"""Zero (CCMB), 2.3 M, 23 M or 250 M images that have to be downloaded: read from what img2dataset makes of the links.

    FOLDER/                                     part/00000.tar in subfolders is found as well
        00000.tar  00000.parquet  00000_stats.json   00001.tar ...

img2dataset's output formats webdataset (above), parquet and files are all read; all of it is the training split. A
sample of a tar:

    000000000.jpg
    000000000.json   {"Title": "...", "Content": "...", "ImageKey": "...", "ImageQuery": "...",
                      "url": "http://img/x.jpg", "key": "000000000", "status": "success", ...}

The command that keeps what is needed (the links file has one JSON object a line):

    img2dataset --url_list=zero.jsonl --input_format=jsonl --url_col=ImageUrl --output_format=webdataset
        --save_additional_columns='["ImageKey","Title","ImageQuery","Content"]' --output_folder=FOLDER

The published fields are Url, Title, Content, Keywords, ImageKey, ImageUrl, ImageQuery (certain: the page of the
corpus); how their values look when they are missing is not known, so null, "" and lists are all taken. An image's texts
are the fields of --text_fields, by default in this order (our decision: the shortest and nearest to the image first):

    Title        what the site calls the image
    ImageQuery   what people searched for when they chose it
    Content      the text around it
    caption, txt what img2dataset makes of the column named by --caption_col

The fields may be in lower case. Equal texts of an image count once. An image's identity is its ImageKey, else its
url, else ARCHIVE#KEY: img2dataset's keys are unique within one download only. Dead links are no entries; the report
counts them from the _stats.json. This file also counts the samples that were written: each one that is missing is an
unusable entry. A shard without its _stats.json is unfinished and refused.
"""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.corpora.archive_corpus import ArchiveCorpus
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.formats import img2dataset
from r2d2_jax.preparation.corpora.formats.fields import as_text
from r2d2_jax.preparation.corpora.formats.parquet import Layout, parquet_samples
from r2d2_jax.preparation.corpora.formats.samples import Found, Sample, folder_samples
from r2d2_jax.preparation.corpora.formats.tars import tar_samples

TEXT_FIELDS = ("Title", "ImageQuery", "Content")
HOMEPAGE = "https://zero.so.com"
_IMAGE_COLUMNS = ("jpg", "png", "webp")  # img2dataset's encode_format
_IDENTITIES = ("ImageKey", "imagekey", "url")
_IMAGE_BYTES = 20_000  # assumed for files in folders, whose sizes would take long to read; our decision


class Zero(ArchiveCorpus):
    """Zero as img2dataset downloaded it."""

    name = "zero"
    description = "Zero (CCMB): images from the web with title, search query and surrounding text."
    homepage = HOMEPAGE
    default_text_fields = (*TEXT_FIELDS, "caption", "txt")

    def check(self) -> None:
        """Checks that there are shards, and that all are finished."""
        super().check()
        self._shards()

    def archives(self) -> dict[str, list[Path]]:
        """All shards, for training."""
        return {"train": [shard.archive for shard in self._shards()]}

    def weight(self, archive: Path) -> int:
        """The size in bytes; for a folder an estimate."""
        if archive.is_dir():
            return _downloads(archive).successes * _IMAGE_BYTES
        return super().weight(archive)

    def index(self, catalog: Catalog) -> None:
        """Reports the dead links."""
        numbers = [(shard, img2dataset.downloads(shard.stats)) for shard in self._shards()]
        links = sum(found.links for _, found in numbers)
        dead = sum(found.dead for _, found in numbers)
        if dead:
            shard, worst = max(numbers, key=lambda item: item[1].dead / max(item[1].links, 1))
            catalog.remark(
                f"{dead:,} of {links:,} links were dead ({dead / links:.1%}) and are no entries; most in "
                f"{self.name_in_corpus(shard.archive)}: {worst.dead:,} of {worst.links:,}"
            )

    def samples(self, archive: Path) -> Iterator[Found]:
        """The samples of a shard in any of the formats; then those that are missing, by its _stats.json."""
        expected, there, failure = _downloads(archive).successes, 0, None
        for found in self._there(archive):
            if found.key:
                there += 1
                yield found
            else:
                failure = found
        lost = expected - there
        if failure:
            yield dataclasses.replace(failure, lost=max(lost, 1))
        elif lost > 0:
            reason = f"{lost:,} of the {expected:,} samples that its {img2dataset.STATS} counts are not there"
            yield Found("", UnusableRecord(reason), self.weight(archive), lost)

    def _there(self, archive: Path) -> Iterator[Found]:
        if archive.suffix == ".tar":
            return tar_samples(archive)
        if archive.suffix == ".parquet":
            return parquet_samples(archive, _Columns())
        return folder_samples(archive, self.weight(archive))

    def image_id(self, archive: Path, key: str, fields: dict[str, Any]) -> str:
        """ImageKey, else the url, else the sample's place."""
        for name in _IDENTITIES:
            if fields.get(name):
                return as_text(fields[name], f'"{name}"')
        return f"{self.name_in_corpus(archive)}#{key}"

    def _shards(self) -> list[img2dataset.Shard]:
        return img2dataset.finished_shards(self.images)


class _Columns(Layout):
    """The columns of img2dataset's Parquet files; rows without an image are dead links."""

    def columns(self, schema: pyarrow.Schema) -> None:
        """All of them, if there is one with images."""
        if not set(_IMAGE_COLUMNS) & set(schema.names):
            raise UnusableRecord(f"no column {', '.join(_IMAGE_COLUMNS)}; there is {', '.join(schema.names)}")

    def sample(self, number: int, row: dict[str, Any]) -> tuple[str, Sample | UnusableRecord] | None:
        """Image, texts and addresses of a row."""
        image = row.pop(next(name for name in _IMAGE_COLUMNS if name in row))
        if image is None:
            return None
        key = str(row.get("key", number))
        if not isinstance(image, bytes):
            return key, UnusableRecord("the image is not a column of bytes")
        return key, Sample(image, row)


def _downloads(archive: Path) -> img2dataset.Downloads:
    name = archive.name.removesuffix(".tar").removesuffix(".parquet")
    return img2dataset.downloads(archive.with_name(f"{name}{img2dataset.STATS}"))
