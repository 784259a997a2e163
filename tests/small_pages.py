"""A served page of small random models: its application in this process, or its server on a free port of 127.0.0.1."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import uvicorn
from random_models import VOCABULARY, random_model, with_words_head
from starlette.testclient import TestClient

from r2d2_jax.inference import Ranker
from r2d2_jax.search.desk import STEP, Desk
from r2d2_jax.search.index import bring_up_to_date
from r2d2_jax.search.server import address, application, listening
from r2d2_jax.search.view import IndexView

HOST = "127.0.0.1"


def small_desk(photos: Path, folder: Path, candidates: int = STEP, **changes: int) -> Desk:
    """A desk over the photographs of a folder, which are indexed; its model has the head of masked words."""
    plain = random_model(tokens=VOCABULARY, **changes)
    model = Ranker(with_words_head(plain) if plain.config.cross.layers else plain, batch_size=STEP)
    bring_up_to_date(model, photos, folder)
    return Desk(model, IndexView(folder, photos, model.model), candidates if model.matches else 0)


@contextlib.contextmanager
def client_of(desk: Desk, host: str = HOST) -> Iterator[TestClient]:
    """What a page of this server sends, unless other headers are given; a bug is an answer, not an exception."""
    with TestClient(application(desk, host), base_url=f"http://{HOST}:8360") as client:
        client.headers["origin"] = f"http://{HOST}:8360"
        yield client


@contextlib.contextmanager
def served(desk: Desk) -> Iterator[str]:
    """The address of a server that runs in a thread of this process."""
    listener = listening(HOST, 0)
    server = uvicorn.Server(uvicorn.Config(application(desk, HOST), log_config=None, log_level="critical"))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield address(HOST, listener.getsockname()[1])
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def posted(client: TestClient, path: str, **fields: Any) -> tuple[int, dict[str, Any]]:
    """Status and JSON of a question."""
    answer = client.post(path, json=fields)
    return answer.status_code, json.loads(answer.content)
