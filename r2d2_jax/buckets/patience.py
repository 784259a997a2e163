"""Reading and writing a bucket through outages: what fails for a while is tried again, and said."""

import asyncio
import functools
import inspect
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import gcsfs
import google.auth.exceptions
import requests
from gcsfs.retry import ChecksumError, HttpError, is_retriable

from r2d2_jax.buckets.path import BucketError, advice
from r2d2_jax.errors import first_line

logger = logging.getLogger(__name__)

# Seconds for which a bucket may refuse, throttle or hang before the program that needs it fails (our decision).
PATIENCE = 600.0
# Seconds without a byte after which a request hangs, and is made again. Long transfers have no other limit.
SILENCE = 30.0
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
# Seconds for which an outage is not told: every bucket refuses single requests now and then.
_UNTOLD = 5.0
# Seconds between two lines about an outage, which stops many requests at once.
_TOLD_EVERY = 15.0
# What gcsfs lets through of the libraries below it.
_FOREIGN = (
    HttpError,
    ChecksumError,
    TimeoutError,
    aiohttp.ClientError,
    requests.RequestException,
    google.auth.exceptions.GoogleAuthError,
)


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    if isinstance(error, HttpError) and str(error.code) == "501":  # never implemented there, and gcsfs would try again
        return False
    return isinstance(error, TimeoutError) or is_retriable(error)


class _Lines:
    """What the log is told of outages."""

    def __init__(self) -> None:
        self._last = -math.inf

    def tell(self, said: str) -> None:
        """Tells what one of perhaps many requests has met, unless another was told a moment ago."""
        if (now := time.monotonic()) - self._last >= _TOLD_EVERY:
            self._last = now
            logger.warning("the bucket does not answer: %s; trying again, for %.0f min in all", said, PATIENCE / 60)


_lines = _Lines()


def _patient(request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A request of gcsfs that is made until it succeeds, or fails for good with a `BucketError`.

    Without the six attempts of gcsfs itself, which say nothing: where each hangs, they take minutes.
    """
    request = inspect.unwrap(request)

    @functools.wraps(request)
    async def patient(self: Any, *args: Any, **kwargs: Any) -> Any:
        start, wait = time.monotonic(), _FIRST_WAIT
        while True:
            try:
                return await request(self, *args, **kwargs)
            except FileNotFoundError:
                raise
            except (*_FOREIGN, OSError) as error:
                said, waited = first_line(error), time.monotonic() - start
                if not _passes(error) or waited > PATIENCE:
                    # gcsfs itself names the object where the bucket forbids, and looks at how that message begins.
                    named = isinstance(error, OSError) and not isinstance(error, _FOREIGN)
                    place = "" if named else "/".join(map(str, args[2:])) or str(args[1])  # after method and pattern
                    raise BucketError(f"{place and f'{place}: '}{said}; {advice(error)}") from error
            if waited >= _UNTOLD:
                _lines.tell(said)
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # so that many hosts do not come all at once
            wait = min(2 * wait, _LONGEST_WAIT)

    return patient


class PatientFileSystem(gcsfs.GCSFileSystem):
    """gcsfs that waits out what passes, for longer than its six attempts, and says what it does not know.

    It remembers no listings: a remembered one lacks what TensorStore or another process has written since. Where it
    cannot tell whether something is a folder or a file, it raises an error, while gcsfs says that it is none: a run
    whose checkpoints cannot be seen for a while must not start anew.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        super().__init__(*args, **({"use_listings_cache": False, "requests_timeout": limits} | kwargs))

    async def _isdir(self, path: str) -> bool:
        return await self._is(path, "directory")

    async def _isfile(self, path: str) -> bool:
        return await self._is(path, "file")

    async def _is(self, path: str, kind: str) -> bool:
        try:
            return bool((await self._info(path))["type"] == kind)
        except FileNotFoundError:
            return False

    _request = _patient(gcsfs.GCSFileSystem._request)
    _get_file_request = _patient(gcsfs.GCSFileSystem._get_file_request)
