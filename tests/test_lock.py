"""One process at a time in a folder, whoever the other is and however it ended."""

import contextlib
import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from r2d2_jax import lease, processes
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


@pytest.fixture(params=[errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP], ids=errno.errorcode.get)
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file system that knows no locks; what it says of them."""

    def refuse(*arguments: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lease, "LAPSES_AFTER", 0.4)
    return os.strerror(request.param)


def hold(folder: Path) -> contextlib.AbstractContextManager[None]:
    return held(folder, "another run", "--workdir")


def test_where_nothing_can_be_locked_the_file_is_the_lock(
    tmp_path: Path, no_locks: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with hold(tmp_path):
        (warning,) = caplog.messages
        assert warning.startswith(f"{tmp_path} lies on a file system without locks ({no_locks}): its lock is a file ")
        assert "mount Lustre with flock, NFS as version 4" in warning
        monkeypatch.setattr(lease, "LAPSES_AFTER", 20.0)  # a busy machine may not let the holder write for a second
        with pytest.raises(UserError) as refused:
            hold(tmp_path).__enter__()
        assert str(refused.value).startswith(f"another run is at work in {tmp_path}; let it end, or choose another ")
        assert f". It is process {os.getpid()} on " in str(refused.value)
    assert list(tmp_path.iterdir()) == []
    with hold(tmp_path):
        pass


WRITTEN = f"\n{lease.WRITTEN_AGAIN} somebody\n000000000007\n"


@pytest.mark.parametrize(
    "left",
    [
        f"process 999999999 on {socket.gethostname()} since 2026-01-01 00:00:00 +0000",
        f"process 1 on {socket.gethostname()} since 2026-01-01 00:00:00 +0000{WRITTEN}",
        f"process 1 on elsewhere since 2026-01-01 00:00:00 +0000{WRITTEN}",
        "\x00\x00\x00\x00",
        "",
    ],
)
@pytest.mark.usefixtures("no_locks")
def test_what_nobody_writes_any_more_is_taken_over(tmp_path: Path, left: str) -> None:
    """Whatever machine it is of, and although another process may have the number of the one that wrote it."""
    (tmp_path / "lock").write_text(left)
    with hold(tmp_path):
        assert (tmp_path / "lock").read_text().startswith(f"process {os.getpid()} on ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize("host", ["elsewhere", socket.gethostname()])
def test_a_lock_that_another_system_keeps_is_not_taken(tmp_path: Path, host: str) -> None:
    """That of a machine which has the folder mounted with locks: it is written once, and nobody here knows its end."""
    (tmp_path / "lock").write_text(f"process 1 on {host} since 2026-01-01 00:00:00 +0000")
    with pytest.raises(UserError, match=f"It is process 1 on {host} .*; if that has ended, remove {tmp_path}/lock"):
        hold(tmp_path).__enter__()


def test_a_machine_with_locks_heeds_one_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)
    monkeypatch.setattr(lease, "LAPSES_AFTER", 20.0)
    taken = lease.FileLease(tmp_path / "lock")
    taken.take("nobody else is here")
    with lease.beating(taken), pytest.raises(UserError, match="^another run is at work in "):
        hold(tmp_path).__enter__()
    monkeypatch.setattr(lease, "LAPSES_AFTER", 0.4)
    taken.take("nobody else is here")  # and then dies
    with hold(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_lease_that_is_given_back_while_a_machine_with_locks_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the machine has locked is nobody's file then, and it locks the one that is there."""
    other = lease.FileLease(tmp_path / "lock")
    other.take("nobody else is here")
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: other.give_back())
    with hold(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / "lock").read_text()
        assert lease.WRITTEN_AGAIN not in (tmp_path / "lock").read_text()


def test_a_holder_whose_lock_another_has_moved_and_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that looked at it when it seemed to have lapsed: the lock is still the holder's."""
    taken = lease.FileLease(tmp_path / "lock")
    taken.take("nobody else is here")
    with monkeypatch.context() as patch:
        patch.setattr(taken, "_write_again", lambda: False)
        assert taken.renew()
    (tmp_path / "lock").write_text(f"process 8 on elsewhere since now{WRITTEN}")
    assert not taken.renew()


@pytest.mark.usefixtures("no_locks")
def test_who_has_lost_its_lock_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left = threading.Event()
    monkeypatch.setattr(processes, "leave_at_once", lambda status: left.set())
    with hold(tmp_path):
        (tmp_path / "lock").write_text(f"process 8 on elsewhere since now{WRITTEN}")
        assert left.wait(20)
    assert f"another process has taken the lock {tmp_path}/lock, so this one ends without saving" in caplog.text
    assert "process 8" in (tmp_path / "lock").read_text()  # which this one must not remove


@pytest.mark.usefixtures("no_locks")
def test_a_lock_that_is_removed_is_made_again(tmp_path: Path) -> None:
    with hold(tmp_path):
        (tmp_path / "lock").unlink()
        end = time.monotonic() + 20
        while not (tmp_path / "lock").exists() and time.monotonic() < end:
            time.sleep(0.01)
        assert (tmp_path / "lock").exists()


def test_of_two_that_take_over_one_alone_succeeds(tmp_path: Path) -> None:
    """The second finds another file than the one that it has seen, and leaves it where it is."""
    (tmp_path / "lock").write_text("stale")
    first, second = (lease.FileLease(tmp_path / "lock") for _ in range(2))
    assert first._write("stale")
    assert not second._write("stale")
    assert not second._write(None)
    assert first.renew()
    assert len(list(tmp_path.iterdir())) == 1


def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    first, second = (lease.FileLease(tmp_path / "lock") for _ in range(2))
    assert first._write(None)
    assert not second._write(None)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_lock_call_that_fails_otherwise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", fail)
    message = f"^cannot lock {tmp_path}/lock: Input/output error; check the file system, or choose another --workdir$"
    with pytest.raises(UserError, match=message):
        hold(tmp_path).__enter__()


@pytest.mark.parametrize("name", ["file", "file/run"])
def test_a_folder_that_cannot_be(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*/file.*: .*; check --workdir and its permissions"):
        held(tmp_path / name, "another run", "--workdir").__enter__()
