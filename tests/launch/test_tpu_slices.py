"""launch/tpu_pod.sh with several slices that a network joins: one request, and workers numbered over all of them."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from fake_cloud import COSTS, PLACE, POD, PROGRAM, Cloud, install, read_until, refusal

SLICES = (*POD, "--slices=2")
WORKERS = "0123"


@pytest.fixture
def pair(cloud: Cloud) -> Cloud:
    """Two slices of two workers, installed, on which a run works until it is told to stop."""
    cloud.write("play", "work")
    install(cloud, *SLICES)
    assert cloud.call("run", *PLACE, *PROGRAM).returncode == 0
    return cloud


def calls_of(cloud: Cloud, verb: str) -> list[str]:
    return [call for call in cloud.lines("calls") if f" {verb} " in call]


def test_a_run_on_two_slices_from_nothing_to_its_end(cloud: Cloud) -> None:
    done = cloud.call("train", *SLICES, "--spot", *PROGRAM)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "asking for 2 slices of v5litepod-16 in us-west4-a as pod, spot"
    assert "pod is there: 4 workers in 2 slices, all reachable" in lines
    assert lines[-2:] == ["the run has finished", COSTS]
    (create,) = calls_of(cloud, "create")
    assert "--node-count=2 --node-prefix=pod " in create
    assert "--node-id" not in create
    assert [cloud.lines(f"started-{worker}") for worker in WORKERS] == [[f"-u {' '.join(PROGRAM[1:])}"]] * 4
    for slice_name in ("pod-0", "pod-1"):
        for worker in "01":
            assert any(f" {slice_name}:r2d2_jax/ " in call and f"--worker={worker} " in call
                       for call in calls_of(cloud, "scp"))  # fmt: skip


def test_one_slice_is_asked_for_as_before(cloud: Cloud) -> None:
    assert cloud.call("create", *POD, "--slices=1").returncode == 0
    (create,) = calls_of(cloud, "create")
    assert "--node-id=pod " in create
    assert "--node-count" not in create


def test_every_command_reaches_all_workers_of_all_slices(pair: Cloud) -> None:
    """None is told how many slices there are."""
    shown = pair.call("status", *PLACE)
    assert shown.stdout.startswith("pod in us-west4-a: queue ACTIVE, pod-0 READY, pod-1 READY\n[0] running, ")
    assert shown.stdout.endswith(", worker 3 plays: work\n")
    assert pair.call("wait", *PLACE).stderr.endswith("pod is there: 4 workers in 2 slices, all reachable\n")
    assert pair.call("stop", *PLACE).returncode == 0
    logs = pair.call("logs", *PLACE).stdout.splitlines()
    assert {f"[{worker}] saved" for worker in WORKERS} <= set(logs)
    assert pair.call("delete", *PLACE).returncode == 0
    assert pair.verbs() == ["create", "delete"]


def test_a_worker_that_cannot_be_reached_is_named_with_its_slice(pair: Cloud) -> None:
    pair.write("unreachable", "3")
    said = refusal(pair.call("wait", *PLACE), 1)
    assert "worker 3 of pod in pod-1 cannot be reached by ssh" in said
    said = refusal(pair.call("stop", *PLACE), 1)
    assert "stopping failed on worker 3 of pod (worker 1 of pod-1): ssh: connect to host" in said


def test_after_a_preemption_of_one_slice_all_are_asked_for_anew(cloud: Cloud) -> None:
    """The queue may say later than the slice that it is gone; the workers of the other wait, and are not waited for."""
    cloud.write("play", "work", "exit 0")
    cloud.write("play-3", "slice_preempted 1", "exit 0")
    done = cloud.call("train", *SLICES, *PROGRAM, RETRIES="0")
    assert done.returncode == 0, done.stderr
    assert "pod-1 in us-west4-a was taken away: queue ACTIVE, pod PREEMPTED; expected a pod; delete pod" in done.stderr
    assert "resumes from its newest checkpoint" in done.stderr
    assert cloud.verbs() == ["create", "delete", "create"]
    assert all("--node-count=2 " in call for call in calls_of(cloud, "create"))
    assert [len(cloud.lines(f"started-{worker}")) for worker in WORKERS] == [2] * 4
    assert done.stderr.endswith(f"the run has finished\n{COSTS}\n")


def test_a_slice_that_google_repairs_is_waited_for(cloud: Cloud) -> None:
    """Longer than REACH_TRIES. It comes back empty and the others start again, which is no failure of the run."""
    cloud.write("play", "work", "exit 0")
    with cloud.start("train", *SLICES, *PROGRAM, RETRIES="0") as process:
        read_until(process, "watching")
        cloud.write("node-1", *["REPAIRING"] * 12, "READY")
        for worker in WORKERS:
            home = cloud.folder / f"worker-{worker}"
            os.killpg(int((home / "r2d2_jax" / "run" / "pid").read_text()), signal.SIGKILL)
            if worker in "23":
                shutil.rmtree(home / "r2d2_jax")
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    assert "the run resumes from its newest checkpoint as soon as the pod is there again" in said
    assert "failure" not in said
    assert cloud.verbs() == ["create"]
    assert [len(cloud.lines(f"started-{worker}")) for worker in WORKERS] == [2] * 4


def test_a_pod_is_there_when_all_slices_are(cloud: Cloud) -> None:
    assert cloud.call("create", *SLICES).returncode == 0
    cloud.write("node-0", "CREATING", "CREATING", "READY")
    assert cloud.call("wait", *PLACE).stderr.splitlines() == [
        "pod: ACTIVE, pod-0 CREATING",
        "pod: ACTIVE",
        "pod is there: 4 workers in 2 slices, all reachable",
    ]


def test_another_number_of_slices_than_there_are_is_refused(cloud: Cloud) -> None:
    """After a preemption, train would ask for as many as it was told."""
    assert cloud.call("create", *SLICES).returncode == 0
    said = refusal(cloud.call("train", *POD, *PROGRAM))
    assert "pod in us-west4-a has 2 slices and not 1; give --slices=2, or delete it" in said
    assert cloud.verbs() == ["create"]


@pytest.mark.parametrize("slices", ["0", "two", "-1", "1.5"])
def test_what_is_no_number_of_slices_is_refused(cloud: Cloud, slices: str) -> None:
    said = refusal(cloud.call("create", *POD, f"--slices={slices}"))
    assert f"--slices={slices} is no number of slices; expected 1 or more" in said
    assert cloud.lines("calls") == []


def test_a_slice_without_workers_is_named(cloud: Cloud) -> None:
    assert cloud.call("create", *SLICES).returncode == 0
    Path(cloud.folder / "node-1").unlink()
    said = refusal(cloud.call("logs", *PLACE), 1)
    assert "pod-1 in us-west4-a has no workers, its state is none; expected READY" in said
