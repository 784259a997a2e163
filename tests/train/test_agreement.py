"""What processes must have alike: what is compared, and how a message says who differs."""

import functools
import json
import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import pytest
from small_model import small_config, write_small_dataset

from r2d2_jax.config.run import MeshConfig
from r2d2_jax.errors import UserError
from r2d2_jax.sharding import make_mesh
from r2d2_jax.train import agreement
from r2d2_jax.train.agreement import check_same_data, check_same_program, log_what_joined
from r2d2_jax.vocabulary import SPECIAL_TOKENS, Vocabulary

VOCABULARY = Vocabulary([*SPECIAL_TOKENS, "红"])
own = threading.local()  # number: of the process that a thread stands for


def together(patch: pytest.MonkeyPatch, *checks: Callable[[], None]) -> list[str]:
    """Makes each check as a process of its own, on host0, host1, ...; what each refuses, "" where it does not."""
    barrier, said = threading.Barrier(len(checks)), [""] * len(checks)

    def gather(value: Any) -> list[Any]:
        said[own.number] = json.dumps(value)
        barrier.wait(timeout=60)
        found = [json.loads(each) for each in said]
        barrier.wait(timeout=60)
        return found

    def outcome(number: int) -> str:
        own.number = number
        try:
            checks[number]()
        except UserError as error:
            return str(error)
        return ""

    patch.setattr(jax, "process_count", lambda: len(checks))
    patch.setattr(agreement, "gather_json", gather)
    patch.setattr(agreement.socket, "gethostname", lambda: f"host{own.number}")
    with ThreadPoolExecutor(len(checks)) as pool:
        return list(pool.map(outcome, range(len(checks))))


def same_program(*changes: Any) -> Callable[[], None]:
    return functools.partial(check_same_program, small_config(*changes))


def same_data(folder: Path, vocabulary: Vocabulary = VOCABULARY) -> Callable[[], None]:
    return functools.partial(check_same_data, small_config({"data": {"directory": str(folder)}}), vocabulary)


def test_one_process_alone_is_not_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(agreement, "gather_json", lambda value: pytest.fail("there is nobody to ask"))
    check_same_program(small_config())
    check_same_data(small_config({"data": {"directory": str(tmp_path / "absent")}}), VOCABULARY)
    log_what_joined(make_mesh(MeshConfig(1, 1), jax.devices()[:1]))


def test_places_of_data_may_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    checks = [same_program({"data": {"directory": f"/disk{number}", "vocabulary": f"/{number}"}}) for number in (0, 1)]
    assert together(monkeypatch, *checks) == ["", ""]


def test_another_configuration_is_named_with_its_process(monkeypatch: pytest.MonkeyPatch) -> None:
    usual, other = same_program(), same_program({"train": {"seed": 7}, "optimizer": {"learning_rate": 0.5}})
    said = together(monkeypatch, usual, usual, other)
    assert len(set(said)) == 1
    lines = said[0].splitlines()
    assert lines[0] == (
        "the processes of this run differ; give all processes the same flags, and install the same commit and packages "
        "on all hosts:"
    )
    assert lines[1].startswith("  - configuration optimizer.learning_rate: ")
    assert lines[2] == "  - configuration train.seed: 0 to process 0 on host0, 1 on host1; 7 to process 2 on host2"
    assert len(lines) == 3


def test_other_code_and_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {0: [("losses/new.py", "aa")], 1: []}
    monkeypatch.setattr(agreement, "_files_of_code", lambda: files[own.number])
    monkeypatch.setattr(agreement, "_version", lambda name: "2.0" if name == "jax" and own.number else "1.0")
    for said in together(monkeypatch, same_program(), same_program()):
        assert said.splitlines()[1:] == [
            "  - file losses/new.py of r2d2_jax: aa to process 0 on host0; absent to process 1 on host1",
            "  - package jax: 1.0 to process 0 on host0; 2.0 to process 1 on host1",
        ]


def test_what_is_compared_of_code_and_packages() -> None:
    names = [name for name, _ in agreement._files_of_code()]
    assert {"__init__.py", "losses/contrastive.py", "launch/main.py", "configs/demo.py"} <= set(names)
    assert agreement._version("jax") == jax.__version__
    assert agreement._version("no-such-package") == "absent"


def test_the_same_data_in_two_places(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = [write_small_dataset(tmp_path / str(number)) for number in (0, 1)]
    assert together(monkeypatch, *map(same_data, folders)) == ["", ""]


def test_a_shard_of_another_size_and_another_vocabulary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = [write_small_dataset(tmp_path / str(number)) for number in (0, 1)]
    shard = next(folders[1].rglob("*train*00000-of-00001"))
    size = shard.stat().st_size
    shard.write_bytes(shard.read_bytes() + b"more")
    longer = Vocabulary([*VOCABULARY, "蓝"])
    for said in together(monkeypatch, same_data(folders[0]), same_data(folders[1], longer)):
        first, *lines = said.splitlines()
        assert first.endswith("copy the whole dataset to all hosts, or name a folder that they share:")
        assert lines[0].startswith("  - vocabulary: 6 tokens with digest ")
        assert "; 7 tokens with digest " in lines[0]
        name = "/".join(shard.parts[-3:])
        assert (
            lines[1] == f"  - file {name}: {size} bytes to process 0 on host0; {size + 4} bytes to process 1 on host1"
        )
        assert len(lines) == 2


def test_long_lists_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        agreement, "_files_of_code", lambda: [(f"{number}.py", f"{own.number % 2}") for number in range(12)]
    )
    (said, *_) = together(monkeypatch, *[same_program()] * 12)
    lines = said.splitlines()
    assert lines[1] == (
        "  - file 0.py of r2d2_jax: 0 to process 0 on host0, 2 on host2, 4 on host4, 6 on host6 and 2 more; "
        "1 to process 1 on host1, 3 on host3, 5 on host5, 7 on host7 and 2 more"
    )
    assert len(lines) == 12
    assert lines[-1] == "  and 2 more"


def test_one_line_says_what_joined(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    mesh = make_mesh(MeshConfig(1, 1), jax.devices()[:1])
    with caplog.at_level(logging.INFO):
        together(monkeypatch, *[functools.partial(log_what_joined, mesh)] * 2)
    said = (
        f"2 processes on 2 hosts (host0, host1), {jax.device_count()} devices cpu in 1 slice(s), mesh data 1 x fsdp 1"
    )
    assert caplog.messages == [said] * 2


def test_clocks_that_differ_are_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    off = [0.0, 30.0, 7200.0, -90.0]
    monkeypatch.setattr(agreement.time, "time", lambda: 1e9 + off[own.number])
    joined = functools.partial(log_what_joined, make_mesh(MeshConfig(1, 1), jax.devices()[:1]))
    caplog.set_level(logging.WARNING)
    assert together(monkeypatch, joined, joined) == ["", ""]
    assert not caplog.records
    assert together(monkeypatch, *[joined] * 4) == [""] * 4
    (said,) = {record.getMessage() for record in caplog.records}
    far = "process 2 on host2 is 2 h ahead, process 3 on host3 is 90 s behind"
    assert said.startswith(f"clocks differ from that of process 0 on host0: {far}; set them, by NTP, or times")
