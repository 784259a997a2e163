"""A path in a bucket, which the rest of the package uses as it uses those on a disk."""

import contextlib
import functools
import os
import re
from collections.abc import Iterator
from typing import Any

import fsspec
from etils import epath
from etils.epath.gpath import PosixGPath

from r2d2_jax.errors import UserError, first_line
from r2d2_jax.extras import GCS, require

SCHEME = "gs://"
# Orbax writes a checkpoint in a bucket under its final name, and this file into it last: nothing there can be renamed
# in one go.
COMMITTED = "commit_success.txt"


class BucketError(OSError):
    """A bucket refuses a request for good, or for longer than anybody waits. The message says what to do."""


# How gcsfs begins and TensorStore ends a message of what was refused; others have a code.
_STATUS = re.compile(r"^(Forbidden): |http_response_code='(\d+)'")
# What an account needs: to read and write, and to be told the kind of the bucket.
ROLES = ("roles/storage.objectUser", "roles/storage.legacyBucketReader")


@epath.register_path_cls
class BucketPath(PosixGPath):
    """A path such as gs://BUCKET/FOLDER, whose methods do what those of the same name of `pathlib.Path` do.

    There are no folders in a bucket, only objects with slashes in their names: a folder is there as long as an object
    is below it. Every object appears whole, when it has been written to its end.
    """

    def absolute(self) -> "BucketPath":
        """Itself."""
        return self

    def bucket_and_name(self) -> tuple[str, str]:
        """The bucket, and the name of the object in it."""
        bucket, _, name = str(self).removeprefix(SCHEME).partition("/")
        return bucket, name

    def rglob(self, pattern: str) -> Iterator["BucketPath"]:
        """All objects below this one; `pattern` is "*"."""
        assert pattern == "*", pattern
        filesystem = fsspec.filesystem("gcs")
        return (type(self)(f"{SCHEME}{name}") for name in filesystem.find(str(self)))


def is_address(given: str | os.PathLike[str]) -> bool:
    """Whether what a user gave is an address such as gs://BUCKET rather than a path on a disk."""
    return "://" in os.fspath(given)


def bucket_path(address: str) -> BucketPath:
    """The path behind an address.

    Raises:
        UserError: it is no gs:// address, names no bucket, or the packages for buckets are not installed.
    """
    if not address.startswith(SCHEME):
        scheme = address.partition("://")[0]
        raise UserError(
            f"{address} is an address of {scheme}://, which cannot be opened; expected a local or mounted folder, or "
            f"{SCHEME}BUCKET/FOLDER. Orbax writes checkpoints to Google Cloud Storage alone: mount other buckets"
        )
    if not address.removeprefix(SCHEME).strip("/"):
        raise UserError(f"{address} names no bucket; expected {SCHEME}BUCKET/FOLDER")
    _prepare()  # before gcsfs is imported
    require(GCS, address, "gcs")
    return BucketPath(address)


def check_access(path: BucketPath) -> None:
    """Checks that the bucket of a path is there and can be listed.

    Raises:
        UserError: it is not.
    """
    with bucket_refused(path):
        next(iter(client().list_blobs(path.bucket_and_name()[0], max_results=1)), None)


def check_access_of_runs(path: BucketPath) -> Any:
    """Checks that the kind of the bucket is told, for which Orbax asks before it removes a checkpoint.

    Returns:
        The bucket, a `google.cloud.storage.Bucket` that knows where it lies.

    Raises:
        UserError: it is not.
    """
    with bucket_refused(path):
        return client().get_bucket(path.bucket_and_name()[0])


@functools.cache
def client() -> Any:
    """Google's own client, for what gcsfs cannot do: writing on the condition that nobody else has written."""
    from google.cloud import storage

    return storage.Client(project=None)  # no request of ours needs one


@contextlib.contextmanager
def bucket_refused(path: BucketPath, verb: str = "use") -> Iterator[None]:
    """Turns what a bucket refuses inside into one message; all else goes through.

    Args:
        path: what is used or, as `verb` says, written.

    Raises:
        UserError: it cannot be reached, or the credentials are absent or do not permit this.
    """
    try:
        yield
    except Exception as error:
        if not is_bucket_error(error):
            raise
        todo = "" if isinstance(error, BucketError) else f"; {advice(error)}"  # which says it itself
        raise UserError(f"cannot {verb} {path}: {first_line(error)}{todo}") from error


def is_bucket_error(error: BaseException) -> bool:
    """Whether an error is a bucket's or its network's, and no bug of ours."""
    import google.api_core.exceptions
    import google.auth.exceptions

    # Of gcsfs come OSErrors alone (see `patience`), of Google's own client the next two, of TensorStore ValueErrors.
    raised = (OSError, google.api_core.exceptions.GoogleAPIError, google.auth.exceptions.GoogleAuthError)
    return isinstance(error, raised) or "[http_response_code=" in str(error)


def advice(error: BaseException) -> str:
    """What to do about an error of a bucket, whether gcsfs, Google's client or TensorStore raised it."""
    from google.auth.exceptions import GoogleAuthError

    told = _STATUS.search(str(error))
    status = next(filter(None, told.groups())) if told else str(getattr(error, "code", ""))
    if status == "401" or isinstance(error, GoogleAuthError):
        return (
            "the credentials are absent or have expired: run `gcloud auth application-default login`, or give the "
            "machine a service account"
        )
    if status in ("403", "Forbidden"):
        return f"give its account {' and '.join(ROLES)} of the bucket"
    return "check the name of the bucket and the network"


def _prepare() -> None:
    """Chooses how gs:// is read and written, whatever else is installed."""
    os.environ.setdefault("EPATH_USE_TF", "false")  # without, etils reads buckets by TensorFlow where that is installed
    # Without, gcsfs asks for the kind of each bucket in a way that needs more rights than reading and writing.
    os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
    fsspec.register_implementation("gcs", "r2d2_jax.buckets.patience.PatientFileSystem", clobber=True)
    fsspec.register_implementation("gs", "r2d2_jax.buckets.patience.PatientFileSystem", clobber=True)
