"""What a corpus is read into: annotations first, then examples; and what becomes of lines that are neither."""

from dataclasses import dataclass

from r2d2_jax.data.bad_records import UnusableRecord


class MissingImage(UnusableRecord):
    """There is no image of the name that an annotation gives, or it cannot be read from the disk."""


@dataclass(frozen=True)
class Place:
    """Where something is: a file and the line in it, from 1 (in a JSON array the entry, in a folder the file)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Annotation:
    """What one line of an annotation file says of an image.

    image: the image's name, by which the corpus finds its bytes.
    captions: the texts that this line gives; () for an image of a gallery that no text asks for.
    split: "" where the file, not the line, says which split it belongs to.
    image_id: the image's identity, if it is not its name.
    label: number of the class, in corpora that have classes.
    unique: what may be annotated once only in a split, such as "1.jpg#0"; "" where there is no such thing.
    """

    image: str
    captions: tuple[str, ...]
    split: str = ""
    image_id: str = ""
    label: int | None = None
    unique: str = ""


@dataclass(frozen=True)
class Example:
    """An image with its captions before it has a place in a shard.

    image: encoded bytes, as they came (JPEG, PNG, ...).
    captions: the image's captions; none for an image of a gallery that no text asks for, or of a class.
    image_id: the image's identity; examples with the same identity show the same image.
    label: number of the class, in corpora that have classes.
    """

    image: bytes
    captions: tuple[str, ...]
    image_id: str
    label: int | None = None


@dataclass(frozen=True)
class Entry:
    """One step of reading a corpus: an example or the reason why there is none, and how far the reader has come.

    place: "FILE:LINE" or the sample's name within an archive.
    weight: the entry's share of its piece, in the piece's own unit (entries or bytes).
    """

    place: str
    outcome: Example | UnusableRecord
    weight: int = 1
