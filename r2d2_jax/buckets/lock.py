"""One process at a time in a folder of a bucket: a lock object that its holder writes again and again.

The version of a lock is the generation of its object, which changes with every write. All writes are on the condition
of the generation that was read before.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

from r2d2_jax.buckets.path import BucketPath, bucket_refused, client, is_bucket_error
from r2d2_jax.lease import Lease, beating
from r2d2_jax.lock import LOCK


@contextlib.contextmanager
def held_in_bucket(folder: BucketPath, work: str, flag: str) -> Iterator[None]:
    """Holds the folder for this process, as `lock.held` does on a disk.

    Args:
        folder: where the lock lies.
        work: what is done in it, for messages, such as "a run".
        flag: which flag names the folder.

    Raises:
        UserError: another process holds it, and which; or the folder cannot be written to.
    """
    lease = BucketLease(folder / LOCK)
    with bucket_refused(folder):
        lease.take(f"{work} is at work in {folder}; let it end, or choose another {flag}")
    with beating(lease):
        yield


class BucketLease(Lease):
    """A lease in an object of a bucket.

    Args:
        path: of the lock.
    """

    def __init__(self, path: BucketPath) -> None:
        super().__init__(path)
        bucket, name = path.bucket_and_name()
        self._blob = client().bucket(bucket).blob(name)

    def give_back(self) -> None:
        """Removes the object, if it is of the generation that this process has written."""
        self._blob.delete(if_generation_match=self._version)

    def passes(self, error: Exception) -> bool:
        """Whether it is the bucket's or its network's."""
        return is_bucket_error(error)

    def _write(self, version: Any) -> bool:
        from google.api_core.exceptions import PreconditionFailed

        try:
            self._blob.upload_from_string(self._text, if_generation_match=version or 0)  # of which nothing is there
            self._version = int(self._blob.generation)
        except PreconditionFailed:
            found = self._read()
            if found is None or found[1] != self._text:
                return False
            self._version = found[0]
        return True

    def _read(self) -> tuple[Any, str] | None:
        from google.api_core.exceptions import NotFound, PreconditionFailed

        try:
            self._blob.reload()
            generation = int(self._blob.generation)
            return generation, self._blob.download_as_text(if_generation_match=generation)
        except NotFound:
            return None
        except PreconditionFailed:  # written between the two requests
            return self._read()
