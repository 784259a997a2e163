"""The image's Dockerfile, which cannot be built here: a linter reads it, and what it copies and calls exists."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from documented import ROOT

DOCKERFILE = ROOT / "docker" / "Dockerfile"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PAGE = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")


def instructions() -> Iterator[tuple[str, str]]:
    """Instruction and arguments, line by line, continued lines joined and comments left out."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(encoding="utf-8"), flags=re.MULTILINE).replace("\\\n", " ")
    for line in filter(None, text.splitlines()):
        word, _, rest = line.partition(" ")
        yield word, " ".join(rest.split())


def values(word: str) -> list[str]:
    return [rest for each, rest in instructions() if each == word]


def copied() -> list[str]:
    """What comes from the clone."""
    return [source for rest in values("COPY") if "--from=" not in rest for source in rest.split()[:-1]]


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKERFILE], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_exists_and_is_not_ignored() -> None:
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    assert set(copied()) == let_in
    assert [source for source in copied() if not (ROOT / source).exists()] == []


def test_every_link_of_the_package_leads_to_what_is_copied() -> None:
    links = [path for path in (ROOT / "r2d2_jax").rglob("*") if path.is_symlink()]
    targets = {link.resolve().relative_to(ROOT).as_posix() for link in links}
    assert targets
    assert targets <= set(copied())


def test_what_the_build_reads_of_the_project_is_copied() -> None:
    assert {PROJECT["readme"], *PROJECT["license-files"], "pyproject.toml"} <= set(copied())


def test_both_stages_have_the_same_pinned_python_that_the_package_takes() -> None:
    first, second = (rest.split()[0] for rest in values("FROM"))
    assert first == second
    version = re.fullmatch(r"python:3\.(\d+)\.\d+-slim-\w+", first)
    lowest, beyond = map(int, re.findall(r"3\.(\d+)", PROJECT["requires-python"]))
    assert version is not None
    assert lowest <= int(version[1]) < beyond


def test_it_does_not_run_as_root() -> None:
    words = [word for word, _ in instructions()]
    (user,) = values("USER")
    number, _, group = user.partition(":")
    assert int(number) == int(group) > 0
    assert f"--uid {number} " in next(rest for rest in values("RUN") if rest.startswith("useradd"))
    assert words.index("USER") > len(words) - 1 - words[::-1].index("RUN")  # what is installed, root owns


def test_what_it_calls_is_an_installed_command() -> None:
    (command,) = values("CMD")
    called = {json.loads(command)[0], *re.findall(r"r2d2_jax(?::gpu)? (r2d2-[\w-]+)", PAGE)}
    assert len(called) > 2
    assert called <= set(PROJECT["scripts"])


@pytest.mark.parametrize("text", [DOCKERFILE.read_text(encoding="utf-8"), PAGE], ids=["Dockerfile", "page"])
def test_extras_exist(text: str) -> None:
    named = {extra for extras in re.findall(r"EXTRAS=([\w,]+)", text) for extra in extras.split(",")}
    assert named
    assert named <= set(PROJECT["optional-dependencies"])
