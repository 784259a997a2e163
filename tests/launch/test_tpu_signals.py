"""launch/tpu_pod.sh train and signals: none is lost, none cuts a call off, and nothing is left behind."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from fake_cloud import COSTS, PLACE, POD, PROGRAM, Cloud, read_until
from programs import ROOT
from small_corpus import until

LEFT = f"pod is no longer watched, nor resumed; a run there goes on\n{COSTS}\n"


@pytest.mark.parametrize(
    "name, signal_", [("Ctrl-C", signal.SIGINT), ("SIGTERM", signal.SIGTERM), ("SIGHUP", signal.SIGHUP)]
)
def test_a_signal_leaves_the_run_alone_and_says_so(cloud: Cloud, name: str, signal_: signal.Signals) -> None:
    """Ctrl-C reaches the whole group, `kill` one process."""
    cloud.write("play", "work")
    with cloud.start("train", *POD, "--delete", *PROGRAM) as process:
        read_until(process, "watching")
        while process.poll() is None:  # bash may miss one on a busy machine: seen once in 400 times
            (os.killpg if name == "Ctrl-C" else os.kill)(process.pid, signal_)
            time.sleep(1)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal_
    assert said == f"{name}: {LEFT}"
    assert "[0] running" in cloud.call("status", *PLACE).stdout


def test_nothing_goes_on_behind_a_program_that_was_killed(cloud: Cloud) -> None:
    cloud.write("play", "work")
    with cloud.start("train", *POD, "--delete", *PROGRAM) as process:
        read_until(process, "watching")
        process.kill()
        _, said = process.communicate(timeout=30)  # all that wrote there has ended
    assert said == ""
    calls = len(cloud.lines("calls"))
    time.sleep(0.2)  # ten looks
    assert len(cloud.lines("calls")) == calls


def test_a_request_that_is_under_way_is_carried_out(cloud: Cloud) -> None:
    """It is no longer the terminal's, and is waited for."""
    cloud.write("slow-create", "1")
    with cloud.start("train", *POD, *PROGRAM) as process:
        until(lambda: cloud.verbs() == ["create"], process)
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 130
        assert cloud.lines("queue") == ["ACTIVE"]
        assert process.communicate()[1] == f"asking for v5litepod-16 in us-west4-a as pod\nCtrl-C: {LEFT}"


def test_a_second_ctrl_c_waits_for_nothing(cloud: Cloud) -> None:
    cloud.write("slow-create", "60")
    with cloud.start("train", *POD, *PROGRAM) as process:
        until(lambda: cloud.verbs() == ["create"], process)
        while process.poll() is None:  # two signals that come too close are one
            os.killpg(process.pid, signal.SIGINT)
            time.sleep(0.1)
        _, said = process.communicate(timeout=30)  # the call has ended, too
    assert process.returncode == 130
    assert said == f"asking for v5litepod-16 in us-west4-a as pod\nCtrl-C: {LEFT}"


@pytest.mark.parametrize("gap", [0.0, 0.001, 0.003])
def test_two_ctrl_c_are_told_once(cloud: Cloud, gap: float, tmp_path: Path) -> None:
    cloud.write("play", "work")
    (tmp_path / "temporary").mkdir()
    with cloud.start("train", *POD, *PROGRAM, TMPDIR=str(tmp_path / "temporary")) as process:
        read_until(process, "watching")
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(gap)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, f"Ctrl-C: {LEFT}")
    assert not list((tmp_path / "temporary").iterdir())


def test_ctrl_c_does_not_disturb_the_deletion_at_the_end(cloud: Cloud) -> None:
    cloud.write("slow-delete", "0.5")
    with cloud.start("train", *POD, "--delete", *PROGRAM) as process:
        until(lambda: "delete" in cloud.verbs(), process)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 0
    assert said.endswith("\nthe run has finished\ndeleting pod\n")
    assert not (cloud.folder / "queue").exists()


def test_the_folder_goes_where_nobody_reads_any_more(cloud: Cloud, tmp_path: Path) -> None:
    cloud.write("play", "work")
    (tmp_path / "temporary").mkdir()
    with cloud.start("train", *POD, *PROGRAM, TMPDIR=str(tmp_path / "temporary")) as process:
        read_until(process, "watching")
        assert process.stderr is not None
        process.stderr.close()
        process.terminate()
        assert process.wait(30) == 143
    assert not list((tmp_path / "temporary").iterdir())


def test_a_program_that_was_killed_does_not_delete_the_pod(cloud: Cloud) -> None:
    """The run ends in the middle of a look that goes on behind it."""
    cloud.write("play", "work")
    with cloud.start("train", *POD, "--delete", *PROGRAM) as process:
        read_until(process, "watching")
        cloud.write("slow-ssh", "0.5")
        seen = len(cloud.lines("calls"))
        until(lambda: len(cloud.lines("calls")) > seen, process)
        process.kill()
        for worker in "01":
            cloud.write(f"worker-{worker}/r2d2_jax/run/status", "0")
        process.communicate(timeout=30)
    assert cloud.verbs() == ["create"]


def test_a_program_that_was_killed_installs_nothing(cloud: Cloud) -> None:
    cloud.write("slow-ssh", "0.3")
    with cloud.start("train", *POD, *PROGRAM) as process:
        until(lambda: any(" ssh " in call for call in cloud.lines("calls")), process)
        process.kill()
        process.communicate(timeout=30)
    assert not any(" scp " in call for call in cloud.lines("calls"))


def test_workers_that_say_nothing_have_not_finished() -> None:
    script = 'BAD_INPUT=2 STOPPED=3 PREEMPTED=4; source "$0"; states=(); verdict; echo "$?"'
    done = subprocess.run(["bash", "-c", script, ROOT / "launch" / "tpu_gcloud.sh"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("1\n", "")
