"""One process at a time in a folder, whoever the other is and however it ended."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import IO

import pytest

from r2d2_jax.errors import UserError
from r2d2_jax.lock import held

ROOT = Path(__file__).resolve().parents[1]


def test_the_second_hears_who_is_at_work(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "run"
    with held(folder, "another run", "--workdir"):
        with pytest.raises(UserError) as refused, held(folder, "another run", "--workdir"):
            pass
        assert str(refused.value).startswith(
            f"another run is at work in {folder}; let it end, or choose another --workdir. It is process {os.getpid()} "
            f"on {socket.gethostname()} since 2"
        )
        assert str(refused.value).endswith(f"; if that has ended, remove {folder}/lock")
    with held(folder, "another run", "--workdir"):
        pass
    assert not (folder / "lock").exists()


def test_what_fails_leaves_an_empty_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), held(tmp_path, "another run", "--workdir"):
        raise KeyError
    assert (tmp_path / "lock").read_text() == ""


def test_a_lock_that_its_holder_removes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was opened just before is nobody's file any more; the lock of a third process is another one."""
    original, opened = fcntl.flock, []

    def flock(file: IO[bytes], how: int) -> None:
        if not opened:
            (tmp_path / "lock").unlink()
        opened.append(file)
        original(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    with held(tmp_path, "another run", "--workdir"):
        assert len(opened) == 2
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()


def test_a_folder_that_is_removed_at_work(tmp_path: Path) -> None:
    """As a preparation does with its own; a lock that another process has taken there since stays."""
    with held(tmp_path / "a", "another preparation", "--output"):
        shutil.rmtree(tmp_path / "a")
    with held(tmp_path / "a", "another preparation", "--output"):
        shutil.rmtree(tmp_path / "a")
        other = held(tmp_path / "a", "another preparation", "--output")
        other.__enter__()
    assert (tmp_path / "a" / "lock").exists()
    other.__exit__(None, None, None)
    assert not (tmp_path / "a" / "lock").exists()


def test_another_process_that_is_killed_lets_go(tmp_path: Path) -> None:
    program = """
import sys, time
from pathlib import Path
from r2d2_jax.lock import held
with held(Path(sys.argv[1]), "another run", "--workdir"):
    print("held", flush=True)
    time.sleep(60)
"""
    other = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        with (
            pytest.raises(UserError, match=f"It is process {other.pid} on "),
            held(tmp_path, "another run", "--workdir"),
        ):
            pass
        other.send_signal(signal.SIGKILL)
    assert f"process {other.pid} on " in (tmp_path / "lock").read_text()
    with held(tmp_path, "another run", "--workdir"):
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()


@pytest.fixture
def no_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that knows no locks."""

    def refuse(*arguments: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
def test_where_nothing_can_be_locked_the_file_is_the_lock(tmp_path: Path) -> None:
    with held(tmp_path, "another run", "--workdir"), pytest.raises(UserError, match="another run is at work"):
        held(tmp_path, "another run", "--workdir").__enter__()
    with held(tmp_path, "another run", "--workdir"):
        pass


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    "left, taken",
    [
        (f"process 999999999 on {socket.gethostname()} since 2026-01-01 00:00:00 +0000", True),
        (f"process 1 on {socket.gethostname()} since 2026-01-01 00:00:00 +0000", False),
        ("process 999999999 on elsewhere since 2026-01-01 00:00:00 +0000", False),
        ("\x00\x00\x00\x00", True),
    ],
)
def test_what_a_machine_without_locks_left(tmp_path: Path, left: str, taken: bool) -> None:
    """The process of this machine is known to be gone; of any other the message names the file to remove."""
    (tmp_path / "lock").write_text(left)
    if taken:
        with held(tmp_path, "another run", "--workdir"):
            pass
    else:
        with pytest.raises(UserError, match=f"has ended, remove {tmp_path}/lock"):
            held(tmp_path, "another run", "--workdir").__enter__()


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*/file.*: .*; check --workdir and its permissions"):
        held(tmp_path / name, "another run", "--workdir").__enter__()
