"""Every route of the page's server, and one message for whatever it refuses."""

import contextlib
import io
import json
import select
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image
from small_images import png_header
from small_pages import HOST, client_of, posted, served, small_desk
from small_photos import photographs, picture
from starlette.testclient import TestClient

from r2d2_jax.errors import UserError
from r2d2_jax.inference import Ranker
from r2d2_jax.lock import held
from r2d2_jax.search import server
from r2d2_jax.search.catalog import Catalog
from r2d2_jax.search.desk import STEP, Desk
from r2d2_jax.search.index import bring_up_to_date
from r2d2_jax.search.query import Answer, pictures_for_image, pictures_for_text
from r2d2_jax.search.view import IndexView

TEXT = "大红圆"
PHOTOS = 20


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = photographs(tmp_path_factory.mktemp("page") / "photos", PHOTOS)
    shutil.copy(folder / "00.png", folder / "copy\n.png")
    picture(folder.parent / "secret.png", 99)
    return folder


@pytest.fixture(scope="module")
def desk(photos: Path) -> Desk:
    return small_desk(photos, photos.parent / "index")


@pytest.fixture(scope="module")
def client(desk: Desk) -> Iterator[TestClient]:
    with client_of(desk) as client:
        yield client


def png(seed: int = 0) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), np.uint8)
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()


def uploaded(client: TestClient, content, **headers: str):
    return client.post("/api/picture", content=content, headers={"content-type": "application/octet-stream", **headers})


def test_the_page_and_its_files(client: TestClient) -> None:
    for path, kind in {"/": "text/html", "/page.js": "text/javascript", "/page.css": "text/css"}.items():
        answer = client.get(path)
        assert answer.status_code == 200
        assert answer.headers["content-type"] == f"{kind}; charset=utf-8"
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    page = client.get("/").text
    assert "http://" not in page
    assert "https://" not in page
    assert "style=" not in page


def test_both_languages_have_the_same_words(client: TestClient) -> None:
    words = client.get("/words.json").json()
    assert set(words) == {"en", "zh"}
    assert list(words["en"]) == list(words["zh"])
    fields = lambda text: sorted(part.partition("}")[0] for part in text.split("{")[1:])  # noqa: E731
    for key, text in words["en"].items():
        assert fields(text) == fields(words["zh"][key]), key
    used = client.get("/").text + client.get("/page.js").text
    assert [key for key in words["en"] if f'"{key}"' not in used] == []


def test_what_the_page_must_know(client: TestClient) -> None:
    state = client.get("/api/state").json()
    assert state == {
        "photos": "photos",
        "pictures": PHOTOS,
        "complete": True,
        "matches": True,
        "occlusion": True,
        "candidates": STEP,
        "places": [0, 16, 32, 48, 64, 80, 96, 112, 128],
        "largest_picture": server.LARGEST_PICTURE,
    }


@pytest.mark.parametrize("candidates", [0, STEP, 128])
def test_a_sentence(client: TestClient, desk: Desk, photos: Path, candidates: int) -> None:
    status, answer = posted(client, "/api/text", query=TEXT, candidates=candidates)
    assert status == 200, answer
    wanted = pictures_for_text(desk.model, desk.index, TEXT, top=64, candidates=candidates)
    assert answer["candidates"] == min(candidates, PHOTOS)
    assert answer["entities"] == ["大红圆"]
    assert (answer["pictures"], answer["complete"]) == (PHOTOS, True)
    for hit, same in zip(answer["hits"], wanted.hits, strict=True):
        assert str(photos / hit["names"][0]) == same.what
        assert hit["cosine"] == pytest.approx(same.cosine, abs=1e-6)
        assert hit["match"] == (None if same.match is None else pytest.approx(same.match, abs=1e-6))
        assert hit["rank_by_cosine"] == same.rank_by_cosine
    names = [hit["names"] for hit in answer["hits"]]
    assert ["00.png", r"copy\n.png"] in names


def test_a_picture_and_one_like_another(client: TestClient, desk: Desk) -> None:
    answer = uploaded(client, png(3))
    assert answer.status_code == 200, answer.text
    hits = answer.json()["hits"]
    wanted = pictures_for_image(desk.model, desk.index, png(3), top=64)
    assert [hit["id"] for hit in hits] == [hit.digest for hit in wanted.hits]
    assert (hits[0]["names"], round(hits[0]["cosine"], 4)) == (["below/03.png"], 1.0)
    status, alike = posted(client, "/api/alike", id=hits[0]["id"])
    assert status == 200
    assert [hit["id"] for hit in alike["hits"]] == [hit["id"] for hit in hits]


def test_a_photograph_by_its_content_alone(client: TestClient) -> None:
    _, answer = posted(client, "/api/text", query=TEXT, candidates=0)
    identity = answer["hits"][0]["id"]
    for size in ("small", "large"):
        found = client.get(f"/photo/{size}/{identity}")
        assert found.headers["content-type"] == "image/jpeg"
        assert Image.open(io.BytesIO(found.content)).size == (30, 20)
    assert client.get(f"/photo/huge/{identity}").status_code == 404


@pytest.mark.parametrize(
    "identity",
    ["0" * 32, "0" * 31, "g" * 32, "A" * 32, "00.png", "..%2Fsecret.png", "%2e%2e/%2e%2e/etc/passwd", "١" * 32],
)
def test_no_path_leads_to_a_file(client: TestClient, identity: str) -> None:
    for path in (f"/photo/small/{identity}", f"/{identity}", f"/page/{identity}"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert set(answer.json()) == {"error"}
    status, answer = posted(client, "/api/alike", id=identity)
    assert status == 404
    assert "the index has no such picture" in answer["error"]


@pytest.mark.parametrize("reading", ["attention", "occlusion"])
def test_a_heat_map(client: TestClient, reading: str) -> None:
    _, answer = posted(client, "/api/text", query=TEXT, candidates=0)
    identity = answer["hits"][0]["id"]
    status, found = posted(client, "/api/heat", id=identity, query=TEXT, words="红圆", reading=reading)
    assert status == 200, found
    rows = np.array(found["rows"])
    assert rows.shape == (3, 3)
    assert (rows.min(), rows.max()) >= (0, 0)
    assert rows.max() in (0, 1)


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("text", {"query": "", "candidates": 0}, "the query '' says nothing; expected a sentence"),
        ("text", {"query": " \n", "candidates": 16}, r"the query ' \n' says nothing; expected a sentence"),
        ("text", {"query": TEXT, "candidates": 17}, "candidates is 17; expected one of 0, 16, 32, "),
        ("text", {"query": TEXT, "candidates": -1}, "candidates is -1; expected one of 0, 16, 32, "),
        ("text", {"query": TEXT}, "expected a JSON object of query (str), candidates (int)"),
        ("text", {"query": TEXT, "candidates": True}, "expected a JSON object of query (str), candidates (int)"),
        ("text", {"query": [TEXT], "candidates": 0}, "the request is not understood"),
        ("text", {"query": TEXT, "candidates": 0, "path": "/etc/passwd"}, "the request is not understood"),
        ("text", {"query": "\ud800", "candidates": 0}, "has half of a character (a lone surrogate)"),
        ("heat", {"query": TEXT, "words": "蓝", "reading": "attention"}, "the entity '蓝' is not in the text"),
        ("heat", {"query": TEXT, "words": "圆", "reading": "x"}, "the reading is 'x'; expected one of attention, occ"),
        ("heat", {"query": "红" * 9 + "圆", "words": "圆", "reading": "attention"}, "is not among the 7 tokens that"),
    ],
)
def test_questions_that_are_refused(client: TestClient, path: str, fields: dict, message: str) -> None:
    if path == "heat":
        _, answer = posted(client, "/api/text", query=TEXT, candidates=0)
        fields = {"id": answer["hits"][0]["id"], **fields}
    headers = {"content-type": "application/json"}
    answer = client.post(f"/api/{path}", content=json.dumps(fields), headers=headers)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b"[" * 100_000, b'{"query": 1e999}'])
def test_what_is_no_json(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/text", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400
    assert "the request is not understood" in answer.json()["error"]


def test_a_long_sentence_is_cut_as_on_the_command_line(client: TestClient) -> None:
    status, answer = posted(client, "/api/text", query="红" * 10_000, candidates=0)
    assert status == 200
    assert answer["notes"] == ["the query has 10,000 tokens, of which the model reads the first 5"]
    status, answer = posted(client, "/api/text", query="红" * 100_000, candidates=0)
    assert (status, answer["error"]) == (413, "the question has more than 262,144 bytes; choose a smaller one")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "image of 0 bytes: not an image: 0 bytes in no known format"),
        (b"text", "image of 4 bytes: not an image: 4 bytes in no known format"),
        (b"<svg onload='alert(1)'/>", "image of 24 bytes: not an image"),
        (png()[:-300], "bytes: the image cannot be decoded"),
        (png_header(60_000, 60_000) + png()[33:], "the image has 60000 x 60000 pixels, above the limit of 67,108,864"),
    ],
)
def test_what_is_no_picture(client: TestClient, content: bytes, message: str) -> None:
    answer = uploaded(client, content)
    assert answer.status_code == 400
    assert message in answer.json()["error"]


def test_a_picture_that_is_too_large_is_not_read(desk: Desk) -> None:
    """A stream of a GiB, which says nothing of its length, is cut off; one that says it is refused unread."""
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1024):
            sent += 2**20
            yield bytes(2**20)

    headers = {"content-type": "application/octet-stream"}
    with served(desk) as url:
        try:
            answer = httpx2.post(f"{url}/api/picture", content=endless(), headers=headers)
            assert answer.status_code == 413
        except httpx2.TransportError:  # the server has answered and closed while we were sending
            pass
        assert sent < 2 * server.LARGEST_PICTURE
        with socket.create_connection((HOST, int(url.rpartition(":")[2]))) as raw:
            head = f"POST /api/picture HTTP/1.1\r\nHost: {url[7:]}\r\nContent-Type: application/octet-stream\r\n"
            raw.sendall(f"{head}Content-Length: {2**30}\r\n\r\n".encode())
            said = raw.makefile("rb").read()
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"the picture has more than 31,457,280 bytes; choose a smaller one" in said


@pytest.mark.parametrize(
    ("path", "kind", "what"),
    [("picture", "application/octet-stream", "the picture"), ("text", "application/json", "the question")],
)
def test_a_body_that_never_arrives_is_given_up(
    path: str, kind: str, what: str, desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A byte now and then keeps the connection busy, and yet is no reason to wait for ever; others are served."""
    monkeypatch.setattr(server, "LONGEST_UPLOAD", 1)
    with served(desk) as url, socket.create_connection((HOST, int(url.rpartition(":")[2]))) as raw:
        head = f"POST /api/{path} HTTP/1.1\r\nHost: {url[7:]}\r\nContent-Type: {kind}\r\nContent-Length: 1000\r\n\r\n"
        raw.sendall(head.encode())
        sent, start, said = 0, time.monotonic(), b""
        while not select.select([raw], [], [], 0.1)[0] and time.monotonic() - start < 60:
            with contextlib.suppress(ConnectionError):  # closed since it was looked at
                raw.sendall(b"x")
            sent += 1
            assert httpx2.get(f"{url}/api/state", timeout=60).status_code == 200
        with contextlib.suppress(ConnectionResetError):  # closed with a byte that nobody reads any more
            while part := raw.recv(65536):
                said += part
    assert sent < 100
    assert said.startswith(b"HTTP/1.1 408 ")
    assert f"{what} did not arrive within 1 seconds; send it again, over a faster connection".encode() in said


@pytest.mark.parametrize("path", ["/../../etc/passwd", "//etc/passwd", "/photo/small/../../page.html", "/page.css/.."])
def test_no_path_leads_out_that_a_browser_would_mend(desk: Desk, path: str) -> None:
    with served(desk) as url, socket.create_connection((HOST, int(url.rpartition(":")[2]))) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: {url[7:]}\r\nConnection: close\r\n\r\n".encode())
        assert raw.makefile("rb").read().startswith(b"HTTP/1.1 404 ")


def test_the_guard_stands_before_every_route(client: TestClient) -> None:
    for path in ("/", "/page.js", "/api/state", "/photo/small/" + "0" * 32, "/nothing"):
        assert client.get(path, headers={"host": "evil.example"}).status_code == 403
    for path in ("/api/text", "/api/picture", "/api/alike", "/api/heat"):
        assert client.post(path, headers={"origin": "http://evil.example"}).status_code == 403


def test_types_that_forms_can_send_are_refused(client: TestClient) -> None:
    for path in ("/api/text", "/api/picture", "/api/alike", "/api/heat"):
        for kind in ("text/plain", "multipart/form-data; boundary=a", "application/x-www-form-urlencoded"):
            answer = client.post(path, content=b"{}", headers={"content-type": kind})
            assert answer.status_code == 415
        assert client.get(path).status_code == 405


def test_fifty_at_once(desk: Desk) -> None:
    def ask(number: int) -> httpx2.Response:
        return httpx2.post(f"{url}/api/text", json={"query": TEXT, "candidates": STEP * (number % 2)}, timeout=60)

    with served(desk) as url, ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(ask, range(50)))
    assert {answer.status_code for answer in answers} == {200}
    for parity in (0, 1):
        orders = {tuple(hit["id"] for hit in answer.json()["hits"]) for answer in answers[parity::2]}
        assert len(orders) == 1


def test_pictures_are_sent_while_the_model_computes_and_who_has_left_is_not_answered(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()
    computed: list[str] = []

    def slow(model: Ranker, index: IndexView, text: str, *, top: int, candidates: int) -> Answer:
        computed.append(text)
        begun.set()
        assert go_on.wait(60)
        return Answer((), 0, {"pre_ranking": 0.0, "re_ranking": 0.0})

    monkeypatch.setattr("r2d2_jax.search.desk.pictures_for_text", slow)
    with served(desk) as url, ThreadPoolExecutor(2) as threads:
        question = {"query": TEXT, "candidates": 0}
        first = threads.submit(httpx2.post, f"{url}/api/text", json=question, timeout=60)
        assert begun.wait(60)
        assert httpx2.get(f"{url}/api/state").status_code == 200
        with pytest.raises(httpx2.ReadTimeout):
            httpx2.post(f"{url}/api/text", json={**question, "query": "蓝"}, timeout=0.3)
        last = threads.submit(httpx2.post, f"{url}/api/text", json={**question, "query": "方"}, timeout=60)
        go_on.set()
        assert (first.result().status_code, last.result().status_code) == (200, 200)
    assert computed == [TEXT, "方"]


def test_it_answers_while_the_index_is_written(desk: Desk, client: TestClient, photos: Path) -> None:
    with held(desk.index.folder, "a test", "--index"), Catalog(desk.index.folder) as catalog:
        with catalog.transaction():
            catalog.set_fact("complete", False)
        status, answer = posted(client, "/api/text", query=TEXT, candidates=STEP)
        assert (status, answer["complete"], len(answer["hits"])) == (200, False, PHOTOS)
    picture(photos / "new.png", 50)
    bring_up_to_date(desk.model, photos, desk.index.folder)
    _, answer = posted(client, "/api/text", query=TEXT, candidates=STEP)
    assert ["new.png"] in [hit["names"] for hit in answer["hits"]]
    identity = next(hit["id"] for hit in answer["hits"] if hit["names"] == ["new.png"])
    assert client.get(f"/photo/small/{identity}").status_code == 200
    (photos / "new.png").unlink()
    assert client.get(f"/photo/large/{identity}").status_code == 404
    shutil.copy(photos.parent / "secret.png", photos / "new.png")
    assert client.get(f"/photo/large/{identity}").status_code == 404
    assert posted(client, "/api/alike", id=identity)[0] == 404
    (photos / "new.png").unlink()
    bring_up_to_date(desk.model, photos, desk.index.folder)


def test_without_cross_encoders_there_is_one_ranking(photos: Path, tmp_path: Path) -> None:
    with client_of(small_desk(photos, tmp_path / "index", cross_layers=0)) as client:
        state = client.get("/api/state").json()
        assert (state["matches"], state["occlusion"], state["places"], state["candidates"]) == (False, False, [0], 0)
        status, answer = posted(client, "/api/text", query=TEXT, candidates=0)
        assert (status, len(answer["hits"])) == (200, PHOTOS)
        status, refused = posted(client, "/api/text", query=TEXT, candidates=16)
        assert (status, refused["error"]) == (400, "candidates is 16; expected one of 0")
        fields = {"id": answer["hits"][0]["id"], "query": TEXT, "words": "圆", "reading": "attention"}
        status, refused = posted(client, "/api/heat", **fields)
        assert status == 400
        assert "no cross encoders (PRD2)" in refused["error"]


def test_two_servers_on_one_port() -> None:
    with server.listening(HOST, 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen at {HOST}, port {port}: Address already in use; choose"):
            server.listening(HOST, port)
    server.listening(HOST, port).close()


@pytest.mark.parametrize("host", ["nowhere.invalid", "a b", "203.0.113.1", "\udcff"])
def test_addresses_that_are_not_here(host: str) -> None:
    with pytest.raises(UserError, match="; (name an address of this machine|choose another --port or --host)"):
        server.listening(host, 0)


def test_an_address_of_version_6_has_brackets() -> None:
    assert server.address("::1", 80) == "http://[::1]:80"
    assert server.address(HOST, 80) == "http://127.0.0.1:80"


def test_the_warm_up_asks_what_the_page_asks(desk: Desk) -> None:
    assert desk.warm_up() > 0
