"""docs/clusters.md names files and flags that exist, and the numbers of the launchers."""

import re

from programs import ROOT

from r2d2_jax import lease

PAGE = (ROOT / "docs" / "clusters.md").read_text(encoding="utf-8")
POD = (ROOT / "launch" / "tpu_pod.sh").read_text(encoding="utf-8")
JOB = (ROOT / "launch" / "slurm.sbatch").read_text(encoding="utf-8")


def test_every_path_that_is_named_exists() -> None:
    named = set(re.findall(r"\b(?:launch|tests)/[\w/]+(?:\.(?:sh|sbatch|yaml))?(?![\w.])", PAGE))
    named |= {f"docs/{page}" for page in re.findall(r"\]\((\w+\.md)", PAGE)}
    assert {
        "launch/tpu_pod.sh",
        "launch/slurm.sbatch",
        "launch/k8s.yaml",
        "launch/k8s_gpu.yaml",
        "docs/scaling.md",
    } <= named
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_commands_for_a_pod_have_flags_that_it_knows() -> None:
    found = re.findall(r"^launch/tpu_pod\.sh train (.*?) -- ", PAGE, re.MULTILINE | re.DOTALL)
    assert len(found) == PAGE.count("\nlaunch/tpu_pod.sh train ") > 0
    for flag in re.findall(r"--\w+", " ".join(found)):
        assert re.search(rf"{flag}(=\?\*)?( \||\))", POD), flag


def test_seconds_of_a_lock_are_those_of_the_code() -> None:
    assert f"writes every {lease.BEAT_SECONDS:.0f} seconds" in PAGE
    assert f"the next run waits {lease.LAPSES_AFTER:.0f} seconds" in PAGE


def test_numbers_are_those_of_the_launchers() -> None:
    assert "RETRIES=${RETRIES:-3}" in POD
    assert "3 times in a row (`RETRIES`)" in PAGE
    assert "HEALTHY_SECONDS=${HEALTHY_SECONDS:-3600}" in POD
    assert "an hour of work (`HEALTHY_SECONDS`)" in PAGE
    assert "${MAX_FAILURES:-5}" in JOB
    assert "at most five times (`MAX_FAILURES`)" in PAGE
    assert "#SBATCH --signal=B:TERM@120" in JOB
