"""A cloud without pods for tests of launch/tpu_pod.sh."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_cloud import Cloud
from programs import ROOT


@pytest.fixture(scope="session")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that has the launchers and an empty program, with everything committed."""
    folder = tmp_path_factory.mktemp("repository")
    (folder / "launch").mkdir()
    for script in (ROOT / "launch").glob("tpu_*.sh"):
        shutil.copy(script, folder / "launch")
    (folder / "launch" / "main.py").touch()
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    for command in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "all")):
        subprocess.run(["git", "-C", folder, *command], check=True)
    return folder


@pytest.fixture
def cloud(tmp_path: Path, repository: Path) -> Iterator[Cloud]:
    yield Cloud(tmp_path / "cloud", repository)
    for path in tmp_path.glob("cloud/worker-*/r2d2_jax/run/pid"):
        try:
            os.killpg(int(path.read_text()), signal.SIGKILL)
        except (ProcessLookupError, ValueError):
            continue
