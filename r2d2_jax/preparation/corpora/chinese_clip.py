"""Sets for retrieval as Chinese-CLIP distributes them: MUGE, and Flickr30k-CN and COCO-CN in this form.

    FOLDER/
        train_imgs.tsv  train_texts.jsonl
        valid_imgs.tsv  valid_texts.jsonl
        test_imgs.tsv   test_texts.jsonl

Each split consists of both its files; at least one split is there. Images are tab-separated with their Base64, texts
are JSON lines:

    1000002<tab>/9j/4AAQSkZJ...YQj7314oA//2Q==
    {"text_id": 8428, "text": "高级感托特包斜挎", "image_ids": [1076345, 517602]}

That is certain (Chinese-CLIP's documentation and code). The code writes standard Base64 and reads the URL-safe
alphabet as well; both are read here. A text may ask for several images, and several texts for one image; text_id says
in every record which text it is, so that all of its images count as right. MUGE's own
release names the files MR_train_imgs.tsv and MR_train_queries.jsonl, with query_id, query_text and item_ids for the
three keys (seen only through others' readers); that form is read too.

In validation and test, images that no text asks for stay in the gallery, as examples without captions; in training
they are left out, and reported. Texts that name no image, as all of MUGE's test split, whose truth is not published,
are left out and reported: such a split is a gallery only.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.annotation_corpus import AnnotatedCorpus, AnnotatedEntry
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.corpora.corpus import SPLIT_ALIASES
from r2d2_jax.preparation.corpora.formats.fields import as_text, json_object, text_of, with_keys
from r2d2_jax.preparation.corpora.formats.lines import parsed_lines, refuse_array
from r2d2_jax.preparation.corpora.image_stores import Base64Table
from r2d2_jax.preparation.examples import Annotation

_SPLITS = ("train", "valid", "val", "test")
_FORMS = (("", "_texts.jsonl"), ("MR_", "_queries.jsonl"))  # how the names of a split's files begin and end
_IMAGES = "_imgs.tsv"
_KEYS = {"query_id": "text_id", "query_text": "text", "item_ids": "image_ids"}
_EXPECTED = '{"text_id": 8428, "text": "...", "image_ids": [1076345]}'


@dataclass(frozen=True)
class _Split:
    name: str
    images: Path
    texts: Path


class ChineseClip(AnnotatedCorpus):
    """A folder of Base64 tables and texts."""

    name = "chinese_clip"
    description = "Images with Chinese texts, from the files of Chinese-CLIP."
    homepage = "https://github.com/OFA-Sys/Chinese-CLIP"
    needs = ("annotations",)

    def check(self) -> None:
        """Checks that every split has both its files."""
        super().check()
        if not self._splits():
            raise UserError(
                f"folder {self.annotations} holds no split; expected train_imgs.tsv and train_texts.jsonl, "
                "or the same of valid or test"
            )
        self._check_names()
        for split in self._splits():
            refuse_array(split.texts, _EXPECTED)

    def inputs(self) -> list[Path]:
        """Images and texts of every split."""
        return [path for split in self._splits() for path in (split.images, split.texts)]

    def annotation_files(self) -> list[Path]:
        """The texts; if a table has no image, the images of its texts count as missing."""
        return [split.texts for split in self._splits()]

    def image_store(self) -> Base64Table:
        """The tables of all splits."""
        return Base64Table({split.name: split.images for split in self._splits()})

    def index(self, catalog: Catalog) -> None:
        """Walks images and texts."""
        super().index(catalog)
        unnamed = catalog.unnamed_blobs("train", "train/")
        if unnamed:
            catalog.remark(f"train: {unnamed:,} images that no text names; left out")

    def outcomes(self) -> Iterator[AnnotatedEntry]:
        """Split by split, first the gallery, then the texts."""
        for split in self._splits():
            if split.name != "train":
                yield from self._gallery(split.name)
            for place, outcome in parsed_lines(split.texts, functools.partial(_parse, split.name)):
                yield place, split.name, outcome

    def _gallery(self, split: str) -> Iterator[AnnotatedEntry]:
        for place, image in self.image_store().ids(split):
            yield place, split, (Annotation(f"{split}/{image}", (), image_id=image),)

    def _splits(self) -> list[_Split]:
        splits = []
        for name in _SPLITS:
            for begin, end in _FORMS:
                images, texts = (self.annotations / f"{begin}{name}{ending}" for ending in (_IMAGES, end))
                if images.exists() or texts.exists():
                    splits.append(_Split(SPLIT_ALIASES.get(name, name), images, texts))
        return splits

    def _check_names(self) -> None:
        endings = (_IMAGES, *(end for _, end in _FORMS))
        present = {path for path in self.annotations.glob("[!.]*") if path.name.endswith(endings)}
        unknown = sorted(path.name for path in present - set(self.inputs()))
        if unknown:
            raise UserError(
                f"{self.annotations} holds {', '.join(unknown)}, of no known split or without its "
                f"counterpart; the splits are {', '.join(_SPLITS)}. Rename or move them"
            )
        names = [split.name for split in self._splits()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{self.annotations} holds split {', '.join(twice)} under two names; move one of them away")


class Muge(ChineseClip):
    """MUGE: search queries and pictures of goods."""

    name = "muge"
    description = "MUGE: search queries of an online shop with pictures of goods."
    homepage = "https://tianchi.aliyun.com/muge"


def _parse(split: str, line: str) -> tuple[Annotation, ...]:
    entry = {_KEYS.get(key, key): value for key, value in json_object(line).items()}
    try:
        with_keys(entry, "text_id", "text")
        images = entry.get("image_ids", [])
        if not isinstance(images, list):
            raise UnusableRecord('"image_ids" is not a list')
        ids = [as_text(image, "an image id") for image in images]
        if len(set(ids)) < len(ids):
            raise UnusableRecord("an image is named twice")
        text, text_id = text_of(entry, "text"), text_of(entry, "text_id")
    except UnusableRecord as error:
        raise UnusableRecord(f"{error}; expected {_EXPECTED}") from error
    return tuple(
        Annotation(
            f"{split}/{image}", (text,), image_id=image, unique="" if number else f"text {text_id}", text_ids=(text_id,)
        )
        for number, image in enumerate(ids)
    )
