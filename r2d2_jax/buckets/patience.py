"""Reading and writing a bucket through outages: what fails for a while is tried again, and said."""

import asyncio
import errno
import functools
import logging
import random
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import gcsfs
import google.auth.exceptions
import requests
from gcsfs.retry import HttpError, is_retriable

logger = logging.getLogger(__name__)

# Seconds for which a bucket may refuse, throttle or hang before the program that needs it fails (our decision).
PATIENCE = 600.0
# Seconds without a byte after which a request hangs, and is made again. Long transfers have no other limit.
SILENCE = 30.0
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 30.0
# What gcsfs lets through of the libraries below it.
_FOREIGN = (
    HttpError,
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


def _patient(request: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """A request of gcsfs that is made until it succeeds, or fails for good with an OSError, as on a disk."""

    @functools.wraps(request)
    async def patient(self: Any, *args: Any, **kwargs: Any) -> Any:
        start, wait = time.monotonic(), _FIRST_WAIT
        while True:
            try:
                return await request(self, *args, **kwargs)
            except _FOREIGN as error:
                said = str(error) or type(error).__name__
                if not _passes(error) or time.monotonic() - start > PATIENCE:
                    raise OSError(errno.EIO, said) from error
            logger.warning("the bucket does not answer: %s; trying again, for %.0f min in all", said, PATIENCE / 60)
            await asyncio.sleep(wait * random.uniform(0.5, 1.0))  # so that many hosts do not come all at once
            wait = min(2 * wait, _LONGEST_WAIT)

    return patient


class PatientFileSystem(gcsfs.GCSFileSystem):
    """gcsfs that waits out what passes, for longer than its six attempts, and that remembers no listings.

    A remembered listing lacks what TensorStore or another process has written since.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        limits = aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)
        super().__init__(*args, **({"use_listings_cache": False, "requests_timeout": limits} | kwargs))

    _request = _patient(gcsfs.GCSFileSystem._request)
    _get_file_request = _patient(gcsfs.GCSFileSystem._get_file_request)
