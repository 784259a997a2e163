"""Files that grow line by line, which no object in a bucket can: kept on this disk, and copied from time to time."""

import logging
import tempfile
import threading
from pathlib import Path

from r2d2_jax.buckets.path import BucketPath, bucket_refused
from r2d2_jax.buckets.transfer import upload
from r2d2_jax.errors import UserError

logger = logging.getLogger(__name__)

COPY_SECONDS = 60.0  # between two copies, and so what a process that is killed loses (our decision)


class Mirror:
    """A folder on this disk, `folder`, whose changed files a thread copies to a folder of a bucket.

    Args:
        target: the folder of the bucket.
    """

    def __init__(self, target: BucketPath) -> None:
        self._target = target
        self._temporary = tempfile.TemporaryDirectory(prefix="r2d2_jax-")
        self.folder = Path(self._temporary.name)
        self._copied: dict[Path, tuple[int, int]] = {}  # size and time of change when they were copied last
        self._copying, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._copy_again_and_again, name="mirror", daemon=True)
        self._thread.start()

    def copy(self) -> None:
        """Copies every file that has changed since it was copied last.

        Raises:
            UserError: the bucket refuses it.
        """
        with self._copying, bucket_refused(self._target, "write"):
            for file in (path for path in self.folder.rglob("*") if path.is_file()):
                stat = file.stat()
                if self._copied.get(file) != (stat.st_size, stat.st_mtime_ns):
                    upload(file, self._target / file.relative_to(self.folder).as_posix())
                    self._copied[file] = stat.st_size, stat.st_mtime_ns

    def close(self) -> None:
        """Copies what is left, and removes the folder on this disk.

        Raises:
            UserError: the bucket refuses it.
        """
        self._ended.set()
        self._thread.join()
        try:
            self.copy()
        finally:
            self._temporary.cleanup()

    def _copy_again_and_again(self) -> None:
        while not self._ended.wait(COPY_SECONDS):
            try:
                self.copy()
            except UserError as error:
                logger.warning("%s", error)
