"""Files that grow on the disk, and are copied to a bucket from time to time."""

import time

import pytest
from bucket_server import BUCKET, FORBIDS, BucketServer

from r2d2_jax.buckets import mirror
from r2d2_jax.buckets.mirror import Mirror
from r2d2_jax.buckets.path import BucketPath
from r2d2_jax.errors import UserError


def test_what_has_changed_is_copied(bucket: BucketPath, server: BucketServer) -> None:
    copied = Mirror(bucket)
    (copied.folder / "a").write_text("1")
    (copied.folder / "below").mkdir()
    (copied.folder / "below" / "b").write_text("2")
    copied.copy()
    assert (bucket / "a").read_text() + (bucket / "below" / "b").read_text() == "12"
    name = bucket.bucket_and_name()[1]
    before = server.storage.generation(BUCKET, f"{name}/below/b")
    with (copied.folder / "a").open("a") as file:
        file.write("3")
    copied.copy()
    assert (bucket / "a").read_text() == "13"
    assert server.storage.generation(BUCKET, f"{name}/below/b") == before
    with (copied.folder / "a").open("a") as file:
        file.write("4")
    copied.close()
    assert (bucket / "a").read_text() == "134"
    assert not copied.folder.exists()


def test_a_thread_copies(bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror, "COPY_SECONDS", 0.05)
    copied = Mirror(bucket)
    (copied.folder / "a").write_text("1")
    deadline = time.monotonic() + 20
    while not (bucket / "a").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (bucket / "a").read_text() == "1"
    copied.close()


def test_a_bucket_that_forbids(
    bucket: BucketPath, server: BucketServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The thread warns; who asks for a copy is refused."""
    monkeypatch.setattr(mirror, "COPY_SECONDS", 0.05)
    copied = Mirror(bucket)
    said = f"cannot write {bucket}: "
    with server.faulty(FORBIDS):
        (copied.folder / "a").write_text("1")
        with pytest.raises(UserError, match=f"^{said}.*; give its account roles/storage.objectUser"):
            copied.copy()
        deadline = time.monotonic() + 20
        while said not in caplog.text and time.monotonic() < deadline:
            time.sleep(0.05)
        assert said in caplog.text
    copied.close()
    assert (bucket / "a").read_text() == "1"
