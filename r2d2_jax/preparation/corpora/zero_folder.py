"""Zero (CCMB) as its published list of links, with the images that somebody has downloaded to a folder.

    links.jsonl                  --annotations: this file, or a folder of such files; .json, .jsonl, also with .gz
    FOLDER/IMAGEKEY.jpg          --images: any usual extension, or none

    {"Url": "http://site/p.html", "Title": "...", "Content": "...", "Keywords": "...", "ImageKey": "abc",
     "ImageUrl": "http://img/x.jpg", "ImageQuery": "..."}

The fields are certain (the page of the corpus). It is not known whether the published files are JSON lines or a JSON
array; both are read. Texts are chosen as for `zero`: by default Title, ImageQuery and Content; equal ones count once,
empty ones not at all. An image that is not in the folder, perhaps because its link was dead, is an unusable entry: set
--max_broken_share to the share of links that may be missing. ImageKey occurs once in all files.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.annotation_corpus import AnnotatedCorpus, AnnotatedEntry, one_annotation
from r2d2_jax.preparation.corpora.formats.fields import chosen_texts, json_object, text_of, with_keys
from r2d2_jax.preparation.corpora.formats.lines import begins_with, parsed_array, parsed_lines
from r2d2_jax.preparation.corpora.formats.samples import IMAGE_EXTENSIONS
from r2d2_jax.preparation.corpora.image_stores import ImageFolder, ImageStore
from r2d2_jax.preparation.corpora.zero import HOMEPAGE, TEXT_FIELDS
from r2d2_jax.preparation.examples import Annotation

_SUFFIXES = (".json", ".jsonl", ".json.gz", ".jsonl.gz")


class ZeroFolder(AnnotatedCorpus):
    """Zero's list of links with a folder of images."""

    name = "zero_folder"
    description = "Zero (CCMB): images from the web with title, search query and surrounding text."
    homepage = HOMEPAGE
    default_text_fields = TEXT_FIELDS

    def check(self) -> None:
        """Checks that there is a list."""
        super().check()
        if not self.inputs():
            raise UserError(
                f"folder {self.annotations} holds no list of links; expected files named *.jsonl or "
                "*.json, or the same with .gz"
            )

    def inputs(self) -> list[Path]:
        """The file, or those in the folder."""
        if not self.annotations.is_dir():
            return [self.annotations]
        return sorted(path for path in self.annotations.glob("[!.]*") if path.name.endswith(_SUFFIXES))

    def image_store(self) -> ImageStore:
        """Images by their key."""
        return ImageFolder(self.images, extensions=[f".{extension}" for extension in IMAGE_EXTENSIONS])

    def outcomes(self) -> Iterator[AnnotatedEntry]:
        """Every link, for training."""
        for path in self.inputs():
            array = begins_with(path, b"[")
            parsed = parsed_array(path, self._parse) if array else parsed_lines(path, self._parse_line)
            for place, outcome in parsed:
                yield one_annotation(place, "train", outcome)

    def _parse_line(self, line: str) -> Annotation:
        return self._parse(json_object(line))

    def _parse(self, entry: Any) -> Annotation:
        key = text_of(with_keys(entry, "ImageKey"), "ImageKey")
        return Annotation(key, chosen_texts(entry, self.text_fields), unique=key)
