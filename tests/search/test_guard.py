"""Requests of other sites are refused, whatever they say of themselves, and a bug is answered."""

import logging
import socket
from collections.abc import Iterator

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.testclient import TestClient

from r2d2_jax.search.guard import HEADERS, Guard, is_loopback

URL = "http://127.0.0.1:8360"


async def answered(_: Request) -> Response:
    return PlainTextResponse("answered")


async def broken(_: Request) -> Response:
    raise ValueError("a bug")


def guarded(host: str) -> TestClient:
    routes = [Route("/", answered, methods=["GET", "POST"]), Route("/broken", broken)]
    return TestClient(Starlette(routes=routes, middleware=[Middleware(Guard, host=host)]), base_url=URL)


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with guarded("127.0.0.1") as client:
        yield client


@pytest.mark.parametrize(
    "host",
    ["evil.example", "evil.example:8360", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "", "[::1", "[", ":80",
     "192.168.0.7", "0.0.0.0", "127.0.0.1, evil.example", "2130706433"],
)  # fmt: skip
def test_a_host_that_is_not_here(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"host": host})
    assert answer.status_code == 403
    assert answer.json() == {"error": f"the host {host!r} is not this server; open the address that it printed"}
    assert answer.headers["content-security-policy"] == HEADERS["content-security-policy"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.0.0.1:8360", "127.0.0.2:8360", "127.255.255.254", "localhost:1", "LOCALHOST", "[::1]:8360"],
)
def test_names_of_this_machine(client: TestClient, host: str) -> None:
    answer = client.get("/", headers={"host": host})
    assert (answer.text, answer.headers["cache-control"]) == ("answered", "no-store")
    assert client.post("/", headers={"host": host, "origin": f"http://{host}"}).text == "answered"


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": ""},
        {"origin": "http://127.0.0.1:3000"},
        {"origin": "http://127.0.0.1"},
        {"origin": "http://[::1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"origin": URL, "sec-fetch-site": "cross-site"},
    ],
)
def test_a_question_of_another_site(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/", headers=headers)
    assert answer.status_code == 403
    assert answer.json() == {"error": "the request comes from another web site; only this server's own page may ask"}


@pytest.mark.parametrize("headers", [{}, {"origin": URL}, {"origin": URL, "sec-fetch-site": "same-origin"}])
def test_a_question_of_the_page_or_of_no_browser(client: TestClient, headers: dict[str, str]) -> None:
    assert client.post("/", headers=headers).text == "answered"


def test_elsewhere_any_address_in_digits_is_known() -> None:
    """No name can be made to be one."""
    with guarded("0.0.0.0") as client:
        for host in ("192.168.0.7:8360", "[fe80::1]:8360", socket.gethostname(), "localhost"):
            assert client.get("/", headers={"host": host}).status_code == 200
        assert client.get("/", headers={"host": "evil.example"}).status_code == 403
    with guarded("photos.example") as client:
        assert client.get("/", headers={"host": "photos.example"}).status_code == 200


def test_which_addresses_only_this_machine_reaches() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.0.0.2", "localhost", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.0.7", "photos.example", "")))


def test_a_bug_is_a_traceback_in_the_log(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        answer = client.get("/broken")
    assert (answer.status_code, answer.headers["x-content-type-options"]) == (500, "nosniff")
    assert answer.json() == {"error": "the program has a bug here; the server's log has its traceback"}
    assert "ValueError: a bug" in caplog.text
    assert client.get("/").text == "answered"
