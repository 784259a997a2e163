"""launch/tpu_pod.sh against a Google Cloud that is a folder: tests/stand_ins/cloud/gcloud."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_cloud import COSTS, PLACE, POD, PROGRAM, STAND_INS, Cloud, install, read_until, refusal
from programs import ROOT

QUOTA = "ERROR: (gcloud.compute.tpus.queued-resources.create) RESOURCE_EXHAUSTED: Quota limit 'TPUV5sLitepod' exceeded."


def test_a_run_from_nothing_to_its_end(cloud: Cloud) -> None:
    cloud.write("queue_of_a_new_pod", "WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE")
    done = cloud.call("train", *POD, "--project=mine", "--spot", *PROGRAM)
    assert done.returncode == 0, done.stderr
    head = subprocess.check_output(["git", "-C", cloud.repository, "rev-parse", "HEAD"], text=True).strip()
    assert done.stderr.splitlines() == [
        "asking for v5litepod-16 in us-west4-a as pod, spot",
        "pod: WAITING_FOR_RESOURCES",
        "pod: PROVISIONING",
        "pod: ACTIVE",
        "pod is there: 2 workers, all reachable",
        f"installing commit {head[:12]} on 2 workers",
        "starting launch/main.py --config=vitl_250m --workdir=/mnt/a run --distributed on 2 workers",
        "watching; launch/tpu_pod.sh logs --name=pod --zone=us-west4-a shows what the workers print",
        "the run has finished",
        f"{COSTS} --project=mine",
    ]
    (create,) = [call for call in cloud.lines("calls") if " create " in call]
    assert create == (
        "compute tpus queued-resources create pod --zone=us-west4-a --project=mine --quiet --node-id=pod "
        "--accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    )
    for worker in "01":
        assert cloud.lines(f"started-{worker}") == [f"-u {' '.join(PROGRAM[1:])}"]
        log = cloud.folder / f"worker-{worker}" / "r2d2_jax" / "run" / "log"
        assert f"worker {worker} plays: exit 0" in log.read_text()
    assert cloud.verbs() == ["create"]


def test_delete_gives_the_pod_back_at_the_end(cloud: Cloud) -> None:
    done = cloud.call("train", *POD, "--delete", *PROGRAM)
    assert done.returncode == 0
    assert COSTS not in done.stderr
    assert cloud.verbs() == ["create", "delete"]


def test_a_refused_quota_is_told_and_not_asked_for_again(cloud: Cloud) -> None:
    cloud.write("refuse", QUOTA)
    said = refusal(cloud.call("train", *POD, *PROGRAM), 1)
    assert f"Google Cloud refuses v5litepod-16 in us-west4-a as pod: {QUOTA}" in said
    assert "Ask for quota" in said
    assert COSTS not in said
    assert cloud.verbs() == ["create"]


def test_a_request_that_fails_in_the_queue_is_tried_a_few_times(cloud: Cloud) -> None:
    cloud.write("queue_of_a_new_pod", "WAITING_FOR_RESOURCES", "FAILED")
    said = refusal(cloud.call("train", *POD, *PROGRAM, RETRIES="1"), 1)
    assert "pod has failed in the queue: no more quota for this type" in said
    assert "2 failures in a row on pod" in said
    assert cloud.verbs() == ["create", "delete", "create"]


def test_after_a_preemption_the_same_command_runs_on_a_new_pod(cloud: Cloud) -> None:
    cloud.write("play", "work", "exit 0")
    cloud.write("play-1", "preempted", "exit 0")
    done = cloud.call("train", *POD, *PROGRAM, RETRIES="0")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("pod in us-west4-a was taken away: queue SUSPENDED, pod PREEMPTED") == 1
    assert "resumes from its newest checkpoint" in done.stderr
    assert done.stderr.endswith(f"the run has finished\n{COSTS}\n")
    assert cloud.verbs() == ["create", "delete", "create"]
    assert cloud.lines("started-0") == [f"-u {' '.join(PROGRAM[1:])}"] * 2
    assert len(cloud.lines("installed")) == 4


def test_a_pod_that_was_taken_away_before_is_replaced_and_that_is_told(cloud: Cloud) -> None:
    assert cloud.call("create", *POD).returncode == 0
    cloud.write("queue", "SUSPENDED")
    done = cloud.call("train", *POD, *PROGRAM)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: pod in us-west4-a was taken away: queue SUSPENDED, pod READY")
    assert cloud.verbs() == ["create", "delete", "create"]


def test_a_machine_that_shuts_down_has_not_finished_the_run(cloud: Cloud) -> None:
    """It saves and exits, and all others with it."""
    cloud.write("play-0", "exit 130", "exit 0")
    cloud.write("play-1", "shutdown 130", "exit 0")
    done = cloud.call("train", *POD, *PROGRAM, RETRIES="0")
    assert done.returncode == 0, done.stderr
    assert [len(cloud.lines(f"started-{worker}")) for worker in "01"] == [2, 2]
    assert cloud.verbs() == ["create"]


@pytest.mark.parametrize(
    "play, told, poll_seconds",
    [("work", "watching", "0.02"), ("exit 1", "failure 1", "0.5")],
    ids=["at work", "between two attempts"],
)
def test_a_pod_that_somebody_deletes_is_not_created_again(
    cloud: Cloud, play: str, told: str, poll_seconds: str
) -> None:
    cloud.write("play", play)
    with cloud.start("train", *POD, *PROGRAM, POLL_SECONDS=poll_seconds) as process:
        assert process.stderr is not None
        while told not in process.stderr.readline():
            continue
        assert cloud.call("delete", *PLACE).returncode == 0
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "pod in us-west4-a was deleted by somebody" in said
    assert COSTS not in said
    assert cloud.verbs() == ["create", "delete"]


def test_bad_input_is_not_tried_again(cloud: Cloud) -> None:
    cloud.write("play-1", "exit 2")
    said = refusal(cloud.call("train", *POD, *PROGRAM))
    assert "worker 1: ended 2\n" in said
    assert "[1] worker 1 plays: exit 2\n" in said
    assert "the program refuses its input, so it is not tried again" in said
    assert len(cloud.lines("started-0")) == 1


def test_other_failures_are_tried_again_a_few_times(cloud: Cloud) -> None:
    cloud.write("play-1", "exit 1", "exit 134", "exit 0")
    done = cloud.call("train", *POD, *PROGRAM, RETRIES="2")
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stderr.splitlines() if line.startswith(("failure", "worker"))] == [
        "worker 1: ended 1",
        "failure 1; trying again, 2 times at most",
        "worker 1: ended 134",
        "failure 2; trying again, 2 times at most",
    ]


def test_too_many_failures_end_it(cloud: Cloud) -> None:
    cloud.write("play-1", "exit 1")
    said = refusal(cloud.call("train", *POD, *PROGRAM, RETRIES="1"), 1)
    assert "2 failures in a row on pod; mend what is said above" in said
    assert said.endswith(f"{COSTS}\n")
    assert len(cloud.lines("started-1")) == 2


def test_a_failure_after_long_work_is_again_the_first(cloud: Cloud) -> None:
    cloud.write("play-1", "exit 1", "exit 1", "exit 0")
    assert cloud.call("train", *POD, *PROGRAM, RETRIES="1", HEALTHY_SECONDS="0").returncode == 0


def test_a_worker_that_hangs_after_another_has_failed_is_ended(cloud: Cloud) -> None:
    cloud.write("play-0", "work")
    cloud.write("play-1", "exit 1")
    said = refusal(cloud.call("train", *POD, *PROGRAM, RETRIES="0"), 1)
    assert "worker 0: lost\n" in said


def test_a_worker_that_is_lost_in_the_middle_is_named(cloud: Cloud) -> None:
    cloud.write("play", "work")
    with cloud.start("train", *POD, *PROGRAM, RETRIES="0") as process:
        assert process.stderr is not None
        while "watching" not in process.stderr.readline():
            continue
        cloud.write("unreachable", "1")
        _, said = process.communicate(timeout=30)
    assert process.returncode == 1
    assert "worker 1 of pod cannot be reached" in said


def test_train_watches_what_is_at_work(cloud: Cloud) -> None:
    cloud.write("play", "work")
    install(cloud)
    assert cloud.call("run", *PLACE, *PROGRAM).returncode == 0
    with cloud.start("train", *POD, *PROGRAM) as process:
        assert process.stderr is not None
        while "a run is at work on pod; watching it" not in process.stderr.readline():
            continue
        assert cloud.call("stop", *PLACE).returncode == 0
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said.endswith(f"the run was stopped and has saved; the same command resumes it\n{COSTS}\n")
    assert len(cloud.lines("started-0")) == 1


def test_what_runs_at_another_commit_than_the_clone_is_told(cloud: Cloud, tmp_path: Path) -> None:
    cloud.write("play", "work")
    install(cloud)
    old = subprocess.check_output(["git", "-C", cloud.repository, "rev-parse", "HEAD"], text=True)[:12]
    assert "commit" not in cloud.call("run", *PLACE, *PROGRAM).stderr
    cloud.repository = Path(shutil.copytree(cloud.repository, tmp_path / "newer"))
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", cloud.repository, *identity, "commit", "-q", "--allow-empty", "-m", "b"], check=True)
    with cloud.start("train", *POD, *PROGRAM) as process:
        read_until(process, f"pod runs commit {old}; this clone is at ")
        assert cloud.call("stop", *PLACE).returncode == 0
        process.communicate(timeout=30)
    assert f"pod runs commit {old}; this clone is at " in cloud.call("run", *PLACE, *PROGRAM).stderr


def test_stop_lets_the_run_save(cloud: Cloud) -> None:
    cloud.write("play", "work")
    install(cloud)
    assert cloud.call("run", *PLACE, *PROGRAM).returncode == 0
    shown = cloud.call("status", *PLACE)
    assert shown.returncode == 0
    assert shown.stdout.startswith("pod in us-west4-a: queue ACTIVE, pod READY\n[0] running, commit ")
    assert shown.stdout.endswith(", worker 1 plays: work\n")
    stopped = cloud.call("stop", *PLACE)
    assert (stopped.returncode, stopped.stderr) == (
        0,
        "asked to save and end; waiting\nthe run has saved and ended; run the same program again to resume\n",
    )
    logs = cloud.call("logs", *PLACE).stdout.splitlines()
    assert {"[0] saved", "[1] saved"} <= set(logs)
    assert all(line.startswith(("[0] ", "[1] ")) for line in logs)
    assert "no run is at work on pod" in refusal(cloud.call("stop", *PLACE), 1)


def test_stop_now_kills(cloud: Cloud) -> None:
    cloud.write("play", "work")
    install(cloud)
    assert cloud.call("run", *PLACE, *PROGRAM).returncode == 0
    done = cloud.call("stop", "--now", *PLACE)
    assert (done.returncode, done.stderr) == (0, "killed; the same program resumes from its newest checkpoint\n")
    assert "[0] lost, commit" in cloud.call("status", *PLACE).stdout


def test_a_run_that_fails_while_it_is_stopped_is_told(cloud: Cloud) -> None:
    install(cloud)
    cloud.write("play", "work")
    cloud.write("play-0", "fail_at_stop")
    assert cloud.call("run", *PLACE, *PROGRAM).returncode == 0
    assert "the run has not ended in good order" in refusal(cloud.call("stop", *PLACE), 1)


def test_the_file_of_setup_runs_before_the_installation(cloud: Cloud, tmp_path: Path) -> None:
    setup = tmp_path / "mount.sh"
    setup.write_text('[ ! -d "$HOME/r2d2_jax/code" ] && echo "mounted on $WORKER" >> "$CLOUD/mounts"\n')
    done = cloud.call("train", *POD, f"--setup={setup}", *PROGRAM)
    assert done.returncode == 0, done.stderr
    assert sorted(cloud.lines("mounts")) == ["mounted on 0", "mounted on 1"]
    setup.write_text("exit 3\n")
    said = refusal(cloud.call("install", *PLACE, f"--setup={setup}"), 1)
    assert "setup.sh, the file of --setup, ended with status 3" in said
    assert cloud.call("install", *PLACE).returncode == 0  # without --setup it is not run


def test_python_is_installed_where_it_is_missing(cloud: Cloud) -> None:
    assert cloud.call("create", *POD).returncode == 0
    cloud.write("no_environments", "")
    assert cloud.call("install", *PLACE).returncode == 0
    assert sum(line.endswith("install python3.13 python3.13-venv") for line in cloud.lines("sudo")) == 2
    cloud.write("apt_fails", "install")
    assert "apt-get cannot install python3.13-venv" in refusal(cloud.call("install", *PLACE), 1)
    cloud.write("apt_fails", "update")
    assert "apt-get update failed" in refusal(cloud.call("install", *PLACE), 1)


def test_help_is_shown_after_a_command_too(cloud: Cloud) -> None:
    assert cloud.call("train", "--help").stdout == cloud.call("--help").stdout


def test_help_names_every_command(cloud: Cloud) -> None:
    done = cloud.call("--help")
    assert done.returncode == 0
    commands = [line.split()[0] for line in done.stdout.splitlines() if line.startswith("  ") and line[2].islower()]
    assert commands[:9] == ["create", "wait", "install", "run", "logs", "status", "stop", "train", "delete"]


def test_one_worker_that_hears_is_enough_to_stop(cloud: Cloud) -> None:
    """The run stops on all of them together; here the other one is asked once it is back."""
    cloud.write("play", "work")
    install(cloud)
    assert cloud.call("run", *PLACE, *PROGRAM).returncode == 0
    cloud.write("unreachable", "1")
    said = refusal(cloud.call("stop", *PLACE), 1)
    assert "stopping failed on worker 1 of pod: ssh: connect to host worker-1" in said
    assert "1 of 2 workers were asked." in said
    assert "\n[1] no answer\n" in cloud.call("status", *PLACE).stdout
    cloud.write("unreachable")
    assert cloud.call("stop", *PLACE).returncode == 0


def test_the_scripts_have_no_common_mistakes() -> None:
    scripts = [ROOT / "launch" / "tpu_pod.sh", ROOT / "launch" / "tpu_worker.sh", *STAND_INS.iterdir()]
    command = [Path(sys.executable).with_name("shellcheck"), "--external-sources", "--check-sourced", *scripts]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
