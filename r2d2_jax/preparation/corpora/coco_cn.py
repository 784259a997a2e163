"""COCO-CN (version 201805v1.1): photographs of COCO with captions that people wrote in Chinese.

    FOLDER/                                        --annotations: the folder coco-cn-version1805v1.1
        coco-cn_train.txt  coco-cn_val.txt  coco-cn_test.txt
        imageid.human-written-caption.txt
    COCO/                                          --images
        train2014/COCO_train2014_000000000101.jpg
        val2014/COCO_val2014_000000217153.jpg      or all of them in COCO/ itself

    COCO_train2014_000000000101                                in the lists: one image a line
    COCO_val2014_000000217153#0<tab>一个男人和一个女人穿着军装玩手机。

Names and the lines of captions are certain (the archive's own list and checks, a published file of the same form).
18,341, 1,000 and 1,000 images with 20,065, 1,100 and 1,053 captions; retrieval is evaluated on these of the test split.
The translated captions, segmented captions and tags of the archive are not read. A list's image without a caption and
a caption of an image in no list are unusable entries.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.preparation.corpora.annotation_corpus import AnnotatedCorpus, AnnotatedEntry
from r2d2_jax.preparation.corpora.formats.fields import as_text, columns
from r2d2_jax.preparation.corpora.formats.lines import lines, parsed_lines
from r2d2_jax.preparation.corpora.image_stores import ImageFolder, ImageStore
from r2d2_jax.preparation.examples import Annotation, Place

_SPLITS = {"train": "train", "val": "validation", "test": "test"}


@dataclass
class _Listed:
    """An image of a list; all 20,000 are held in memory."""

    split: str
    place: Place
    captioned: bool = False


class CocoCn(AnnotatedCorpus):
    """Lists of images and a file of captions beside COCO's images."""

    name = "coco_cn"
    description = "COCO-CN: photographs of COCO with captions written in Chinese."
    homepage = "https://github.com/li-xirong/coco-cn"

    def inputs(self) -> list[Path]:
        """The captions and the lists."""
        return [self._captions(), *(self._list(name) for name in _SPLITS)]

    def annotation_files(self) -> list[Path]:
        """The captions; images that a list lacks show as captions whose image is in no list."""
        return [self._captions()]

    def image_store(self) -> ImageStore:
        """COCO's folders, or one."""
        return ImageFolder(self.images, flat=True)

    def outcomes(self) -> Iterator[AnnotatedEntry]:
        """First the errors in the lists, then every caption, then the images without a caption."""
        listed: dict[str, _Listed] = {}
        for name, split in _SPLITS.items():
            for place, line in lines(self._list(name)):
                if isinstance(line, UnusableRecord):
                    yield place, split, line
                elif (image := line.strip()) in listed:
                    yield place, split, UnusableRecord(f"{image} has been listed before, in {listed[image].place}")
                else:
                    listed[image] = _Listed(split, place)
        for place, outcome in parsed_lines(self._captions(), _parse):
            yield _in_split(place, outcome, listed)
        for image, entry in listed.items():
            if not entry.captioned:
                yield entry.place, entry.split, UnusableRecord(f"{image} has no caption in {self._captions()}")

    def _captions(self) -> Path:
        return self.annotations / "imageid.human-written-caption.txt"

    def _list(self, name: str) -> Path:
        return self.annotations / f"coco-cn_{name}.txt"


def _parse(line: str) -> Annotation:
    key, caption = columns(line, 2, "IMAGE#N<tab>CAPTION")
    image = as_text(key.partition("#")[0], "the image's name")
    folder = image.split("_")[1] if image.startswith("COCO_") else ""
    return Annotation(
        f"{folder}/{image}.jpg".lstrip("/"),
        (as_text(caption, "the caption"),),
        image_id=image,
        unique=key if "#" in key else "",
    )


def _in_split(place: Place, outcome: Annotation | UnusableRecord, listed: dict[str, _Listed]) -> AnnotatedEntry:
    if isinstance(outcome, UnusableRecord):
        return place, "", outcome
    entry = listed.get(outcome.image_id)
    if entry is None:
        return place, "", UnusableRecord(f"{outcome.image_id} is in none of the lists {', '.join(_SPLITS)}")
    entry.captioned = True
    return place, entry.split, (outcome,)
