"""Says what a file is that is no checkpoint: a web page, a Git LFS pointer, a model of another framework."""

import os
import zipfile
from pathlib import Path

from r2d2_jax.errors import UserError
from r2d2_jax.paths import LFS_POINTER

_HEAD = 512  # bytes that are looked at; the longest sign, a tar's, ends at 262
_TABLE_FOOTER = (0xDB4775248B80FB57).to_bytes(8, "little")  # ends the `.index` file of a TensorFlow checkpoint
_FETCH = "fetch the file itself again"
_UNPACK = "unpack it and name the checkpoint in it"
_OTHER_FRAMEWORK = "convert it to PyTorch or safetensors first, with transformers for example"

# The first bytes of a file -> what it is, and what to do.
_SIGNS = {
    LFS_POINTER: ("a Git LFS pointer, not the file that it stands for", "run `git lfs pull`, or download the file"),
    b"GGUF": ("a GGUF file of llama.cpp", _OTHER_FRAMEWORK),
    b"\x89HDF\r\n\x1a\n": ("an HDF5 file, as Keras and TensorFlow write", _OTHER_FRAMEWORK),
    b"\x93NUMPY": ("a NumPy array", "name a checkpoint"),
    b"\x1f\x8b": ("compressed with gzip", _UNPACK),
    b"BZh": ("compressed with bzip2", _UNPACK),
    b"\xfd7zXZ": ("compressed with xz", _UNPACK),
    b"\x28\xb5\x2f\xfd": ("compressed with zstd", _UNPACK),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!": ("a RAR archive", _UNPACK),
    b"PAR1": ("a Parquet file", "name a checkpoint"),
    b"%PDF": ("a PDF", "name a checkpoint"),
    b"\x89PNG": ("an image", "name a checkpoint"),
    b"\xff\xd8\xff": ("an image", "name a checkpoint"),
}
_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<error", b"<!--")


def refuse_other_kinds(path: Path) -> None:
    """Names what a file is, if its first bytes show that it is neither safetensors nor PyTorch's.

    Raises:
        UserError: it is of another kind.
    """
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
            file.seek(-min(len(_TABLE_FOOTER), len(head)), os.SEEK_END)
            tail = file.read()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from error
    if found := _other_kind(path, head, tail):
        kind, remedy = found
        raise UserError(f"{path} is {kind}; expected a PyTorch or safetensors checkpoint: {remedy}")


def is_safetensors(path: Path) -> bool:
    """Whether a file begins like safetensors: the length of a JSON header, then the header."""
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and int.from_bytes(head[:8], "little") < path.stat().st_size


def _other_kind(path: Path, head: bytes, tail: bytes) -> tuple[str, str] | None:
    for sign, found in _SIGNS.items():
        if head.startswith(sign):
            return found
    if tail == _TABLE_FOOTER:
        return "the index of a TensorFlow checkpoint", _OTHER_FRAMEWORK
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").lower().startswith(_WEB_PAGE):
        return "a web page (HTML or XML)", f"{_FETCH}: the address gave a page, to log in perhaps"
    if head[257:262] == b"ustar":
        return "a tar archive", _UNPACK
    if head.startswith(b"PK\x03\x04"):
        return _other_zip(path)
    if _is_text(head):
        first = head.decode("utf-8", "replace").strip().splitlines()[0][:60]
        return f"a text, which begins with {first!r}", _FETCH
    return None


def _other_zip(path: Path) -> tuple[str, str] | None:
    """A zip archive that PyTorch did not write; a damaged one is left to PyTorch's reader."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, UnicodeDecodeError, NotImplementedError):
        return None
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return None
    return f"a zip archive that PyTorch did not write, with {', '.join(names[:3]) or 'nothing'} in it", _UNPACK


def _is_text(head: bytes) -> bool:
    """Whether these are printable characters: pickles begin with a control character or hold some."""
    return head.isascii() and head.strip() != b"" and all(byte >= 32 or byte in b"\t\r\n" for byte in head)
