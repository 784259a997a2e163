"""Runs whose folder lies in a bucket leave there what a run on a disk leaves, however they are disturbed."""

import os
from pathlib import Path

import pytest
from bucket_server import HANGS, REFUSES, THROTTLES, BucketServer
from small_model import assert_bitwise_equal, config_values, log_lines, saved_state
from small_runs import RUN, before_batch, kept, killed_before_batch, run

from r2d2_jax import lease
from r2d2_jax.buckets.lock import held_in_bucket
from r2d2_jax.buckets.path import COMMITTED, BucketPath
from r2d2_jax.buckets.transfer import download
from r2d2_jax.damage import steps_of
from r2d2_jax.errors import UserError
from r2d2_jax.runs import load_state
from r2d2_jax.train.checkpoint import settle_damage


def assert_as_undisturbed(workdir: BucketPath, undisturbed: Path) -> None:
    """Same final state, same log (but for speed), same evaluation, same checkpoints kept, and no lock."""
    assert_bitwise_equal(saved_state(workdir), saved_state(undisturbed))
    assert log_lines(workdir) == log_lines(undisturbed)
    assert (workdir / "evaluation.json").read_text() == (undisturbed / "evaluation.json").read_text()
    assert kept(workdir) == kept(undisturbed)
    names = {path.name for path in workdir.iterdir()}
    assert names == {path.name for path in undisturbed.iterdir()}


def test_a_run_in_a_bucket_leaves_what_one_on_a_disk_does(
    prepared: Path, undisturbed: Path, bucket: BucketPath
) -> None:
    assert run(prepared, bucket / "run", RUN).finished
    assert_as_undisturbed(bucket / "run", undisturbed)
    (events,) = (bucket / "run" / "tensorboard").iterdir()
    assert events.stat().length > 1000


def test_a_killed_run_goes_on_exactly(prepared: Path, undisturbed: Path, bucket: BucketPath) -> None:
    """SIGKILL before step 10: the log, copied before the checkpoint of step 6, goes on from there."""
    values = config_values(RUN, {"data": {"directory": str(prepared)}})
    killed_before_batch(10, values, bucket / "run")
    assert [line["step"] for line in log_lines(bucket / "run")] == [4, 6]
    assert (bucket / "run" / "lock").exists()
    assert run(prepared, bucket / "run", RUN).finished
    assert_as_undisturbed(bucket / "run", undisturbed)


@pytest.mark.parametrize("fault", [REFUSES, THROTTLES, HANGS])
def test_an_outage_costs_a_message_and_no_run(
    fault: int,
    prepared: Path,
    undisturbed: Path,
    bucket: BucketPath,
    server: BucketServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It begins before step 6, after which the run evaluates and saves, and lasts while it does."""
    outages = []

    def fail(call: int) -> None:
        if call == 6:
            outages.append(server.faulty_for(3.0, fault))

    with monkeypatch.context() as patch:
        before_batch(patch, fail)
        assert run(prepared, bucket / "run", RUN).finished
    assert len(outages) == 1
    assert_as_undisturbed(bucket / "run", undisturbed)


def test_a_second_run_is_refused(prepared: Path, bucket: BucketPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.1)
    said = f"^another run is at work in {bucket}/run; .*. It is process {os.getpid()}"
    with held_in_bucket(bucket / "run", "another run", "--workdir"), pytest.raises(UserError, match=said):
        run(prepared, bucket / "run", RUN)


def test_a_checkpoint_that_was_not_written_to_its_end_is_none(
    workdir: BucketPath, prepared: Path, undisturbed: Path
) -> None:
    (workdir / "checkpoints" / "16" / COMMITTED).unlink()
    assert steps_of(workdir / "checkpoints")[-1] == 15
    assert run(prepared, workdir, RUN).finished
    assert_as_undisturbed(workdir, undisturbed)


def test_damage_is_refused_and_set_aside(workdir: BucketPath, prepared: Path, undisturbed: Path) -> None:
    victim = workdir / "checkpoints" / "16" / "state" / "_METADATA"
    victim.write_bytes(victim.read_bytes()[:-1] + b" ")
    with pytest.raises(UserError) as refused:
        run(prepared, workdir, RUN)
    assert str(refused.value).startswith(
        f"the checkpoint of step 16 is damaged: {victim} has other bytes than were written; the newest whole "
        "checkpoint is that of step 15."
    )
    settle_damage(workdir, skip=True)
    assert steps_of(workdir / "checkpoints")[-1] == 15
    aside = workdir / "checkpoints" / "16.damaged"
    assert (aside / "state" / "_METADATA").exists()
    assert run(prepared, workdir, RUN).finished
    aside.rmtree()
    assert_as_undisturbed(workdir, undisturbed)


def test_an_absent_file_is_named(workdir: BucketPath) -> None:
    victim = workdir / "checkpoints" / "16" / "progress" / "metadata"
    victim.unlink()
    with pytest.raises(UserError, match=f"^the checkpoint of step 16 is damaged: {victim} is absent; "):
        load_state(workdir)


def test_a_run_copied_to_a_disk_and_back(
    workdir: BucketPath, undisturbed: Path, prepared: Path, bucket: BucketPath, tmp_path: Path
) -> None:
    """Its listing has the checksums of the place where it was written, and is checked in the other."""
    copy = tmp_path / "copy"
    download(workdir, copy)
    assert_bitwise_equal(saved_state(copy), saved_state(undisturbed))
    assert load_state(copy).config["train"]["epochs"] == 4.0
    victim = copy / "checkpoints" / "16" / "state" / "_METADATA"
    victim.write_bytes(victim.read_bytes()[:-1] + b" ")
    with pytest.raises(UserError, match="has other bytes than were written"):
        load_state(copy)
    for path in undisturbed.rglob("checkpoints/16/**/*"):
        if path.is_file():
            (bucket / "back" / path.relative_to(undisturbed).as_posix()).write_bytes(path.read_bytes())
    (bucket / "back" / "checkpoints" / "16" / COMMITTED).write_text("")
    load_state(bucket / "back")
