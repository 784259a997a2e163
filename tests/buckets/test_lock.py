"""One process at a time in a folder of a bucket, by a lock that lapses when nobody writes it any more."""

import contextlib
import os
import socket
import time
from typing import Any

import pytest
from bucket_server import BUCKET, FORBIDS, REFUSES, BucketServer

from r2d2_jax import lease, processes
from r2d2_jax.buckets.lock import BucketLease, held_in_bucket
from r2d2_jax.buckets.path import BucketPath
from r2d2_jax.errors import UserError

ELSEWHERE = "process 7 on another-machine since yesterday\nits mark\n"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    monkeypatch.setattr(lease, "LAPSES_AFTER", 1.0)


def hold(bucket: BucketPath) -> contextlib.AbstractContextManager[None]:
    return held_in_bucket(bucket, "another run", "--workdir")


def test_the_second_hears_who_is_at_work(
    bucket: BucketPath, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("INFO")
    with hold(bucket):
        monkeypatch.setattr(lease, "LAPSES_AFTER", 20.0)  # a busy machine may not let the holder write for a second
        with pytest.raises(UserError) as refused, hold(bucket):
            pass
        assert str(refused.value).startswith(
            f"another run is at work in {bucket}; let it end, or choose another --workdir. It is process {os.getpid()} "
            f"on {socket.gethostname()} since 2"
        )
        assert "; waiting up to 20 s to see whether that is still at work" in caplog.text
    assert not (bucket / "lock").exists()
    with hold(bucket):
        pass


def test_a_lock_that_nobody_writes_is_taken_over(bucket: BucketPath) -> None:
    (bucket / "lock").write_text(ELSEWHERE)
    start = time.monotonic()
    with hold(bucket):
        assert time.monotonic() - start > 1.0
        assert (bucket / "lock").read_text().startswith(f"process {os.getpid()} on ")


def test_that_of_a_process_of_this_machine_that_is_gone_at_once(
    bucket: BucketPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "LAPSES_AFTER", 600.0)
    (bucket / "lock").write_text(f"process {2**22 + 1} on {socket.gethostname()} since yesterday\nits mark\n")
    start = time.monotonic()
    with hold(bucket):
        assert time.monotonic() - start < 60


def test_what_is_removed_while_somebody_waits_is_free(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "LAPSES_AFTER", 600.0)
    (bucket / "lock").write_text(ELSEWHERE)
    monkeypatch.setattr(lease.time, "sleep", lambda seconds: (bucket / "lock").unlink())
    with hold(bucket):
        pass


def test_of_two_that_take_over_one_alone_succeeds(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process takes the lock between the last look of this one and its write."""
    (bucket / "lock").write_text(ELSEWHERE)
    original = BucketLease.wait_for_the_holder
    waits = []

    def wait(taken: BucketLease, generation: Any, text: str, refusal: str) -> None:
        waits.append(text)
        if len(waits) == 1:
            (bucket / "lock").write_text("process 8 on a third machine since now\nits mark\n")
        else:
            original(taken, generation, text, refusal)

    monkeypatch.setattr(BucketLease, "wait_for_the_holder", wait)
    with hold(bucket):
        assert waits == [ELSEWHERE, "process 8 on a third machine since now\nits mark\n"]


def test_a_write_whose_answer_was_lost_is_known_as_its_own(bucket: BucketPath, server: BucketServer) -> None:
    with hold(bucket):
        taken = BucketLease(bucket / "lock")
        taken._text = (bucket / "lock").read_text()  # as if this one had written it, and not heard of it
        assert taken._write(None)
        assert taken._write(taken._version)


def test_a_process_that_has_lost_its_lock_ends_at_once(
    bucket: BucketPath, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    left: list[int] = []
    monkeypatch.setattr(processes, "leave_at_once", left.append)
    with hold(bucket):
        (bucket / "lock").write_text(ELSEWHERE)
        deadline = time.monotonic() + 20
        while not left and time.monotonic() < deadline:
            time.sleep(0.05)
    assert left[0] == 1
    assert f"another process has taken the lock {bucket}/lock, so this one ends without saving" in caplog.text
    assert (bucket / "lock").read_text() == ELSEWHERE  # which this one must not remove
    assert f"the lock {bucket}/lock was not removed: 412" in caplog.text


def test_a_lock_that_somebody_removes_is_made_again(bucket: BucketPath) -> None:
    with hold(bucket):
        (bucket / "lock").unlink()
        deadline = time.monotonic() + 20
        while not (bucket / "lock").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert (bucket / "lock").exists()


def test_a_bucket_that_forbids(bucket: BucketPath, server: BucketServer) -> None:
    with server.faulty(FORBIDS), pytest.raises(UserError, match=f"^cannot use {bucket}: 403 .*storage.objectUser"):
        hold(bucket).__enter__()


def test_an_outage_does_not_lose_the_lock(bucket: BucketPath, server: BucketServer) -> None:
    with hold(bucket):
        before = server.storage.get_file_obj(BUCKET, bucket.bucket_and_name()[1] + "/lock")["generation"]
        with server.faulty(REFUSES):
            time.sleep(0.5)
        deadline = time.monotonic() + 20
        after = before
        while after == before and time.monotonic() < deadline:
            time.sleep(0.05)
            after = server.storage.get_file_obj(BUCKET, bucket.bucket_and_name()[1] + "/lock")["generation"]
        assert after != before
