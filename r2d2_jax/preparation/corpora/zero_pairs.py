"""The four data sets for fine-tuning of Zero (CCMB): ICR, IQR, ICM, IQM.

    FOLDER/                          --annotations: this folder, or ICR/ itself
        ICR/train/long_itr_train.json     ICR/val/long_itr_val.json       caption with image: retrieval
        IQR/train/short_itr_train.json    IQR/val/short_itr_val.json      query with image: retrieval
        ICM/train/long_itm_train.json     ICM/val/long_itm_val.json       caption with image: matching
        IQM/train/short_itm_train.json    IQM/val/short_itm_val.json      query with image: matching
    IQR_IQM_ICR_ICM_images/          --images: one flat folder for all four

Despite their names the files have one JSON object a line:

    {"image_path": "some/dir/abc123.jpg", "text": "一段较长的描述"}                  ICR, IQR
    {"image_path": "some/dir/abc123.jpg", "text": "查询词", "label": 1}              ICM, IQM: 1 match, 0 no match

Folders, names and keys are certain (the published code and its documentation). That code looks for the last part of
image_path in the flat folder; here an image at the path as given has precedence. An image's identity is the path at
which it was found: a/x.jpg, b/x.jpg and x.png are different images. No test files were seen; should
test/long_itr_test.json and the like be there, they are read. Labels are taken as numbers or as text.
"""

import os
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

from r2d2_jax.data.labelled_pairs import MATCH_NAMES
from r2d2_jax.preparation.corpora.annotation_corpus import LineCorpus
from r2d2_jax.preparation.corpora.formats.fields import json_object, text_of
from r2d2_jax.preparation.corpora.formats.lines import refuse_array
from r2d2_jax.preparation.corpora.image_stores import ImageFolder, ImageStore
from r2d2_jax.preparation.corpora.pairs import match_label
from r2d2_jax.preparation.corpora.zero import HOMEPAGE
from r2d2_jax.preparation.examples import Annotation


class _ZeroPairs(LineCorpus):
    """One of the four; `stem` begins the names of its files."""

    homepage = HOMEPAGE
    stem: ClassVar[str]

    def files(self) -> list[tuple[str, Path]]:
        """Training and validation, and test if it exists."""
        below = self.annotations / self.name.upper()
        root = below if below.is_dir() else self.annotations
        found = [(split, root / split / f"{self.stem}_{split}.json") for split in ("train", "val", "test")]
        return [(split, path) for split, path in found if split != "test" or path.is_file()]

    def check(self) -> None:
        """Checks that no file is a JSON array."""
        super().check()
        for path in self.inputs():
            refuse_array(path, '{"image_path": "a.jpg", "text": "..."}')

    def image_store(self) -> ImageStore:
        """Images at their path, or all in one folder."""
        return ImageFolder(self.images, flat=True)

    def _annotation(self, entry: dict[str, Any], label: int | None) -> Annotation:
        image = PurePosixPath(text_of(entry, "image_path"))
        own_place = os.path.isfile(self.images / image)  # unlike Path.is_file, False for names that no file can have
        identity = str(image) if own_place else image.name
        return Annotation(str(image), (text_of(entry, "text"),), image_id=identity, label=label)


class _Retrieval(_ZeroPairs):
    def parse(self, line: str) -> Annotation:
        """Image and text."""
        entry = json_object(line, "image_path", "text")
        return self._annotation(entry, None)


class _Matching(_ZeroPairs):
    grouped = False
    class_names = MATCH_NAMES

    def parse(self, line: str) -> Annotation:
        """Image, text and whether they match."""
        entry = json_object(line, "image_path", "text", "label")
        return self._annotation(entry, match_label(entry))


class Icr(_Retrieval):
    """ICR: image-caption retrieval."""

    name, stem = "icr", "long_itr"
    description = "ICR (Zero, CCMB): images with long captions, for retrieval."


class Iqr(_Retrieval):
    """IQR: image-query retrieval."""

    name, stem = "iqr", "short_itr"
    description = "IQR (Zero, CCMB): images with search queries, for retrieval."


class Icm(_Matching):
    """ICM: image-caption matching."""

    name, stem = "icm", "long_itm"
    description = "ICM (Zero, CCMB): images with long captions that match or do not."


class Iqm(_Matching):
    """IQM: image-query matching."""

    name, stem = "iqm", "short_itm"
    description = "IQM (Zero, CCMB): images with search queries that match or do not."
