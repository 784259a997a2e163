"""What all corpora have in common: which entries there are, in which order, and how they are read.

A corpus is read in two steps. The first walks its annotation files once and writes them into a catalog, which fixes the
number and the order of the entries. The second reads the entries piece by piece; any process may read any piece at any
time, because the content of a shard depends on the corpus and the number of shards alone. Corpora whose archives hold
images and captions together need no catalog: their pieces are the archives.
"""

import abc
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from r2d2_jax.errors import UserError
from r2d2_jax.paths import user_path
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.examples import Entry

_SPLIT_NAME = r"[A-Za-z]\w*"  # what TFDS allows
SPLIT_ALIASES = {"val": "validation", "valid": "validation"}
MIN_SHARDS, MAX_SHARDS = 8, 4096  # our decision, where the user gives no number


@dataclass(frozen=True)
class Piece:
    """A part that is read at once: entries number `start` to `stop` of the split, or one whole archive.

    archive: the archive's file; "" for entries of the catalog.
    weight: its size, in entries or in the archive's bytes.
    """

    split: str
    weight: int
    archive: str = ""
    start: int = 0
    stop: int = 0


class Corpus(abc.ABC):
    """A corpus in the files in which it is published. Instances hold paths only and can be pickled.

    Attributes:
        name: the name of the dataset and of its folder; TFDS allows lower-case letters, digits, underscores.
        description: one sentence on what it is.
        homepage: where it comes from, or "".
        unit: the unit of a piece's weight, for the progress bar.
        needs: the flags, of "images" and "annotations", that must be given.
        takes: those that may be given.
        default_text_fields: the fields that hold an image's texts, where there are several to choose from.
        places: flag -> its absolute path, for those of "images" and "annotations" that are given.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    homepage: ClassVar[str] = ""
    unit: ClassVar[str] = " entries"
    needs: ClassVar[tuple[str, ...]] = ("images", "annotations")
    takes: ClassVar[tuple[str, ...]] = ()
    default_text_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, images: str = "", annotations: str = "", text_fields: Sequence[str] = ()) -> None:
        """Takes the places of the files.

        Args:
            images: folder of the images, or of the archives.
            annotations: file or folder of the annotations, where they are not in the archives.
            text_fields: which fields hold an image's texts, in corpora that name several; () for the usual ones.

        Raises:
            UserError: a path that the corpus needs is not given or does not exist, or it has no use for a given one.
        """
        given = {"images": images, "annotations": annotations}
        self.places = {flag: user_path(path).absolute() for flag, path in given.items() if path}
        if text_fields and not self.default_text_fields:
            raise UserError(f"corpus {self.name} has no text fields to choose from; leave --text_fields out")
        self.text_fields = tuple(text_fields) or self.default_text_fields
        self.check()

    @property
    def images(self) -> Path:
        """Folder of the images, or of the archives; for corpora that need it."""
        return self.places["images"]

    @property
    def annotations(self) -> Path:
        """File or folder of the annotations; for corpora that need it."""
        return self.places["annotations"]

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels, by number; () for a corpus without labels."""
        return ()

    def check(self) -> None:
        """Raises UserError unless all that the corpus needs is given and exists."""
        if not self.places.keys() >= set(self.needs):
            raise UserError(
                f"corpus {self.name} needs {' and '.join(f'--{flag}' for flag in self.needs)}; set "
                f"{'both' if len(self.needs) > 1 else 'it'}"
            )
        for flag in ("images", "annotations"):
            if flag not in (*self.needs, *self.takes) and flag in self.places:
                raise UserError(f"corpus {self.name} has no use for --{flag}; leave it out")

    @abc.abstractmethod
    def inputs(self) -> list[Path]:
        """Annotation files and archives, which must not change during a preparation; images in folders may."""

    @abc.abstractmethod
    def index(self, catalog: Catalog) -> None:
        """Walks the annotations once and adds them to the catalog.

        Raises:
            UserError: an annotation file is missing.
        """

    @abc.abstractmethod
    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        """Plans the shards: split name -> the pieces of each of its shards.

        Args:
            catalog: as `index` left it.
            count: number of shards of a split, or fewer if there is not enough for each; 0 lets the corpus choose.
        """

    @abc.abstractmethod
    def read(self, piece: Piece, catalog: Catalog) -> Iterator[Entry]:
        """Reads a piece in order; it does not decode the images."""

    def identity(self) -> dict[str, Any]:
        """What a preparation depends on, as JSON values: the files with their sizes and times, and the text fields."""
        files = {str(path): [(state := path.stat()).st_size, state.st_mtime_ns] for path in self.inputs()}
        return {
            "corpus": self.name,
            "images": str(self.places.get("images", "")),
            "files": files,
            "text_fields": list(self.text_fields),
        }


def split_problem(split: str) -> str:
    """Why this cannot be the name of a split, or ""."""
    if re.fullmatch(_SPLIT_NAME, split):
        return ""
    return f"{split!r} cannot name a split; use letters, digits and underscores, a letter first"


def fitting_shards(size: int, wanted: int) -> int:
    """The number of shards of about `wanted` size for a whole of `size`, within the limits."""
    return min(MAX_SHARDS, max(MIN_SHARDS, -(-size // wanted)))


def equal_runs(size: int, count: int) -> list[tuple[int, int]]:
    """Start and end of `count` nearly equal runs of `size` things; fewer if some would be empty."""
    count = min(size, count)
    return [(index * size // count, (index + 1) * size // count) for index in range(count)]
