"""WordPiece vocabularies on disk: the one way in which every program finds, reads, compares and copies them."""

import itertools
import os
import re
from collections.abc import Iterable
from pathlib import Path

import huggingface_hub

from r2d2_jax.buckets.path import BucketPath
from r2d2_jax.errors import FIRST_NAMES, UserError, bulleted
from r2d2_jax.paths import path_or_bucket, refuse_pointer

VOCABULARY = "vocab.txt"
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LARGEST = 2**26  # bytes, a hundred times BERT's largest; whoever names a file of weights should not wait for it

_HUB_NAME = r"[\w-][\w.-]*(/[\w.-]+)?"
# What `tokenizers` cuts from the end of a line, Unicode's White_Space. Python's strip() also takes U+001C to U+001F.
_SPACE = "\t\n\x0b\x0c\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
_SPACE += "\u2028\u2029\u202f\u205f\u3000"


class Vocabulary(tuple[str, ...]):
    """The tokens of a vocabulary, one for each line of its file, and the file's bytes.

    A token on two lines has the number of the last one, and each line has a row in the table of word embeddings, as in
    transformers. Vocabularies with the same tokens are equal, whatever their line ends.

    Attributes:
        name: the file, for messages.
        content: its bytes, so that a copy is the same file.
    """

    name: str
    content: bytes

    def __new__(cls, tokens: Iterable[str], name: str = "in memory", content: bytes | None = None) -> "Vocabulary":
        """Takes tokens in the order of their numbers; `content` None means one a line.

        Raises:
            UserError: a special token is missing.
        """
        lines = tuple(tokens)
        vocabulary = super().__new__(cls, (line.rstrip(_SPACE) for line in lines))
        if absent := [token for token in SPECIAL_TOKENS if token not in vocabulary]:
            raise UserError(
                f"vocabulary {name} has no {', '.join(absent)}; expected a WordPiece vocabulary with "
                f"{', '.join(SPECIAL_TOKENS)}. Use the vocab.txt that belongs to the text tower"
            )
        vocabulary.name = name
        vocabulary.content = _joined(lines) if content is None else content
        return vocabulary

    @property
    def ids(self) -> dict[str, int]:
        """The number of each token."""
        return {token: number for number, token in enumerate(self)}


def find_vocabulary(name: str) -> Path:
    """The file behind a path, a folder that holds a vocab.txt, or a name on the Hugging Face hub.

    Raises:
        UserError: there is none.
    """
    path = path_or_bucket(name)
    # On a disk pathlib's raise where a name is too long.
    in_bucket = isinstance(path, BucketPath)
    is_dir, is_file = (BucketPath.is_dir, BucketPath.is_file) if in_bucket else (os.path.isdir, os.path.isfile)
    if is_dir(path):
        path = path / VOCABULARY
    if is_file(path):
        return path
    if path.suffix == ".txt" or not re.fullmatch(_HUB_NAME, name):
        raise UserError(
            f"vocabulary {path} does not exist; expected a WordPiece vocab.txt with one token a line; name "
            "such a file, a folder that holds one, or a model on the Hugging Face hub"
        )
    return _from_hub(name)


def read_vocabulary(path: Path) -> Vocabulary:
    """Reads a vocabulary file as it is meant.

    A byte-order mark and blank lines at the end are no tokens (our decision; transformers takes them for some). Lines
    end with \\n or \\r\\n, in a file without \\n with \\r; every other separator of lines is a token or part of one.

    Raises:
        UserError: it cannot be read, is no UTF-8 or a Git LFS pointer, is larger than any vocabulary, or lacks a
            special token.
    """
    try:
        refuse_pointer(path)
        with path.open("rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise ValueError(f"larger than {LARGEST >> 20} MiB")
        lines = _lines(content)
    except (OSError, ValueError) as error:
        raise UserError(
            f"vocabulary {path} cannot be read ({error}); expected a WordPiece vocab.txt in UTF-8 with one token a line"
        ) from error
    return Vocabulary(lines, str(path), content)


def vocabulary_in(folder: Path) -> Vocabulary | None:
    """The vocabulary that a folder of a model, a run or a dataset keeps; None if there is none."""
    path = folder / VOCABULARY
    return read_vocabulary(path) if path.exists() else None


def write_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Copies the file that was read, byte by byte."""
    path.write_bytes(vocabulary.content)


def write_plain_vocabulary(vocabulary: Vocabulary, path: Path) -> None:
    """Writes a file that every other reader understands: without byte-order mark and blank lines at the end."""
    path.write_bytes(_joined(_lines(vocabulary.content)))


def differences(there: Vocabulary, here: Vocabulary) -> str:
    """The first lines in which two vocabularies differ, one for each line of a message."""
    pairs = enumerate(itertools.zip_longest(there, here), start=1)
    lines = (f"line {n}: {_shown(one)} there, {_shown(other)} here" for n, (one, other) in pairs if one != other)
    return bulleted(itertools.islice(lines, FIRST_NAMES))


def _lines(content: bytes) -> list[str]:
    text = content.decode("utf-8-sig")
    lines = text.split("\n" if "\n" in text else "\r")
    while lines and not lines[-1].strip(" \t\r"):
        lines.pop()
    return lines


def _joined(lines: Iterable[str]) -> bytes:
    return "".join(line.removesuffix("\r") + "\n" for line in lines).encode()


def _shown(token: str | None) -> str:
    return "nothing" if token is None else repr(token)


def _from_hub(name: str) -> Path:
    try:
        return Path(huggingface_hub.hf_hub_download(name, VOCABULARY))
    except Exception as error:
        raise UserError(
            f"vocabulary {name!r} is neither a file or folder here nor a model whose vocab.txt the Hugging "
            f"Face hub gave ({error}). Correct the name, or download vocab.txt and name its path"
        ) from error
