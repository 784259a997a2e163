"""What every corpus has in common: which entries there are, in which order, and how a run of them is read.

A corpus is read in two strokes. First its annotation files are walked once, into a catalog; that fixes the order and
the number of entries. Then the entries are read piece by piece, each piece by any process at any time: what a shard
holds depends on the corpus and the number of shards alone. Corpora that keep images and captions together in archives
have nothing to catalog; their pieces are the archives.
"""

import abc
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from r2d2_jax.errors import UserError
from r2d2_jax.preparation.corpora.catalog import Catalog
from r2d2_jax.preparation.examples import Entry

_SPLIT_NAME = r"[A-Za-z]\w*"  # what TFDS allows
SPLIT_ALIASES = {"val": "validation", "valid": "validation"}
MIN_SHARDS, MAX_SHARDS = 8, 4096  # our decision, where nobody says how many


@dataclass(frozen=True)
class Piece:
    """What is read in one go: entries number `start` to `stop` of the split, or one archive from beginning to end.

    archive: the archive's file; "" for entries of the catalog.
    weight: its size, in entries or in the archive's bytes.
    """

    split: str
    weight: int
    archive: str = ""
    start: int = 0
    stop: int = 0


class Corpus(abc.ABC):
    """A corpus in the files that people have. Instances hold paths only and can be pickled.

    Attributes:
        name: what the dataset is called, also its folder; TFDS's rule: lower-case letters, digits, underscores.
        description: one sentence on what it is.
        homepage: where it comes from, or "".
        unit: what a piece's weight counts, for the progress bar.
        needs: the flags that it cannot do without, of "images" and "annotations".
        takes: those of them that may be given.
        default_text_fields: the fields that hold an image's texts, where there are several to choose from.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    homepage: ClassVar[str] = ""
    unit: ClassVar[str] = " entries"
    needs: ClassVar[tuple[str, ...]] = ("images", "annotations")
    takes: ClassVar[tuple[str, ...]] = ()
    default_text_fields: ClassVar[tuple[str, ...]] = ()

    def __init__(self, images: str = "", annotations: str = "", text_fields: Sequence[str] = ()) -> None:
        """Takes the places of the corpus.

        Args:
            images: folder of the images, or of the archives.
            annotations: file or folder of the annotations, where they are not in the archives.
            text_fields: which fields hold an image's texts, in corpora that name several; () for the usual ones.

        Raises:
            UserError: what the corpus needs is not given or not there, or it has no use for what is given.
        """
        self.images = _place(images)
        self.annotations = _place(annotations)
        if text_fields and not self.default_text_fields:
            raise UserError(f"corpus {self.name} has no text fields to choose from; leave --text_fields out")
        self.text_fields = tuple(text_fields) or self.default_text_fields
        self.check()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the labels, by number; () for a corpus without labels."""
        return ()

    def check(self) -> None:
        """Raises UserError unless all that the corpus needs is given and there."""
        if any(getattr(self, flag) is None for flag in self.needs):
            raise UserError(
                f"corpus {self.name} needs {' and '.join(f'--{flag}' for flag in self.needs)}; set "
                f"{'both' if len(self.needs) > 1 else 'it'}"
            )
        for flag in ("images", "annotations"):
            if flag not in (*self.needs, *self.takes) and getattr(self, flag) is not None:
                raise UserError(f"corpus {self.name} has no use for --{flag}; leave it out")

    @abc.abstractmethod
    def inputs(self) -> list[Path]:
        """Annotation files and archives, images in folders excepted: what must not change within a preparation."""

    @abc.abstractmethod
    def index(self, catalog: Catalog) -> None:
        """Walks the annotations once and adds them to the catalog.

        Raises:
            UserError: an annotation file is missing.
        """

    @abc.abstractmethod
    def shards(self, catalog: Catalog, count: int) -> dict[str, list[tuple[Piece, ...]]]:
        """Which pieces make which shard of which split.

        Args:
            catalog: as `index` left it.
            count: number of shards a split, as far as there is something for each; 0 leaves it to the corpus.
        """

    @abc.abstractmethod
    def read(self, piece: Piece, catalog: Catalog) -> Iterator[Entry]:
        """Reads a piece in order; images are not looked into."""

    def identity(self) -> dict[str, Any]:
        """What a preparation depends on, as plain JSON values: the files with their sizes and times, and the fields."""
        files = {str(path): [(state := path.stat()).st_size, state.st_mtime_ns] for path in self.inputs()}
        return {
            "corpus": self.name,
            "images": str(self.images or ""),
            "files": files,
            "text_fields": list(self.text_fields),
        }


def _place(path: str) -> Path | None:
    return Path(path).expanduser().absolute() if path else None


def split_problem(split: str) -> str:
    """Why this cannot be the name of a split, or ""."""
    if re.fullmatch(_SPLIT_NAME, split):
        return ""
    return f"{split!r} cannot name a split; use letters, digits and underscores, a letter first"


def fitting_shards(size: int, wanted: int) -> int:
    """How many shards of about the `wanted` size something makes, within the limits."""
    return min(MAX_SHARDS, max(MIN_SHARDS, -(-size // wanted)))


def equal_runs(size: int, count: int) -> list[tuple[int, int]]:
    """Start and end of runs that share `size` things out; none is empty."""
    count = min(size, count)
    return [(index * size // count, (index + 1) * size // count) for index in range(count)]
