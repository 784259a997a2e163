"""launch/slurm.sbatch with stand-ins for SLURM's commands, which note what they were asked for."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from programs import ROOT

SCRIPT = ROOT / "launch" / "slurm.sbatch"
STAND_INS = ROOT / "tests" / "stand_ins" / "slurm"


class Cluster:
    """A cluster on which one job is at work."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.run.mkdir()
        (folder / "launch").mkdir()
        (folder / "launch" / "main.py").touch()
        self.write("job_state", "RUNNING")

    def write(self, name: str, text: str = "") -> None:
        (self.folder / name).write_text(text + "\n")

    def asked(self, command: str) -> list[str]:
        path = self.folder / command
        return path.read_text().splitlines() if path.exists() else []

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{STAND_INS}:/usr/bin:/bin",
            "CLUSTER": str(self.folder),
            "SLURM_JOB_ID": "77",
            "SLURM_SUBMIT_DIR": str(self.folder),
            "SLURM_CPUS_PER_TASK": "8",
            "PYTHON": "bash",
            **settings,
        }
        command = ["bash", SCRIPT, *(arguments or ("--config=vitl_250m", f"--workdir={self.run}"))]
        return subprocess.Popen(command, env=environment, cwd=self.folder, stderr=subprocess.PIPE, text=True)

    def called(self, *arguments: str, **settings: str) -> tuple[int, str]:
        with self.start(*arguments, **settings) as process:
            _, said = process.communicate(timeout=30)
        return process.returncode, said

    def signalled(self, number: signal.Signals, status: int = 130, **settings: str) -> tuple[int, str]:
        """Status and messages of a job that gets this signal at work; the run then ends with this status."""
        self.write("play", f"work {status}")
        with self.start(**settings) as process:
            deadline = time.monotonic() + 20
            while not (self.folder / "at_work").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            process.send_signal(number)
            _, said = process.communicate(timeout=30)
        return process.returncode, said


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    yield Cluster(tmp_path)
    if (tmp_path / "task").exists():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int((tmp_path / "task").read_text()), signal.SIGKILL)


def test_a_job_that_finishes_is_not_requeued(cluster: Cluster) -> None:
    cluster.write("play", "exit 0")
    assert cluster.called() == (0, "")
    assert cluster.asked("srun") == [
        "--kill-on-bad-exit=0 --cpus-per-task=8 bash -u launch/main.py --config=vitl_250m "
        f"--workdir={cluster.run} --distributed"
    ]
    assert cluster.asked("scontrol") == []


def test_before_the_time_limit_the_run_saves_and_the_job_is_requeued(cluster: Cluster) -> None:
    status, said = cluster.signalled(signal.SIGTERM)
    assert status == 130
    assert said == (
        "slurm.sbatch: SIGTERM: the run saves and ends\nslurm.sbatch: status 130: the job goes back into the queue\n"
    )
    assert cluster.asked("scancel") == ["--signal=TERM 77"]
    assert cluster.asked("scontrol") == ["requeue 77"]


def test_a_run_that_finishes_just_then_is_not_requeued(cluster: Cluster) -> None:
    assert cluster.signalled(signal.SIGTERM, 0)[0] == 0
    assert cluster.asked("scontrol") == []


def test_a_run_that_was_stopped_by_a_signal_to_its_tasks_is_requeued(cluster: Cluster) -> None:
    cluster.write("play", "exit 130")
    assert cluster.called()[0] == 130
    assert cluster.asked("scontrol") == ["requeue 77"]
    assert list(cluster.folder.glob("*.failures")) == []


def test_a_failure_after_the_signal_is_not_counted(cluster: Cluster) -> None:
    assert cluster.signalled(signal.SIGTERM, 143)[0] == 143
    assert cluster.asked("scontrol") == ["requeue 77"]
    assert list(cluster.folder.glob("*.failures")) == []


def test_bad_input_is_not_requeued(cluster: Cluster) -> None:
    cluster.write("play", "exit 2")
    status, said = cluster.called()
    assert status == 2
    assert "the run refuses its input, so it is not tried again" in said
    assert cluster.asked("scontrol") == []


def test_bad_input_is_not_requeued_after_a_signal_either(cluster: Cluster) -> None:
    assert cluster.signalled(signal.SIGTERM, 2)[0] == 2
    assert cluster.asked("scontrol") == []


def test_failures_are_requeued_a_few_times(cluster: Cluster) -> None:
    cluster.write("play", "exit 134")
    for _ in range(2):
        assert cluster.called(MAX_FAILURES="2")[0] == 134
    assert cluster.asked("scontrol") == ["requeue 77"] * 2
    status, said = cluster.called(MAX_FAILURES="2")
    assert status == 134
    assert "error: the run has failed too often, as" in said
    assert len(cluster.asked("scontrol")) == 2
    assert all(line.endswith(" status 134") for line in cluster.asked("slurm-77.failures"))


def test_usr1_ends_the_job_for_good(cluster: Cluster) -> None:
    status, said = cluster.signalled(signal.SIGUSR1)
    assert status == 130
    assert "ended for good, status 130; submit it again to resume" in said
    assert cluster.asked("scontrol") == []


def test_a_cancelled_job_is_not_requeued(cluster: Cluster) -> None:
    cluster.write("job_state", "COMPLETING")
    _, said = cluster.signalled(signal.SIGTERM)
    assert "the job was cancelled; submit it again to resume" in said
    assert cluster.asked("scontrol") == []


def test_a_refused_requeue_is_told(cluster: Cluster) -> None:
    cluster.write("no_scontrol")
    status, said = cluster.signalled(signal.SIGTERM)
    assert status == 1
    assert "error: scontrol cannot put the job back into the queue" in said


def test_a_failing_scancel_is_told(cluster: Cluster) -> None:
    cluster.write("no_scancel")
    cluster.write("play", "work 130")
    with cluster.start() as process:
        while not (cluster.folder / "at_work").exists():
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.stderr is not None
        process.stderr.readline()
        assert "scancel has failed; the run goes on until SLURM ends it" in process.stderr.readline()
        os.kill(int((cluster.folder / "task").read_text()), signal.SIGTERM)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"SLURM_JOB_ID": ""}, "this is no job; expected to be submitted: sbatch launch/slurm.sbatch"),
        ({"PYTHON": "no/python"}, "there is no no/python in"),
        ({"MAX_FAILURES": "few"}, "MAX_FAILURES=few is no whole number"),  # it would be requeued without end
    ],
)
def test_bad_input_of_the_job_is_refused(cluster: Cluster, settings: dict[str, str], message: str) -> None:
    status, said = cluster.called(**settings)
    assert status == 2
    assert said.startswith(f"slurm.sbatch: error: {message}")
    assert cluster.asked("srun") == []


def test_another_folder_than_the_repository_is_refused(cluster: Cluster) -> None:
    (cluster.folder / "launch" / "main.py").unlink()
    status, said = cluster.called()
    assert status == 2
    assert "there is no launch/main.py in" in said


def test_what_the_job_asks_for() -> None:
    options = dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", SCRIPT.read_text(), re.MULTILINE))
    assert options["signal"] == "B:TERM@120"
    assert options["requeue"] == ""
    assert options["open-mode"] == "append"
    assert options["ntasks-per-node"] == options["gpus-per-node"]  # JAX gives each task one GPU


def test_the_script_has_no_common_mistakes() -> None:
    command = [Path(sys.executable).with_name("shellcheck"), SCRIPT, *STAND_INS.iterdir()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
