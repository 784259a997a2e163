"""The search page's server: a page, a small JSON interface, thumbnails; nothing of the disk is named by the browser.

A picture is asked for by the digest of its content, which the index knows or does not. What a browser sends is read up
to a limit, and no further.
"""

import asyncio
import contextlib
import functools
import io
import json
import logging
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import IO, Any

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from r2d2_jax.data.bad_records import UnusableRecord
from r2d2_jax.errors import UserError, first_line
from r2d2_jax.search.desk import Desk, Gone, Turns
from r2d2_jax.search.guard import Guard
from r2d2_jax.search.thumbnails import SIDES

logger = logging.getLogger(__name__)

LARGEST_PICTURE = 30 * 2**20  # bytes of one to search by
LARGEST_QUESTION = 2**18  # bytes of JSON: more than any sentence
LONGEST_UPLOAD = 120  # seconds for a body to arrive: the largest picture at 2 Mbit a second
_IN_MEMORY = 2**20  # bytes of a picture; what is more waits on the disk
_MOST_REQUESTS = 256  # at once; further ones are told to come again
_PATIENCE = 2  # seconds for answers on their way once the server is to end
_FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/words.json": ("words.json", "application/json"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
Endpoint = Callable[[Request], Awaitable[Response]]


def application(desk: Desk, host: str) -> Starlette:
    """The application that answers the page.

    Args:
        desk: what it answers with.
        host: the address at which it is served, see `Guard`.
    """
    site = _Site(desk)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        site.turns.stop()

    routes = [
        *(Route(path, _file(*file)) for path, file in _FILES.items()),
        Route("/photo/{size}/{identity}", _answering(site.photo)),
        Route("/api/state", _answering(site.state)),
        Route("/api/text", _answering(site.text), methods=["POST"]),
        Route("/api/picture", _answering(site.picture), methods=["POST"]),
        Route("/api/alike", _answering(site.alike), methods=["POST"]),
        Route("/api/heat", _answering(site.heat), methods=["POST"]),
    ]
    refused = {HTTPException: _refused}
    return Starlette(
        routes=routes, lifespan=lifespan, middleware=[Middleware(Guard, host=host)], exception_handlers=refused
    )


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens, so that no other program takes the port while the model is loaded.

    Who connects meanwhile waits. Port 0 is any free one.

    Raises:
        UserError: the port is in use or not allowed, or there is no such address here.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no name"
        raise UserError(f"--host={host} is not found: {reason}; name an address of this machine") from error
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()
    except OSError as error:
        found.close()
        raise UserError(
            f"cannot listen at {host}, port {port}: {error.strerror}; choose another --port or --host"
        ) from error
    return found


def address(host: str, port: int) -> str:
    """What to open in a browser; of all addresses of this machine, that of its name."""
    host = socket.gethostname() if host in ("0.0.0.0", "::", "") else host
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def serve(desk: Desk, host: str, listener: socket.socket) -> None:
    """Answers until Ctrl-C or SIGTERM; returns then."""
    config = uvicorn.Config(
        application(desk, host),
        log_config=None,
        log_level="critical",  # `Guard` logs what fails; queries stand in no log
        access_log=False,
        server_header=False,
        limit_concurrency=_MOST_REQUESTS,
        timeout_graceful_shutdown=_PATIENCE,
    )
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


class _Site:
    """The endpoints."""

    def __init__(self, desk: Desk) -> None:
        self.desk, self.turns = desk, Turns()

    async def state(self, _: Request) -> Response:
        described = await self.turns.decode(self.desk.described)
        return JSONResponse(described | {"largest_picture": LARGEST_PICTURE})

    async def photo(self, request: Request) -> Response:
        size, digest = request.path_params["size"], _digest(request.path_params["identity"])
        if size not in SIDES:
            raise HTTPException(404, f"there are no pictures of size {size!r}; expected one of {', '.join(SIDES)}")
        try:
            jpeg = await self.turns.decode(functools.partial(self.desk.thumbnails.jpeg, digest, size))
        except UnusableRecord as error:
            raise UserError(f"the picture cannot be read: {first_line(error)}") from error
        if jpeg is None:
            raise HTTPException(404, _NO_PICTURE)
        # The address is that of the content, which never changes.
        return Response(jpeg, media_type="image/jpeg", headers={"cache-control": "private, max-age=86400, immutable"})

    async def text(self, request: Request) -> Response:
        asked = await _json(request, query=str, candidates=int)
        return await self._computed(request, functools.partial(self.desk.for_text, **asked))

    async def picture(self, request: Request) -> Response:
        _check_type(request, "application/octet-stream")
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as file:
            await _receive(request, file, LARGEST_PICTURE, "the picture")
            pixels = await self._pixels(lambda: _whole(file))
        return await self._computed(request, functools.partial(self.desk.for_image, pixels))

    async def alike(self, request: Request) -> Response:
        asked = await _json(request, id=str)
        pixels = await self._pixels_of(asked["id"])
        return await self._computed(request, functools.partial(self.desk.for_image, pixels))

    async def heat(self, request: Request) -> Response:
        asked = await _json(request, id=str, query=str, words=str, reading=str)
        pixels = await self._pixels_of(asked.pop("id"))
        return await self._computed(request, functools.partial(self.desk.heat, pixels, **asked))

    async def _computed(self, request: Request, work: Callable[[], dict[str, Any]]) -> Response:
        return JSONResponse(await self.turns.compute(request, work))

    async def _pixels_of(self, identity: str) -> np.ndarray:
        digest = _digest(identity)

        def encoded() -> bytes:
            found = self.desk.index.picture(digest)
            if found is None:
                raise HTTPException(404, _NO_PICTURE)
            return found

        return await self._pixels(encoded)

    async def _pixels(self, encoded: Callable[[], bytes]) -> np.ndarray:
        """uint8 [side side 3] of an image file.

        Raises:
            UserError: it is no picture, or one of too many pixels.
        """
        try:
            return (await self.turns.decode(lambda: self.desk.model.pixels(encoded())))[0]
        except UserError as error:
            raise UserError(f"the picture cannot be read: {error}") from error


_NO_PICTURE = "the index has no such picture, or its file has changed or is gone; search again"


def _file(name: str, media_type: str) -> Endpoint:
    content = resources.files("r2d2_jax.search").joinpath("page", name).read_bytes()

    async def endpoint(_: Request) -> Response:
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    return endpoint


def _answering(endpoint: Endpoint) -> Endpoint:
    """The endpoint, with bad input as one message of status 400."""

    async def answered(request: Request) -> Response:
        try:
            return await endpoint(request)
        except UserError as error:
            return JSONResponse({"error": str(error)}, 400)
        except (Gone, ClientDisconnect):
            return Response(status_code=499)  # which nobody reads

    return answered


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, headers=error.headers)


def _digest(identity: str) -> bytes:
    if len(identity) != 32 or not set(identity) <= set("0123456789abcdef"):
        raise HTTPException(404, _NO_PICTURE)
    return bytes.fromhex(identity)


def _check_type(request: Request, wanted: str) -> None:
    """Both types are none that a form of another site can send without asking first."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != wanted:
        raise HTTPException(415, f"the request has another content type; expected {wanted}")


async def _receive(request: Request, file: IO[bytes], largest: int, what: str) -> None:
    """Writes the request's body into a file, and stops reading where it is too large or takes too long."""
    too_large = _refusal(413, f"{what} has more than {largest:,} bytes; choose a smaller one")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > largest:
        raise too_large
    received = 0
    try:
        async with asyncio.timeout(LONGEST_UPLOAD):
            async for part in request.stream():
                received += len(part)
                if received > largest:
                    raise too_large
                file.write(part)
    except TimeoutError as error:
        message = f"{what} did not arrive within {LONGEST_UPLOAD} seconds; send it again, over a faster connection"
        raise _refusal(408, message) from error


def _refusal(status: int, message: str) -> HTTPException:
    """The answer to a request whose body is not read to its end, so that nothing can follow on its connection."""
    return HTTPException(status, message, headers={"connection": "close"})


def _whole(file: IO[bytes]) -> bytes:
    file.seek(0)
    return file.read()


async def _json(request: Request, **fields: type) -> dict[str, Any]:
    """The fields of a JSON object, of these types; all of them, and no other."""
    _check_type(request, "application/json")
    body = io.BytesIO()
    await _receive(request, body, LARGEST_QUESTION, "the question")
    try:
        found = json.loads(body.getvalue())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or {name: type(value) for name, value in found.items()} != fields:
        names = ", ".join(f"{name} ({kind.__name__})" for name, kind in fields.items())
        raise UserError(f"the request is not understood; expected a JSON object of {names}")
    return found
