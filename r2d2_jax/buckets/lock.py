"""One process at a time in a folder of a bucket: a lock object that its holder writes again and again.

Nothing in a bucket ends with the process that made it. So a lock counts as long as its generation, which changes with
every write, changes from time to time. All writes are on the condition of the generation that was read before: of two
processes that take the same lock, one alone succeeds. No clock is read but the own, for time spans.
"""

import contextlib
import logging
import threading
import time
import uuid
from collections.abc import Iterator

from r2d2_jax.buckets.path import BucketPath, bucket_refused, client, is_bucket_error
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.lock import LOCK, is_gone, this_process
from r2d2_jax.processes import leave_at_once

logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0  # between two writes of a holder
# A lock that nobody has written for so long is taken over (our decision): its holder has died, or is cut off from the
# bucket and ends as soon as it sees that the lock has gone.
LAPSES_AFTER = 4 * BEAT_SECONDS
LOST = 1  # exit status of a holder whose lock another one has taken


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
    lease = _Lease(folder / LOCK)
    with bucket_refused(folder):
        lease.take(f"{work} is at work in {folder}; let it end, or choose another {flag}")
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(lease, ended), name="lock", daemon=True)
    beating.start()
    try:
        yield
    finally:
        ended.set()
        beating.join()
        lease.give_back()


def _beat(lease: "_Lease", ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        try:
            kept = lease.renew()
        except Exception as error:
            if not is_bucket_error(error):
                raise
            logger.warning("the lock %s could not be written: %s; trying again", lease.path, first_line(error))
            continue
        if not kept:
            # At once, because every further write would be one into the folder of another.
            logger.error("error: another process has taken the lock %s, so this one ends without saving", lease.path)
            leave_at_once(LOST)


class _Lease:
    """A lock object, and the generation of it that this process has written.

    Args:
        path: of the lock.
    """

    def __init__(self, path: BucketPath) -> None:
        self.path = path
        bucket, name = path.bucket_and_name()
        self._blob = client().bucket(bucket).blob(name)
        # The mark tells a write of ours, whose answer was lost, from one of another process.
        self._text = f"{this_process()}\n{uuid.uuid4().hex}\n"
        self._generation = 0  # on which nothing is there

    def take(self, refusal: str) -> None:
        """Takes the lock, if need be after the time in which a living holder writes.

        Raises:
            UserError: another process holds it.
        """
        seen = 0  # nothing
        while not self._write(seen):
            found = self._read()
            seen = found[0] if found else 0
            if found is not None:
                self._wait_for_the_holder(*found, refusal)

    def renew(self) -> bool:
        """Writes the lock again; False if it is another's now. One that somebody has removed is made again."""
        if self._write(self._generation):
            return True
        return self._read() is None and self._write(0)

    def give_back(self) -> None:
        """Removes the lock, if it is still this process's."""
        try:
            self._blob.delete(if_generation_match=self._generation)
        except Exception as error:
            if not is_bucket_error(error):
                raise
            logger.warning("the lock %s was not removed: %s; it lapses by itself", self.path, first_line(error))

    def _wait_for_the_holder(self, generation: int, text: str, refusal: str) -> None:
        holder = text.partition("\n")[0]
        if is_gone(holder):
            return
        logger.info(
            "the lock %s is of %s; waiting up to %.0f s to see whether that is still at work",
            self.path, holder, LAPSES_AFTER,
        )  # fmt: skip
        start = time.monotonic()
        while time.monotonic() - start < LAPSES_AFTER:
            time.sleep(LAPSES_AFTER / 20)
            found = self._read()
            if found is None:
                return
            if found[0] != generation:
                raise UserError(f"{refusal}. It is {holder}")

    def _write(self, generation: int) -> bool:
        """Writes the lock if it is of this generation; whether it is this process's then."""
        from google.api_core.exceptions import PreconditionFailed

        try:
            self._blob.upload_from_string(self._text, if_generation_match=generation)
            self._generation = int(self._blob.generation)
        except PreconditionFailed:
            found = self._read()
            if found is None or found[1] != self._text:
                return False
            self._generation = found[0]
        return True

    def _read(self) -> tuple[int, str] | None:
        """Generation and text of the lock; None if there is none."""
        from google.api_core.exceptions import NotFound, PreconditionFailed

        try:
            self._blob.reload()
            generation = int(self._blob.generation)
            return generation, self._blob.download_as_text(if_generation_match=generation)
        except NotFound:
            return None
        except PreconditionFailed:  # written between the two requests
            return self._read()
