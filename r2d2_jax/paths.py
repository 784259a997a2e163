"""Paths as users give them, and as Orbax and libraries in C++ must be given them.

Where a `Path` may lie in a bucket, it is a `BucketPath`, which does the same under the same names.
"""

import glob
import os
from collections.abc import Iterator
from pathlib import Path

from etils import epath
from etils.epath.gpath import PosixGPath

from r2d2_jax.buckets.path import BucketPath, bucket_path, check_access, is_address
from r2d2_jax.errors import UserError

# How a file begins that Git LFS left in the place of one that it has not fetched.
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# What etils takes for a bucket, although it is an absolute path.
_BUCKETS = ("gs", "s3", "az", "hf")


@epath.register_path_cls
class LiteralPath(PosixGPath):
    """A local path in which brackets, stars and question marks stand for themselves.

    Orbax merges the arrays of all processes from `directory.glob("ocdbt.process_*")`, and etils reads the directory as
    a part of the pattern. Under "bs[16]" that finds nothing, or the files of another run in "bs1", and the checkpoint
    can never be read.
    """

    def glob(self, pattern: str) -> Iterator["LiteralPath"]:
        """What matches the pattern below this path."""
        return (type(self)(found) for found in glob.glob(f"{glob.escape(str(self))}/{pattern}"))


def user_path(given: str | os.PathLike[str]) -> Path:
    """A path on a disk, in which ~ is the user's home, which no shell puts into --FLAG=~/FOLDER.

    Raises:
        UserError: it is an address.
    """
    if is_address(given):
        raise UserError(f"{given} is an address; expected a local or mounted path: mount it first, or copy it")
    return Path(os.path.expanduser(given))  # unlike Path.expanduser, raises nothing: an unknown ~NAME is a folder


def path_or_bucket(given: str | os.PathLike[str]) -> Path:
    """As `user_path`, and what begins with gs:// is a path in a bucket, which has to be there.

    Raises:
        UserError: it is another address, the packages for buckets are not installed, or the bucket cannot be listed.
    """
    if not is_address(given):
        return user_path(given)
    path = bucket_path(os.fspath(given))
    check_access(path)
    return path


def refuse_pointer(path: Path) -> None:
    """Raises UserError if Git LFS left a pointer in the place of this file."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise UserError(
                f"{path} is a Git LFS pointer, not the file that it stands for; run `git lfs pull`, or download that"
            )


def literal_path(path: Path, name: str) -> epath.Path:
    """The absolute path as Orbax must be given it; one in a bucket is that already.

    Args:
        path: on a disk or in a bucket.
        name: what it is, for messages.

    Raises:
        UserError: Orbax or TensorStore would read or write another place.
    """
    if isinstance(path, BucketPath):
        return path
    absolute = path.absolute()
    check_utf8(absolute, name)
    if "\\" in str(absolute):
        raise UserError(f"{name} {absolute} has a backslash, a slash to TensorStore; choose a path without it")
    if absolute.parts[1:2] and absolute.parts[1] in _BUCKETS:
        bucket = f"{absolute.parts[1]}://"
        raise UserError(f"{name} {absolute} lies in the bucket {bucket} to Orbax; choose another folder")
    if "gs:/" in f"{absolute}/":  # which Orbax replaces by gs://
        raise UserError(f"{name} {absolute} has a folder that ends in gs:, a bucket to Orbax; choose another name")
    return LiteralPath(absolute)


def check_utf8(path: Path, name: str) -> None:
    """Checks that libraries in C++, to which a path is UTF-8, open the file that Python opens.

    Raises:
        UserError: the path is no UTF-8, or the locale has another encoding and the path is not plain ASCII.
    """
    text = str(path)
    if os.fsencode(text) != text.encode(errors="replace"):
        odd = next(character for character in text if os.fsencode(character) != character.encode(errors="replace"))
        raise UserError(
            f"{name} {text!r} has {odd!r}, which is no UTF-8 on disk, and so TensorStore and ArrayRecord cannot open "
            "it; choose a path of plain letters and digits, or a UTF-8 locale such as LC_ALL=C.UTF-8"
        )
