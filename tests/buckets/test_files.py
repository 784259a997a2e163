"""Files and folders that appear in a bucket whole, and copies on the disk for libraries that read nothing else."""

import os
from pathlib import Path

import pytest
from bucket_server import FORBIDS, HANGS, REFUSES, BucketServer

from r2d2_jax.atomic import written_whole
from r2d2_jax.buckets import patience
from r2d2_jax.buckets.path import BucketError, BucketPath
from r2d2_jax.buckets.transfer import crc32c, measured_there, move, on_disk
from r2d2_jax.errors import UserError


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of outages; gcsfs and Google's client have messages of their own."""
    return [record.getMessage() for record in caplog.records if record.name == patience.__name__]


def test_a_file_and_a_folder(bucket: BucketPath) -> None:
    with written_whole(bucket / "a.json") as unfinished:
        unfinished.write_text("狗", encoding="utf-8")
        assert not (bucket / "a.json").exists()
    assert (bucket / "a.json").read_text() == "狗"
    with written_whole(bucket / "model") as unfinished:
        (unfinished / "deep").mkdir(parents=True)
        (unfinished / "deep" / "x").write_bytes(os.urandom(100))
        (unfinished / "config.json").write_text("{}")
    assert sorted(path.name for path in (bucket / "model").rglob("*")) == ["config.json", "x"]


def test_what_fails_leaves_nothing(bucket: BucketPath, server: BucketServer) -> None:
    with pytest.raises(ZeroDivisionError), written_whole(bucket / "a") as unfinished:
        unfinished.write_text(str(1 / 0))
    assert not (bucket / "a").exists()
    assert not unfinished.exists()
    said = f"^cannot write {bucket}/a: .*; give its account roles/storage.objectUser and .* of the bucket$"
    with server.faulty(FORBIDS), pytest.raises(UserError, match=said), written_whole(bucket / "a") as unfinished:
        unfinished.write_text("whole")
    assert not (bucket / "a").exists()


def test_patience_ends(
    bucket: BucketPath, server: BucketServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def no_pause(seconds: float) -> None:
        monkeypatch.setattr(patience, "PATIENCE", 0.0)

    monkeypatch.setattr(patience, "PATIENCE", 60.0)
    monkeypatch.setattr(patience, "_UNTOLD", 0.0)
    monkeypatch.setattr(patience, "_lines", patience._Lines())
    monkeypatch.setattr(patience.asyncio, "sleep", no_pause)
    with (
        server.faulty(REFUSES),
        pytest.raises(BucketError, match="a: by the stand-in of the tests, 503; check the name of"),
    ):
        (bucket / "a").read_text()
    assert told(caplog) == [
        "the bucket does not answer: by the stand-in of the tests, 503; trying again, for 1 min in all"
    ]


def test_a_bucket_that_hangs_is_told(
    bucket: BucketPath, server: BucketServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """After the first silence, and not after six of them, as gcsfs would."""
    (bucket / "a").write_text("whole")
    monkeypatch.setattr(patience, "SILENCE", 0.2)
    monkeypatch.setattr(patience, "_UNTOLD", 0.1)
    monkeypatch.setattr(patience, "_lines", patience._Lines())
    filesystem = patience.PatientFileSystem(skip_instance_cache=True)
    assert filesystem.cat_file(str(bucket / "a")) == b"whole"  # the connection is there before the bucket hangs
    server.faulty_for(0.5, HANGS)
    assert filesystem.cat_file(str(bucket / "a")) == b"whole"
    (said,) = told(caplog)
    assert said.startswith("the bucket does not answer: Timeout on reading data")


def test_a_moment_is_not_told(bucket: BucketPath, server: BucketServer, caplog: pytest.LogCaptureFixture) -> None:
    (bucket / "a").write_text("whole")
    server.faulty_for(0.2, REFUSES)
    assert (bucket / "a").read_text() == "whole"
    assert not told(caplog)


def test_a_copy_on_the_disk(bucket: BucketPath) -> None:
    (bucket / "model" / "config.json").write_text("{}")
    (bucket / "model" / "deep" / "x").write_text("1")
    with on_disk(str(bucket / "model")) as copy:
        assert Path(copy).name == "model"
        assert (Path(copy) / "deep" / "x").read_text() == "1"
        with on_disk(str(bucket / "model" / "config.json")) as file:
            assert Path(file).read_text() == "{}"
    assert not Path(copy).exists()
    with on_disk("openai/clip-vit-large-patch14") as name:
        assert name == "openai/clip-vit-large-patch14"
    with (
        pytest.raises(UserError, match=f"^{bucket}/model is damaged$"),
        on_disk(str(bucket / "model")) as copy,
    ):
        raise UserError(f"{copy} is damaged")


def test_other_names(bucket: BucketPath) -> None:
    (bucket / "16" / "a").write_text("1")
    (bucket / "16" / "deep" / "b").write_text("2")
    move(bucket / "16", bucket / "16.damaged")
    assert not (bucket / "16").exists()
    assert (bucket / "16.damaged" / "a").read_text() + (bucket / "16.damaged" / "deep" / "b").read_text() == "12"


def test_checksums_there_and_here_are_the_same(bucket: BucketPath, tmp_path: Path) -> None:
    content = os.urandom(100_000)
    (tmp_path / "a").write_bytes(content)
    (bucket / "deep" / "a").write_bytes(content)
    assert measured_there(bucket) == {"deep/a": (100_000, crc32c(tmp_path / "a"))}
