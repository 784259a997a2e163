"""Who may ask the page's server: only the page itself, under a name of this machine.

A server on 127.0.0.1 is reached by every web site that is open in a browser of the same machine. Such a site can send
requests, but cannot choose their Host and Origin headers, so these tell it from the page. A site whose own name is made
to lead to 127.0.0.1 (DNS rebinding) has that name as Host.
"""

import ipaddress
import logging
import socket
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

logger = logging.getLogger(__name__)

HEADERS = {
    # The page loads nothing from elsewhere, is shown in no other page, and runs no script but its own file.
    "content-security-policy": "default-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",  # no other site shows a photograph, even if it guesses the address
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_OWN = ("same-origin", "none")  # values of Sec-Fetch-Site


class Guard:
    """Refuses requests of other sites, adds `HEADERS` to every answer, and makes an answer of a bug.

    Args:
        app: the application.
        host: the address at which the server listens. Localhost and loopback addresses are always known. Elsewhere than
            on one of these, so are this machine's own names, `host` itself, and any address in digits, which no
            rebinding can fake.
    """

    def __init__(self, app: ASGIApp, host: str) -> None:
        self._app = app
        self._anywhere = not is_loopback(host)
        own = (host, socket.gethostname(), socket.getfqdn()) if self._anywhere else ()
        self._own = {name.lower() for name in own}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request. What an endpoint raises is logged with its traceback and answered with status 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun = False

        async def guarded(message: Message) -> None:
            nonlocal begun
            begun = True
            if message["type"] == "http.response.start":
                _add_headers(message)
            await send(message)

        refusal = self._refusal(Headers(scope=scope), scope["method"])
        if refusal:
            await JSONResponse({"error": refusal}, 403)(scope, receive, guarded)
            return
        try:
            await self._app(scope, receive, guarded)
        except Exception:
            logger.exception("a request to %s failed", scope["path"])
            if not begun:
                message = "the program has a bug here; the server's log has its traceback"
                await JSONResponse({"error": message}, 500)(scope, receive, guarded)

    def _refusal(self, headers: Headers, method: str) -> str:
        """Why a request is refused; "" if it is not."""
        host = headers.get("host", "")
        if not self._knows(_name(f"//{host}")):
            return f"the host {host!r} is not this server; open the address that it printed"
        origin = headers.get("origin")
        other = origin is not None and origin.lower() not in (f"http://{host}".lower(), f"https://{host}".lower())
        # Browsers that send no Origin with a POST of their own site say here where it is from; other programs neither.
        if method not in ("GET", "HEAD") and (other or headers.get("sec-fetch-site", "none") not in _OWN):
            return "the request comes from another web site; only this server's own page may ask"
        return ""

    def _knows(self, name: str) -> bool:
        return is_loopback(name) or name in self._own or (self._anywhere and _is_address(name))


def _name(url: str) -> str:
    """The host of a URL in lower case, without its port; "" if there is none."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:  # a bracket that does not close
        return ""


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether a name or address means this machine alone, so that only its own programs reach a server there."""
    return host.lower() == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _add_headers(message: MutableMapping[str, Any]) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in HEADERS.items():
        headers[name] = value
    headers.setdefault("cache-control", "no-store")
