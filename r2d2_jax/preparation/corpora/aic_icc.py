"""AIC-ICC (AI Challenger, image captioning): 240,000 photographs with five Chinese captions each.

    FOLDER/                                                        --annotations
        ai_challenger_caption_train_20170902/
            caption_train_annotations_20170902.json
            caption_train_images_20170902/8f00f3d0....jpg
        ai_challenger_caption_validation_20170910/ ...             the same with validation_..._20170910
        ai_challenger_caption_test_a_20180103/ ...                 if it is there; likewise test_b
    --images may be left out; images are looked for in the same tree, or all of them in the folder --images

    [{"url": "http://...", "image_id": "8f00f3d0f1008e085ab660e70dffced16a8259f6.jpg", "caption": ["...", x5]}, ...]

Names and the arrays of training and validation are certain (the baseline's documentation and many readers). The test
files are known from one reader only: an object with "images" [{"id", "file_name" without .jpg}] and "annotations"
[{"image_id": id, "caption"}]; both this form and that of the others are read. No file is in memory as a whole. Where a
file stops being JSON, the rest is lost and counts as one unusable entry.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.corpora.annotation_corpus import AnnotatedCorpus, AnnotatedEntry
from r2d2_jax.preparation.corpora.formats.fields import as_text, text_of, texts_of, with_keys
from r2d2_jax.preparation.corpora.formats.lines import begins_with, parsed_array
from r2d2_jax.preparation.corpora.image_stores import ImageFolder, ImageStore
from r2d2_jax.preparation.examples import Annotation

_DATES = {"train": "20170902", "validation": "20170910", "test_a": "20180103", "test_b": "20180103"}
_REQUIRED = ("train", "validation")


@dataclass(frozen=True)
class _Split:
    """A split's file, and its folder of images within that of the corpus."""

    name: str
    annotations: Path
    images: str


class AicIcc(AnnotatedCorpus):
    """JSON arrays beside folders of images."""

    name = "aic_icc"
    description = "AIC-ICC (AI Challenger): photographs with five Chinese captions each."
    homepage = "https://github.com/AIChallenger/AI_Challenger_2017"
    needs = ("annotations",)
    takes = ("images",)

    def inputs(self) -> list[Path]:
        """One file a split."""
        return [split.annotations for split in self._splits()]

    def image_store(self) -> ImageStore:
        """The published tree, or one folder."""
        return ImageFolder(self.places.get("images", self.annotations), flat=True)

    def outcomes(self) -> Iterator[AnnotatedEntry]:
        """Split by split."""
        for split in self._splits():
            one_object = begins_with(split.annotations, b"{")
            yield from _with_images(split) if one_object else _array(split)

    def _splits(self) -> list[_Split]:
        splits = []
        for name, date in _DATES.items():
            folder = f"ai_challenger_caption_{name}_{date}"
            path = self.annotations / folder / f"caption_{name}_annotations_{date}.json"
            if name in _REQUIRED or path.is_file():
                splits.append(_Split(name, path, f"{folder}/caption_{name}_images_{date}"))
        return splits


def _array(split: _Split) -> Iterator[AnnotatedEntry]:
    def parse(entry: Any) -> tuple[Annotation]:
        image = text_of(with_keys(entry, "image_id", "caption"), "image_id")
        return (Annotation(f"{split.images}/{image}", texts_of(entry, "caption"), image_id=image, unique=image),)

    for place, outcome in parsed_array(split.annotations, parse):
        yield place, split.name, outcome


def _with_images(split: _Split) -> Iterator[AnnotatedEntry]:
    """Reads the other form; it holds the names of the 30,000 images in memory."""
    names: dict[str, str] = {}

    def parse_image(entry: Any) -> tuple[str, str]:
        with_keys(entry, "id", "file_name")
        return text_of(entry, "id"), f"{text_of(entry, 'file_name').removesuffix('.jpg')}.jpg"

    def parse(entry: Any) -> tuple[Annotation]:
        number = as_text(with_keys(entry, "image_id", "caption")["image_id"], '"image_id"')
        if number not in names:
            raise UnusableRecord(f'no image {number} under "images"')
        return (Annotation(f"{split.images}/{names[number]}", (text_of(entry, "caption"),), image_id=names[number]),)

    for place, image in parsed_array(split.annotations, parse_image, "images.item"):
        if isinstance(image, UnusableRecord):
            yield place, split.name, image
        else:
            names.update([image])
    for place, outcome in parsed_array(split.annotations, parse, "annotations.item"):
        yield place, split.name, outcome
