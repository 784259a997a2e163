"""Paths in a bucket do what those on a disk do; what cannot be opened is refused with the reason."""

import sys
from collections.abc import Callable

import pytest
from bucket_server import BUCKET, FORBIDS, BucketServer

from r2d2_jax.buckets.path import BucketError, BucketPath, bucket_path, check_access, check_access_of_runs
from r2d2_jax.errors import UserError
from r2d2_jax.paths import literal_path, path_or_bucket, user_path


def test_files_and_folders(bucket: BucketPath) -> None:
    assert not bucket.exists()
    (bucket / "a" / "x.txt").write_text("狗")
    (bucket / "a" / "b" / "y.bin").write_bytes(b"\0\1")
    assert (bucket / "a" / "x.txt").read_text() == "狗"
    assert (bucket / "a" / "b" / "y.bin").read_bytes() == b"\0\1"
    assert (bucket / "a").is_dir()
    assert not (bucket / "a").is_file()
    assert (bucket / "a" / "x.txt").is_file()
    assert sorted(path.name for path in (bucket / "a").iterdir()) == ["b", "x.txt"]
    assert sorted(str(path) for path in bucket.rglob("*")) == [f"{bucket}/a/b/y.bin", f"{bucket}/a/x.txt"]
    assert [path.name for path in bucket.glob("*/x.txt")] == ["x.txt"]
    (bucket / "a" / "x.txt").unlink()
    assert [path.name for path in (bucket / "a").iterdir()] == ["b"]


def test_what_another_client_writes_is_seen_at_once(bucket: BucketPath, server: BucketServer) -> None:
    """A listing that was remembered would hide it."""
    (bucket / "x").write_text("1")
    assert [path.name for path in bucket.iterdir()] == ["x"]
    name = str(bucket).removeprefix(f"gs://{BUCKET}/")
    resource = dict(server.storage.get_file_obj(BUCKET, f"{name}/x"), name=f"{name}/y")
    server.storage.create_file(BUCKET, f"{name}/y", b"2", resource)
    assert sorted(path.name for path in bucket.iterdir()) == ["x", "y"]


@pytest.mark.parametrize("ask", [BucketPath.exists, BucketPath.is_dir, BucketPath.is_file, BucketPath.read_bytes])
def test_what_cannot_be_seen_is_not_taken_for_absent(
    ask: Callable[[BucketPath], object], bucket: BucketPath, server: BucketServer
) -> None:
    """As gcsfs takes it: a run whose checkpoints cannot be seen would start anew."""
    (bucket / "x").write_text("1")
    with server.faulty(FORBIDS), pytest.raises(BucketError, match=r"^Forbidden: .*; give its account roles/storage"):
        ask(bucket / "x")


def test_its_name_stays_as_it_is(bucket: BucketPath) -> None:
    assert str(bucket) == str(path_or_bucket(str(bucket))) == str(bucket.absolute())
    assert literal_path(bucket, "--workdir") is bucket
    assert bucket.bucket_and_name() == (BUCKET, str(bucket).rpartition("/")[2])


def test_addresses_that_cannot_be_opened() -> None:
    with pytest.raises(UserError) as refused:
        path_or_bucket("s3://bucket/run")
    assert str(refused.value) == (
        "s3://bucket/run is an address of s3://, which cannot be opened; expected a local or mounted folder, or "
        "gs://BUCKET/FOLDER. Orbax writes checkpoints to Google Cloud Storage alone: mount other buckets"
    )
    with pytest.raises(UserError, match=r"^gs:/// names no bucket; expected gs://BUCKET/FOLDER$"):
        path_or_bucket("gs:///")
    with pytest.raises(UserError) as refused:
        user_path("gs://bucket/data")
    assert str(refused.value) == (
        "gs://bucket/data is an address; expected a local or mounted path: mount it first, or copy it"
    )


def test_without_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"^gs://bucket/run needs gcsfs, .*: pip install -e '\.\[gcs\]'$"):
        bucket_path("gs://bucket/run")


def test_access(bucket: BucketPath, server: BucketServer) -> None:
    check_access(bucket)
    with pytest.raises(UserError, match=r"^cannot use gs://another/run: 404 .*; check the name of the bucket and the"):
        check_access(bucket_path("gs://another/run"))
    for check in (check_access, check_access_of_runs):
        check(bucket)
        with server.faulty(FORBIDS), pytest.raises(UserError) as refused:
            check(bucket)
        assert str(refused.value).startswith(f"cannot use {bucket}: 403 ")
        assert str(refused.value).endswith(
            "; give its account roles/storage.objectUser and roles/storage.legacyBucketReader of the bucket"
        )
