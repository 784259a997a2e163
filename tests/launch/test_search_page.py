"""search.py --serve: from the command to an answer, stopped by either signal, and one message for whatever is wrong."""

import json
import os
import re
import signal
import socket
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from programs import ROOT, called
from random_models import VOCABULARY, random_model
from small_photos import photographs

from r2d2_jax.convert.conversion import write_model
from r2d2_jax.launch import search
from r2d2_jax.search.server import listening

HOST = "127.0.0.1"
TOML = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, one without cross encoders, one without vocabulary, and photographs."""
    path = tmp_path_factory.mktemp("page")
    write_model(random_model(tokens=VOCABULARY), path / "model")
    write_model(random_model(cross_layers=0, tokens=VOCABULARY), path / "prd2")
    write_model(random_model(), path / "no_vocabulary")
    photographs(path / "photos", 6)
    return path


def asked(folder: Path, *flags: str, model: str = "model"):
    where = [f"--checkpoint={folder / model}", f"--photos={folder / 'photos'}", f"--index={folder / model}-index"]
    return called(search.main, *where, *flags)


def free_port() -> int:
    with listening(HOST, 0) as listener:
        return listener.getsockname()[1]


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM])
def test_it_serves_until_it_is_stopped(folder: Path, end: signal.Signals) -> None:
    port, answers = free_port(), []
    url, deadline = f"http://{HOST}:{port}", time.monotonic() + 240

    def ask() -> None:
        question = json.dumps({"query": "红圆", "candidates": 5}).encode()
        asking = urllib.request.Request(f"{url}/api/text", question, {"content-type": "application/json"})
        try:
            while time.monotonic() < deadline and len(answers) < 2:
                try:
                    for each in (f"{url}/", asking):
                        with urllib.request.urlopen(each, timeout=240) as answer:
                            answers.append(answer.read())
                except OSError:  # it does not listen yet
                    time.sleep(0.05)
        finally:  # else it would be served for ever
            os.kill(os.getpid(), end)

    thread = threading.Thread(target=ask)
    thread.start()
    done = asked(folder, "--serve", f"--port={port}", "--candidates=5")
    thread.join()
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0].startswith("6 pictures in the index: ")
    assert lines[1] == "compiling what a question needs"
    assert re.fullmatch(r"compiled in \d+ s", lines[2])
    assert lines[3:] == [f"serving at http://{HOST}:{port}; Ctrl-C ends it"]
    assert answers[0].startswith(b"<!DOCTYPE html>")
    assert json.loads(answers[1])["candidates"] == 5


def test_the_port_of_another_program_is_refused_before_anything_is_loaded(folder: Path) -> None:
    with listening(HOST, 0) as listener:
        port = listener.getsockname()[1]
        done = asked(folder, "--serve", f"--port={port}", model="nowhere")
    assert done.returncode == 2
    message = f"error: cannot listen at {HOST}, port {port}: Address already in use; choose another --port or --host"
    assert done.stderr.strip() == message


@pytest.mark.parametrize(
    ("flags", "model", "message"),
    [
        (["--query=圆"], "model", "--query and --serve are both given; ask on the page, without --query"),
        (["--image=a.png"], "model", "--image and --serve are both given; ask on the page, without --image"),
        (["--json=a.json"], "model", "--json and --serve are both given; ask on the page, without --json"),
        (["--top=3"], "model", "--top and --serve are both given; ask on the page, without --top"),
        (["--captions=a.txt"], "model", "--captions and --serve are both given"),
        (["--port=-1"], "model", "--port is -1; expected 0 to 65,535"),
        (["--port=65536"], "model", "--port is 65536; expected 0 to 65,535"),
        (["--host=nowhere.invalid"], "model", "--host=nowhere.invalid is not found: "),
        (["--port=0", "--candidates=3"], "prd2", "the model has no cross encoders (PRD2)"),
        (["--port=0"], "no_vocabulary", "the model came without a vocabulary"),
        (["--port=0", "--no_update"], "model", "holds no index; index the photographs first, without --no_update"),
    ],
)
def test_bad_input_is_one_message(folder: Path, flags: list[str], model: str, message: str, tmp_path: Path) -> None:
    done = asked(folder, "--serve", *flags, f"--index={tmp_path / 'index'}", model=model)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("flag", ["--host=0.0.0.0", "--port=8360"])
def test_flags_of_the_page_alone(folder: Path, flag: str) -> None:
    done = asked(folder, flag, "--query=圆")
    assert done.returncode == 2
    assert f"{flag.partition('=')[0]} is of the page in a browser; give --serve, too" in done.stderr


def test_without_the_extra_the_message_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "starlette", None)
    done = asked(folder, "--serve")
    assert done.returncode == 2
    assert "--serve needs starlette, which is not installed: pip install -e '.[search]'" in done.stderr


def test_who_else_can_reach_the_page_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("r2d2_jax.search.server.serve", lambda *_: None)
    everywhere = asked(folder, "--serve", "--host=0.0.0.0", "--port=0")
    here = asked(folder, "--serve", "--host=localhost", "--port=0")
    assert (everywhere.returncode, here.returncode) == (0, 0)
    warning = "whoever reaches this port can search and see these photographs: there is no password"
    assert warning in everywhere.stderr
    assert here.stderr == ""
    assert f"serving at http://{socket.gethostname()}:" in everywhere.stdout


def test_an_installed_package_holds_the_page() -> None:
    assert '"search/page/*"' in TOML
    folder = ROOT / "r2d2_jax" / "search" / "page"
    assert {path.name for path in folder.iterdir()} == {"page.html", "page.css", "page.js", "words.json", "icon.svg"}
