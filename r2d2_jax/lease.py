"""A lock that its holder writes again and again, for places that keep no locks: buckets, and some file systems.

Nothing there ends with the process that made it. So a lock counts as long as it changes from time to time. A process
writes it on the condition that it is still what was read before, so of two that take over the same lock one alone
succeeds. No clock is read but the own, for time spans.
"""

import abc
import contextlib
import errno
import logging
import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from r2d2_jax.errors import UserError, first_line
from r2d2_jax.holder import is_gone, this_process

logger = logging.getLogger(__name__)

BEAT_SECONDS = 15.0  # between two writes of a holder
# A lock that nobody has written for so long is taken over (our decision): its holder has died, or is cut off from the
# place and ends as soon as it sees that the lock has gone.
LAPSES_AFTER = 4 * BEAT_SECONDS
LOST = 1  # exit status of a holder whose lock another one has taken
# The second line of a file whose holder writes it again and again; where the system keeps locks there is none.
WRITTEN_AGAIN = "written again and again by"


class Lease(abc.ABC):
    """A lock, and which version of it this process has written.

    Args:
        path: of the lock.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # The mark tells a write of ours, whose answer was lost, from one of another process.
        self._text = f"{this_process()}\n{WRITTEN_AGAIN} {uuid.uuid4().hex}\n"
        self._version: Any = None  # of nothing

    def take(self, refusal: str) -> None:
        """Takes the lock, if need be after the time in which a living holder writes.

        Raises:
            UserError: another process holds it; the message begins with `refusal`.
        """
        seen = None
        while not self._write(seen):
            found = self._read()
            seen = found[0] if found else None
            if found is not None:
                self.wait_for_the_holder(*found, refusal)

    def renew(self) -> bool:
        """Writes the lock again; False if it is another's now. One that somebody has removed is made again."""
        if self._write(self._version):
            return True
        found = self._read()
        return self._write(None) if found is None else self._is_ours(found[1])

    def _is_ours(self, text: str) -> bool:
        """Whether this process has written it: another that looked at the lock may have moved it away and back."""
        return text.startswith(self._text)

    def wait_for_the_holder(self, version: Any, text: str, refusal: str) -> None:
        """Returns as soon as a lock of this version and text is free: removed, or not written for `LAPSES_AFTER`.

        Raises:
            UserError: its holder is at work.
        """
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
            if found[0] != version:
                raise UserError(f"{refusal}. It is {holder}")

    @abc.abstractmethod
    def give_back(self) -> None:
        """Removes the lock, if it is still this process's."""

    @abc.abstractmethod
    def passes(self, error: Exception) -> bool:
        """Whether an error is of the place where the lock lies, and no bug of ours."""

    @abc.abstractmethod
    def _write(self, version: Any) -> bool:
        """Writes the lock if it is of this version, None for nothing; whether it is this process's then."""

    @abc.abstractmethod
    def _read(self) -> tuple[Any, str] | None:
        """Version and text of the lock; None if there is none."""


@contextlib.contextmanager
def beating(lease: Lease) -> Iterator[None]:
    """Writes a lease that was taken again and again, and gives it back at the end."""
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(lease, ended), name="lock", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        try:
            lease.give_back()
        except Exception as error:
            if not lease.passes(error):
                raise
            logger.warning("the lock %s was not removed: %s; it lapses by itself", lease.path, first_line(error))


def _beat(lease: Lease, ended: threading.Event) -> None:
    while not ended.wait(BEAT_SECONDS):
        try:
            kept = lease.renew()
        except Exception as error:
            if not lease.passes(error):
                raise
            logger.warning("the lock %s could not be written: %s; trying again", lease.path, first_line(error))
            continue
        if not kept:
            from r2d2_jax.processes import leave_at_once  # JAX takes seconds

            # At once, because every further write would be one into the folder of another.
            logger.error("error: another process has taken the lock %s, so this one ends without saving", lease.path)
            leave_at_once(LOST)


class FileLease(Lease):
    """A lease in a file, whose version is its text; an empty file is a free lock.

    Files are made and moved in one go, which also file systems without locks do.
    """

    def heed(self, refusal: str) -> None:
        """Waits, where the system keeps locks, for a machine that has the same folder mounted without.

        Raises:
            UserError: its process is at work.
        """
        found = self._read()
        if found is not None and WRITTEN_AGAIN in found[1]:
            self.wait_for_the_holder(*found, refusal)

    def wait_for_the_holder(self, version: Any, text: str, refusal: str) -> None:
        """As `Lease.wait_for_the_holder`; a holder that does not write again has its lock from the system."""
        holder = text.partition("\n")[0].strip("\0")  # a machine that lost power leaves zeros
        if holder and WRITTEN_AGAIN not in text and not is_gone(holder):
            raise UserError(f"{refusal}. It is {holder}; if that has ended, remove {self.path}")
        if holder:
            super().wait_for_the_holder(version, text, refusal)

    def give_back(self) -> None:
        """Removes the file, if it is still this process's."""
        found = self._read()
        if found is not None and self._is_ours(found[1]):
            self.path.unlink(missing_ok=True)

    def passes(self, error: Exception) -> bool:
        """Whether the file system has raised it."""
        return isinstance(error, OSError)

    def _write(self, version: Any) -> bool:
        if version is None:
            return self._make()
        if version == self._version:
            return self._write_again()
        aside = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            if _text_of(self.path) != version:  # written since it was read, so its holder is at work
                return False
            self.path.rename(aside)  # of several that do so, one alone succeeds
        except FileNotFoundError:
            return False
        if _text_of(aside) != version:  # written in the moment between
            aside.rename(self.path)
            return False
        aside.unlink()
        return self._make()

    def _make(self) -> bool:
        """Makes the file, with its text from the first moment, unless there is one."""
        text = self._numbered(0)
        unlinked = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        try:
            unlinked.write_text(text)
            os.link(unlinked, self.path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            try:  # a file system without links, where the file is empty for a moment
                with self.path.open("x") as file:
                    file.write(text)
            except FileExistsError:
                return False
        finally:
            unlinked.unlink(missing_ok=True)
        self._version = text
        return True

    def _write_again(self) -> bool:
        """Changes the number in the file; what was moved away meanwhile is changed there, and does no harm."""
        try:
            with self.path.open("r+") as file:
                if not self._is_ours(file.read()):
                    return False
                text = self._numbered(int(self._version.split()[-1]) + 1)
                file.seek(0)
                file.write(text)
        except FileNotFoundError:
            return False
        self._version = text
        return True

    def _read(self) -> tuple[Any, str] | None:
        try:
            text = _text_of(self.path)
        except FileNotFoundError:
            return None
        return text, text

    def _numbered(self, number: int) -> str:
        """The text of a write; all are equally long, so that a new one covers the one before."""
        return f"{self._text}{number:012d}\n"


def _text_of(path: Path) -> str:
    return path.read_text(errors="replace")
