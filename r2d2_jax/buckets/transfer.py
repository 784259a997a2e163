"""Files between a disk and a bucket."""

import base64
import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec

from r2d2_jax.buckets.path import COMMITTED, SCHEME, BucketPath, bucket_path, bucket_refused, is_address
from r2d2_jax.errors import naming
from r2d2_jax.extras import CRC32C, require


def upload(source: Path, target: BucketPath) -> None:
    """Writes a file, or every file of a folder, to a bucket.

    Each object appears whole; of a folder the largest come first, so that one whose short files are there is whole.

    Raises:
        OSError: the bucket refuses it.
    """
    filesystem = fsspec.filesystem("gcs")
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    for file in sorted(files, key=lambda path: (-path.stat().st_size, path)):
        name = target / file.relative_to(source).as_posix() if file != source else target
        filesystem.put_file(str(file), str(name))


def move(source: BucketPath, target: BucketPath) -> None:
    """Gives all objects below a path other names, after which nothing is left there.

    There are two copies until the whole of `target` is there: a move that is interrupted has lost nothing.

    Raises:
        OSError: the bucket refuses it.
    """
    filesystem = fsspec.filesystem("gcs")
    objects = sorted(source.rglob("*"), key=lambda path: path != source / COMMITTED)
    for path in objects:
        filesystem.cp_file(str(path), str(target / str(path.relative_to(source))))
    for path in objects:
        path.unlink()


@contextlib.contextmanager
def on_disk(name: str) -> Iterator[str]:
    """A name for libraries that read from disks alone; messages that are raised inside have the name that was given.

    Args:
        name: of a file or folder in a bucket, which is copied to the disk for temporary files as long as the context
            lasts; or any other name, such as one on the Hugging Face hub, which is given back as it is.

    Raises:
        UserError: the bucket cannot be read.
    """
    if not is_address(name):
        yield name
        return
    path = bucket_path(name)
    with tempfile.TemporaryDirectory(prefix="r2d2_jax-") as folder:
        copy = Path(folder) / path.name
        with bucket_refused(path):
            download(path, copy)
        with naming(str(copy), name):
            yield str(copy)


def download(path: BucketPath, copy: Path) -> None:
    """Copies a file, or all files of a folder, to the disk.

    Raises:
        OSError: the bucket refuses it.
    """
    filesystem = fsspec.filesystem("gcs")
    if path.is_file():
        filesystem.get_file(str(path), str(copy))
        return
    for object_path in path.rglob("*"):
        file = copy / str(object_path.relative_to(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        filesystem.get_file(str(object_path), str(file))


def measured_there(folder: BucketPath) -> dict[str, tuple[int, str]]:
    """Size and CRC-32C, in Base64, of every object below a folder, as its bucket has them; names are relative to it.

    Raises:
        OSError: the bucket refuses it.
    """
    found = fsspec.filesystem("gcs").find(str(folder), detail=True)
    above = len(str(folder)) - len(SCHEME) + 1
    return {name[above:]: (entry["size"], entry["crc32c"]) for name, entry in found.items()}


def crc32c(path: Path) -> str:
    """The CRC-32C of a file on disk, in the form of `measured_there`.

    Raises:
        UserError: the package that computes it is not installed.
        OSError: the file cannot be read.
    """
    require(CRC32C, f"a checkpoint that was copied from a bucket, {path},", "gcs")
    import google_crc32c

    checksum = google_crc32c.Checksum()
    with path.open("rb") as file:
        for _ in checksum.consume(file, 1 << 24):
            pass
    return base64.b64encode(checksum.digest()).decode()
