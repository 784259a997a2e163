"""A Google Cloud that is a folder, kept by tests/stand_ins/cloud/gcloud, and calls of launch/tpu_pod.sh."""

import shutil
import signal
import subprocess
from pathlib import Path

from programs import ROOT

STAND_INS = ROOT / "tests" / "stand_ins" / "cloud"
POD = ("--name=pod", "--zone=us-west4-a", "--type=v5litepod-16", "--runtime=v2-alpha-tpuv5-lite")
PLACE = POD[:2]
PROGRAM = ("--", "launch/main.py", "--config=vitl_250m", "--workdir=/mnt/a run", "--distributed")
COSTS = "pod costs money until it is gone: launch/tpu_pod.sh delete --name=pod --zone=us-west4-a"


class Cloud:
    """A cloud without pods, and calls of the program that uses it."""

    def __init__(self, folder: Path, repository: Path) -> None:
        self.folder, self.repository = folder, repository
        folder.mkdir()
        self.write("workers", "2")
        self.write("queue_of_a_new_pod", "ACTIVE")
        self.write("play", "exit 0")

    def write(self, name: str, *lines: str) -> None:
        (self.folder / name).write_text("".join(f"{line}\n" for line in lines))

    def lines(self, name: str) -> list[str]:
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def verbs(self) -> list[str]:
        """What was asked of gcloud, without looks and connections."""
        verbs = [call.split()[3] for call in self.lines("calls")]
        return [verb for verb in verbs if verb not in ("describe", "ssh", "scp")]

    def start(self, *arguments: str, **settings: str) -> subprocess.Popen[str]:
        environment = {
            "PATH": f"{STAND_INS}:/usr/bin:/bin:{Path(str(shutil.which('git'))).parent}",
            "CLOUD": str(self.folder),
            "POLL_SECONDS": "0.02",
            "REACH_TRIES": "3",
            **settings,
        }
        program = self.repository / "launch" / "tpu_pod.sh"
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            ["bash", program, *arguments], env=environment, start_new_session=True, preexec_fn=default_signals, **pipes
        )

    def call(self, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, **settings) as process:
            printed, errors = process.communicate(timeout=30)
        return subprocess.CompletedProcess(arguments, process.returncode, printed, errors)


def default_signals() -> None:
    """Tests may run where signals are ignored, as under nohup; bash cannot trap a signal that it finds ignored."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def install(cloud: Cloud, *asked: str) -> None:
    """A pod on which the package is installed; `asked` are other flags of its request."""
    assert cloud.call("create", *(asked or POD)).returncode == 0
    assert cloud.call("install", *PLACE).returncode == 0


def refusal(done: subprocess.CompletedProcess[str], status: int = 2) -> str:
    """What it says, if it ends with this status."""
    assert done.returncode == status, done.stderr
    return done.stderr


def read_until(process: subprocess.Popen[str], said: str) -> None:
    """Reads its messages up to the line that says so; fails if it ends without."""
    assert process.stderr is not None
    while said not in (line := process.stderr.readline()):
        assert line, f"it has ended without saying {said}"
