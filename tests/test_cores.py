"""How many cores count: the scheduler's, and what control groups leave of them."""

import os
from pathlib import Path

import pytest

from r2d2_jax import cores
from r2d2_jax.cores import allowed_cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups that set no limit, on a machine of sixteen cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "_CONTROL_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "membership")
    (tmp_path / "membership").write_text("0::/\n")
    return tmp_path


def limit(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"cpu.{name}").write_text(text + "\n")


def test_without_a_quota_all_cores_of_the_scheduler_count(groups: Path) -> None:
    limit(groups, max="max 100000")
    assert allowed_cores() == 16


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="only Linux has an affinity")
def test_cores_that_taskset_takes_away_do_not_count() -> None:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert allowed_cores() == 1
    finally:
        os.sched_setaffinity(0, before)


@pytest.mark.parametrize(
    ("quota", "expected"), [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("9900000 100000", 16)]
)
def test_quota_of_a_container(groups: Path, quota: str, expected: int) -> None:
    limit(groups, max=quota)
    assert allowed_cores() == expected


def test_quota_of_an_outer_group_holds_within(groups: Path) -> None:
    (groups / "membership").write_text("0::/jobs/mine\n")
    limit(groups / "jobs", max="300000 100000")
    limit(groups / "jobs" / "mine", max="max 100000")
    assert allowed_cores() == 3


def test_quota_of_version_1(groups: Path) -> None:
    (groups / "membership").write_text("3:cpuset:/\n2:cpu,cpuacct:/docker/abc:d\n0::/\n")
    limit(groups / "cpu", cfs_quota_us="-1", cfs_period_us="100000")
    assert allowed_cores() == 16
    limit(groups / "cpu", cfs_quota_us="400000", cfs_period_us="100000")  # the container's own, seen at the mount
    assert allowed_cores() == 4


@pytest.mark.parametrize("text", ["", "max", "a b", "100000 0", "1 2 3"])
def test_a_quota_that_cannot_be_read_is_none(groups: Path, text: str) -> None:
    limit(groups, max=text)
    assert allowed_cores() == 16


def test_machine_without_control_groups(groups: Path) -> None:
    (groups / "membership").unlink()
    assert allowed_cores() == 16


def test_system_without_affinity(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert allowed_cores() == 1
