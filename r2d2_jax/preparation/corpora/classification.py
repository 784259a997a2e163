"""Images in a folder for each class, with a file of Chinese class names, for zero-shot classification.

    FOLDER/                          --images: as Chinese-CLIP distributes ELEVATER's sets
        label_cn.txt                 --annotations, if it lies elsewhere
        train/000/image_0003.jpg
        test/000/image_0001.jpg      000 is the first line of label_cn.txt, 001 the second, ...; or 0, 1, ...

    label_cn.txt:   飞机
                    汽车

or one's own, all of it the test split unless the folders are named train, val, validation, valid or test:

    images/daisy/1.jpg               --images=images
    classes.json                     --annotations: [{"id": 0, "name": "daisy", "name_zh": "雏菊"}, ...]

name_zh may be left out. A .tsv with one FOLDER<tab>NAME a line is read as well, and folders may have the class names
themselves. Every class has a folder in every split, and every folder a class. ELEVATER's layout is certain
(Chinese-CLIP's documentation and code); index.json, the order of its leader board, is not read.

A place is a class's folder and the number of the file in it, by name; names that begin with a dot are skipped.
"""

import functools
import os
from collections.abc import Iterator
from pathlib import Path

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.annotation_corpus import AnnotatedCorpus, AnnotatedEntry
from r2d2_jax.preparation.corpora.corpus import SPLIT_ALIASES
from r2d2_jax.preparation.corpora.formats.class_names import ClassNames, read_class_names
from r2d2_jax.preparation.corpora.formats.fields import readable
from r2d2_jax.preparation.examples import Annotation, Place

_SPLITS = ("train", "val", "valid", "validation", "test")
_NAMES_FILE = "label_cn.txt"


class Classification(AnnotatedCorpus):
    """Folders of images and their classes' names."""

    name = "classification"
    description = "Images of classes with Chinese names."
    needs = ("images",)
    takes = ("annotations",)

    @functools.cached_property
    def _classes(self) -> ClassNames:
        return read_class_names(self._names_file())

    @property
    def class_names(self) -> tuple[str, ...]:
        """The Chinese names."""
        return self._classes.names

    def check(self) -> None:
        """Checks that every class has a name, and a folder in every split."""
        super().check()
        for root in self._roots().values():
            self._classes.labels(root, _folders(root))

    def inputs(self) -> list[Path]:
        """The file of names."""
        return [self._names_file()]

    def annotation_files(self) -> list[Path]:
        """None: the folders are the annotations."""
        return []

    def identity(self) -> dict[str, object]:
        """Adds the folders, which change when images are added or removed."""
        folders = [root / name for root in self._roots().values() for name in _folders(root)]
        return super().identity() | {"folders": {readable(str(path)): path.stat().st_mtime_ns for path in folders}}

    def outcomes(self) -> Iterator[AnnotatedEntry]:
        """Every file of every class's folder."""
        for split, root in self._roots().items():
            for folder, label in self._classes.labels(root, _folders(root)).items():
                for number, name in enumerate(_visible(root / folder), start=1):
                    image = (root / folder / name).relative_to(self.images).as_posix()
                    place = Place(readable(str(root / folder)), number)
                    yield place, split, _annotation(image, label)

    def _names_file(self) -> Path:
        return self.places.get("annotations", self.images / _NAMES_FILE)

    def _roots(self) -> dict[str, Path]:
        """Split -> the folder that holds its classes' folders."""
        below = [self.images / name for name in _folders(self.images)]
        if not below:
            raise UserError(
                f"image folder {self.images} holds no folders; expected one for each class, or train/ and "
                "test/ with such folders in them"
            )
        if any(path.name not in _SPLITS for path in below):
            return {"test": self.images}
        return {SPLIT_ALIASES.get(path.name, path.name): path for path in below}


def _annotation(image: str, label: int) -> tuple[Annotation] | UnusableRecord:
    if readable(image) != image:
        return UnusableRecord(f"the name {readable(image)} is no UTF-8; rename the file")
    return (Annotation(image, (), label=label),)


def _visible(folder: Path) -> list[str]:
    """The names in a folder, sorted, without hidden ones."""
    return sorted(name for name in os.listdir(folder) if not name.startswith("."))


def _folders(folder: Path) -> list[str]:
    return [name for name in _visible(folder) if (folder / name).is_dir()]
