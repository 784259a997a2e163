"""The types that a corpus is read into: annotations, examples, entries, and where each of them was found."""

from dataclasses import dataclass

from r2d2_jax.data.bad_records import UnusableRecord


class MissingImage(UnusableRecord):
    """The image that an annotation names does not exist or cannot be read from the disk."""


@dataclass(frozen=True)
class Place:
    """A place in a corpus: a file and the line in it, from 1 (the entry of a JSON array, the file of a folder)."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class Annotation:
    """One line of an annotation file.

    image: the image's name, by which the corpus finds its bytes.
    captions: the texts of this line; () for an image of a retrieval gallery that is no text's match.
    split: the split's name; "" if the file as a whole belongs to one.
    image_id: the image's identity, if it is not its name.
    label: number of the class, in corpora that have classes.
    unique: a key that may occur only once in a split, such as "1.jpg#0"; "" if any line may be repeated.
    text_ids: the identity of each text, "" for one without; () if none has one. A number that only counts the texts of
        an image is none: an identity says that the same text belongs to several images.
    """

    image: str
    captions: tuple[str, ...]
    split: str = ""
    image_id: str = ""
    label: int | None = None
    unique: str = ""
    text_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Example:
    """An image with its captions, ready to be written to a shard.

    image: encoded bytes, unchanged (JPEG, PNG, ...).
    captions: the image's captions; () for an image of a class, or of a retrieval gallery that is no text's match.
    image_id: the image's identity; examples with the same identity show the same image.
    label: number of the class, in corpora that have classes.
    text_ids: the identity of each caption, "" for one without; () if none has one.
    """

    image: bytes
    captions: tuple[str, ...]
    image_id: str
    label: int | None = None
    text_ids: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One step of reading a corpus: an example, or the reason why it is unusable.

    place: "FILE:LINE" or the sample's name within an archive.
    weight: the entry's share of its piece, in the piece's own unit (entries or bytes).
    """

    place: str
    outcome: Example | UnusableRecord
    weight: int = 1
