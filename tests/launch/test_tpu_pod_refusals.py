"""What launch/tpu_pod.sh refuses, and what it says when a worker or the cloud does not do what was asked."""

import shutil
from pathlib import Path

import pytest
from fake_cloud import PLACE, POD, PROGRAM, STAND_INS, Cloud, install, refusal


def test_a_worker_that_cannot_be_reached_is_named(cloud: Cloud) -> None:
    cloud.write("unreachable", "1")
    assert cloud.call("create", *POD).returncode == 0
    said = refusal(cloud.call("wait", *PLACE), 1)
    assert (
        "worker 1 of pod cannot be reached by ssh: ssh: connect to host worker-1 port 22: Connection timed out" in said
    )
    assert "see whether the firewall lets ssh in" in said


def test_one_run_at_a_time(cloud: Cloud) -> None:
    cloud.write("play", "work")
    install(cloud)
    assert cloud.call("run", *PLACE, *PROGRAM).returncode == 0
    said = refusal(cloud.call("run", *PLACE, *PROGRAM), 1)
    assert "error: a run is at work here" in said
    assert said.endswith("What was at work before goes on.\n")
    assert "error: a run is at work here" in refusal(cloud.call("install", *PLACE), 1)
    assert "[0] running" in cloud.call("status", *PLACE).stdout


def test_a_program_runs_on_all_workers_or_on_none(cloud: Cloud) -> None:
    cloud.write("play", "work")
    install(cloud)
    cloud.write("unreachable", "1")
    said = refusal(cloud.call("run", *PLACE, *PROGRAM), 1)
    assert "starting failed on worker 1 of pod: ssh: connect to host worker-1" in said
    cloud.write("unreachable")
    assert "[0] lost" in cloud.call("status", *PLACE).stdout


def test_run_before_install_is_told(cloud: Cloud) -> None:
    assert cloud.call("create", *POD).returncode == 0
    said = refusal(cloud.call("run", *PLACE, *PROGRAM), 1)
    assert "starting failed on worker 0 of pod" in said
    assert "If it is not installed, install." in said


def test_a_failed_installation_names_the_worker(cloud: Cloud) -> None:
    assert cloud.call("create", *POD).returncode == 0
    cloud.write("no_space", "ERROR: No space left on device")
    said = refusal(cloud.call("train", *POD, *PROGRAM, RETRIES="0"), 1)
    assert "installing failed on worker 1 of pod: ERROR: No space left on device" in said
    assert "worker 1: " not in said  # no run has ended there


def test_uncommitted_changes_are_refused_before_anything_is_asked_for(cloud: Cloud, tmp_path: Path) -> None:
    cloud.repository = Path(shutil.copytree(cloud.repository, tmp_path / "changed"))
    (cloud.repository / "launch" / "new.py").touch()
    said = refusal(cloud.call("train", *POD, *PROGRAM))
    assert "has changes that no commit has:\n?? launch/new.py\nExpected a clean tree" in said
    assert cloud.lines("calls") == []
    shutil.rmtree(cloud.repository / ".git")
    assert "is no git repository" in refusal(cloud.call("install", *PLACE))


def test_a_cloud_that_does_not_answer_is_not_waited_for(cloud: Cloud) -> None:
    assert cloud.call("create", *POD).returncode == 0
    cloud.write("silent", "")
    for command in ("wait", "status"):
        said = refusal(cloud.call(command, *PLACE), 1)
        assert "Google Cloud does not answer for pod in us-west4-a: ERROR: no valid credentials" in said


def test_a_pod_that_is_not_there_is_told(cloud: Cloud) -> None:
    assert "there is no queued resource pod in us-west4-a" in refusal(cloud.call("wait", *PLACE), 1)
    assert "pod in us-west4-a has no workers, its state is none" in refusal(cloud.call("logs", *PLACE), 1)
    assert cloud.call("status", *PLACE).stdout == "pod in us-west4-a: queue none, pod none\n"
    done = cloud.call("delete", *PLACE)
    assert done.returncode == 0
    assert "there is no pod in us-west4-a; somebody has deleted it, or --name, --zone or --project is" in done.stderr


def test_a_pod_that_was_taken_away_in_the_queue_is_told(cloud: Cloud) -> None:
    cloud.write("queue_of_a_new_pod", "SUSPENDED")
    assert cloud.call("create", *POD).returncode == 0
    assert "pod in us-west4-a was taken away: queue SUSPENDED" in refusal(cloud.call("wait", *PLACE), 1)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("start", *PLACE), "unknown command start; expected create, wait, install"),
        (("wait", "--name=pod", "--color"), "unknown argument --color; expected flags like --name=NAME"),
        (("wait", "--name=pod"), "--zone is not given"),
        (("create", *PLACE), "--type is not given"),
        (("create", *POD, "--spot", "--reserved"), "--spot and --reserved exclude each other"),
        (("install", *PLACE, "--setup=nowhere.sh"), "--setup=nowhere.sh is no file"),
        (("train", *POD, "--", "launch/main.py", "--distributed"), "launch/main.py is given without --workdir=FOLDER"),
        (("run", *PLACE, "--", "launch/main.py", "--workdir", "runs/a"), "--workdir has no value; expected --workdir="),
        (("run", *PLACE, *PROGRAM, "--config.data.directory=data/a"), "--config.data.directory=data/a is no absolute"),
        (("run", *PLACE), "no program is given"),
        (("run", *PLACE, "--", "launch/none.py"), "there is no program launch/none.py"),
        (("run", *PLACE, "--", "launch/main.py", "--workdir=/a"), "launch/main.py is given without --distributed"),
        (("run", *PLACE, "--", "launch/main.py", "--workdir=runs/a", "--distributed"), "--workdir=runs/a is relative"),
    ],
)
def test_bad_flags_are_refused(cloud: Cloud, arguments: tuple[str, ...], message: str) -> None:
    assert message in refusal(cloud.call(*arguments))
    assert cloud.lines("calls") == []


@pytest.mark.parametrize(
    "setting, message",
    [
        ({"RETRIES": "x"}, "RETRIES=x is no whole number; expected 0 or more"),
        ({"REACH_TRIES": "-1"}, "REACH_TRIES=-1 is no whole number"),
        ({"POLL_SECONDS": "1m"}, "POLL_SECONDS=1m is no number of seconds"),
    ],
)
def test_a_setting_that_is_no_number_is_refused(cloud: Cloud, setting: dict[str, str], message: str) -> None:
    """With it, train would try again without end."""
    assert message in refusal(cloud.call("train", *POD, *PROGRAM, **setting))


def test_another_program_than_the_one_at_work_is_refused(cloud: Cloud) -> None:
    """After a preemption, train would start what it was told in the place of what was at work."""
    cloud.write("play", "work")
    install(cloud)
    assert cloud.call("run", *PLACE, *PROGRAM).returncode == 0
    said = refusal(cloud.call("train", *POD, "--delete", *PROGRAM, "--config.seed=1"))
    assert "another program is at work on pod: launch/main.py --config=vitl_250m --workdir=/mnt/a\\ run" in said
    assert cloud.verbs() == ["create"]


def test_a_missing_gcloud_is_told(cloud: Cloud, tmp_path: Path) -> None:
    for name in ("bash", "dirname"):
        (tmp_path / name).symlink_to(str(shutil.which(name)))
    assert "gcloud is not found on PATH" in refusal(cloud.call("wait", *PLACE, PATH=str(tmp_path)))


def test_a_pod_that_cannot_be_deleted_is_told(cloud: Cloud) -> None:
    assert cloud.call("create", *POD).returncode == 0
    cloud.write("refuse", "ERROR: PERMISSION_DENIED")
    said = refusal(cloud.call("delete", *PLACE), 1)
    assert "pod cannot be deleted: ERROR: PERMISSION_DENIED. It costs money until it is gone" in said
    cloud.write("queue")
    (cloud.folder / "queue").unlink()
    assert cloud.call("delete", *PLACE).returncode == 0  # somebody else was faster


def test_a_failed_copy_names_the_worker(cloud: Cloud) -> None:
    assert cloud.call("create", *POD).returncode == 0
    cloud.write("refuse", "scp: No space left on device")
    said = refusal(cloud.call("install", *PLACE), 1)
    assert "copying failed on worker 0 of pod: scp: No space left on device" in said
    assert "copying failed on worker 1 of pod" in said


def test_what_a_worker_lacks_is_told(cloud: Cloud) -> None:
    assert cloud.call("create", *POD).returncode == 0
    cloud.write("no_space", "ERROR: No space left on device")
    assert cloud.call("install", *PLACE).returncode == 1
    assert "the package is not installed here" in refusal(cloud.call("run", *PLACE, *PROGRAM), 1)
    assert "there is no log here; expected a run that was started" in cloud.call("logs", *PLACE).stdout


def test_a_program_that_does_not_start_is_told(cloud: Cloud, tmp_path: Path) -> None:
    install(cloud)
    for name in ("setsid", "sleep"):
        (tmp_path / name).symlink_to("/bin/true")
    done = cloud.call("run", *PLACE, *PROGRAM, PATH=f"{tmp_path}:{STAND_INS}:/usr/bin:/bin")
    assert "the program has not started within 10 s" in refusal(done, 1)
