"""How the machine is shared, and what a process of an ablation says of its end."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from r2d2_jax.ablation import children
from r2d2_jax.ablation.children import Child, Share, shares
from r2d2_jax.errors import UserError


@pytest.fixture
def devices(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets what a process of its own would say of JAX's devices, and the cores."""

    def set_devices(said: str, cores: int = 5) -> None:
        probe = subprocess.CompletedProcess([], 0 if said else 1, f"{said}\n", "no driver\n")
        monkeypatch.setattr(children.subprocess, "run", lambda *_, **__: probe)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2, 2 + cores)), raising=False)

    return set_devices


def test_one_training_has_everything() -> None:
    assert shares(1) == [Share()]


def test_cores_are_shared(devices: Callable[..., None]) -> None:
    devices("cpu 1")
    assert shares(2) == [Share(cores=frozenset({2, 3})), Share(cores=frozenset({4, 5}))]


@pytest.mark.parametrize(("visible", "parts"), [(None, ["0,1", "2,3"]), ("4,5,GPU-a,7", ["4,5", "GPU-a,7"])])
def test_gpus_are_shared(
    devices: Callable[..., None], visible: str | None, parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    devices("gpu 4")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert shares(2) == [Share(environment={"CUDA_VISIBLE_DEVICES": part}) for part in parts]


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("cpu 1", "--at_once=8: there are 5 CPU cores; expected that many at most"),
        ("gpu 4", "--at_once=8: there are 4 GPUs; expected that many at most"),
        ("tpu 4", "--at_once=8: a TPU belongs to one process; expected 1"),
        ("", "--at_once=8: JAX finds no devices: no driver"),
    ],
)
def test_more_parts_than_there_is(devices: Callable[..., None], said: str, message: str) -> None:
    devices(said)
    with pytest.raises(UserError, match=f"^{message}$"):
        shares(8)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="there is no affinity on this system")
def test_a_child_has_its_share_and_nothing_else(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    code = "import os; print(os.environ['A'], os.read(0, 1), sorted(os.sched_getaffinity(0)))"
    child = Child([sys.executable, "-c", code], tmp_path / "out.log", Share(frozenset({core}), {"A": "b"}))
    child.leave()  # it waits for that
    assert child.wait() == 0
    assert child.complaint() == f"b b'' [{core}]"


def test_of_what_a_child_prints_the_message_is_its_complaint(tmp_path: Path) -> None:
    output = tmp_path / "out.log"
    output.write_text("error: of an earlier one\n")
    child = Child([sys.executable, "-c", "print('loading\\nerror: no data;\\n  - here'); exit(2)"], output, Share())
    assert child.wait() == 2
    child.leave()
    assert child.complaint() == "error: no data;\n  - here"
    assert output.read_text().startswith("error: of an earlier one\nloading\n")
