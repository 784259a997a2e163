"""benchmarks/scaling.py: its rows, that it goes on where it was stopped, and where it fails."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from programs import called, loaded_benchmark, write_config
from small_model import config_values

from r2d2_jax.config.reading import Config
from r2d2_jax.planning.chips import GIB, Chip
from r2d2_jax.planning.devices import Topology
from r2d2_jax.planning.estimate import Estimate, Usage, Work
from r2d2_jax.planning.traffic import CONTRASTIVE, HARD_NEGATIVES, Collective

# Per pair of `small_model.BASE`: 5 image tokens and 10 text tokens of 16 numbers, in float32.
TOKEN_BYTES = (5 + 10) * 16 * 4
LONG_QUEUE = {"loss": {"queue_length": 1024}}


@pytest.fixture(scope="module")
def scaling() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("scaling") as module:
        yield module


@pytest.fixture
def asked(scaling: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int, int]]:
    """Which topologies and batches were compiled, by a compiler that knows them all."""
    found: list[tuple[str, int, int]] = []

    def estimate(config: Config, topology: Topology, chip: Chip, *, machine_code: bool) -> Estimate:
        count = topology.chips
        found.append((topology.name, topology.slices, count))
        assert not machine_code
        assert config.train.batch_size == 4 * count
        usage = Usage({}, 3.0 * GIB, 15.75 * GIB, temporaries=(1 + count / 1000) * GIB)
        exchange = Collective("all-to-all", 2, count, 4 * TOKEN_BYTES, HARD_NEGATIVES, "")
        gather = Collective("all-gather", 1, count, 64.0 * count, CONTRASTIVE, "")
        far = [Collective("all-gather between slices", 1, 4, 2.0**20, CONTRASTIVE, "")] if count == 1024 else []
        work = Work([], [exchange, gather, *far], None, [])
        return Estimate("none", 4 * count, {"data": count}, "TPU", chip, usage, work, 7)

    monkeypatch.setattr(scaling, "described", Topology)  # without libtpu
    monkeypatch.setattr(scaling, "estimate_apart", estimate)
    return found


def test_compiles_each_topology_once(scaling: ModuleType, asked: list[tuple[str, int, int]], tmp_path: Path) -> None:
    config_file, rows_file = write_config(tmp_path, config_values(LONG_QUEUE)), tmp_path / "rows.json"
    flags = f"--config={config_file}", "--kinds=v5e", "--pairs=4", f"--json={rows_file}"
    first = called(scaling.main, *flags, "--chips=16")
    assert first.returncode == 0, first.stderr
    ended = called(scaling.main, *flags, "--chips=16,64,8")
    assert ended.returncode == 0, ended.stderr
    assert asked == [("v5e:4x4", 1, 16), ("v5e:2x4", 1, 8), ("v5e:8x8", 1, 64)]
    rows = {row["chips"]: row for row in json.loads(rows_file.read_text(encoding="utf-8"))["rows"]}
    assert rows[64]["tokens"] == 4 * TOKEN_BYTES
    assert rows[64]["sent"] == {HARD_NEGATIVES: 2 * 4 * TOKEN_BYTES * 63 / 64, CONTRASTIVE: 64.0 * 63}
    lines = ended.stdout.splitlines()
    assert [line.split(" | ")[1] for line in lines[2:]] == ["8 v5e", "16 v5e", "64 v5e"]
    assert lines[4].split(" | ")[6] == f"{2 * 63 / 64:.2f}"


@pytest.mark.usefixtures("asked")
def test_says_what_goes_between_slices(scaling: ModuleType, tmp_path: Path) -> None:
    """A gather among four slices sends what a chip has to the three others."""
    config_file = write_config(tmp_path, config_values({"loss": {"queue_length": 4096}}))
    flags = f"--config={config_file}", "--kinds=v5e", "--pairs=4", f"--json={tmp_path / 'rows.json'}"
    lines = called(scaling.main, *flags, "--chips=1024,16,16", "--kinds=v5e,v5e").stdout.splitlines()
    titles, *rows = ([cell.strip() for cell in line.split("|")] for line in (lines[0], *lines[2:]))
    assert [row[titles.index("of all, between slices (MiB)")] for row in rows] == ["-", "3.0"]


def test_a_row_is_of_its_overrides(scaling: ModuleType, asked: list[tuple[str, int, int]], tmp_path: Path) -> None:
    config_file, rows_file = write_config(tmp_path, config_values(LONG_QUEUE)), tmp_path / "rows.json"
    flags = f"--config={config_file}", "--kinds=v5e", "--pairs=4", "--chips=16", f"--json={rows_file}"
    for overrides in ((), ("--config.mesh.fsdp=4",), ("--config.mesh.fsdp=4",)):
        assert called(scaling.main, *flags, *overrides).returncode == 0
    assert len(asked) == 2
    rows = json.loads(rows_file.read_text(encoding="utf-8"))["rows"]
    assert [row["overrides"] for row in rows] == ["", "--config.mesh.fsdp=4"]


def test_fails_where_more_is_needed_than_promised(scaling: ModuleType, asked: Any, tmp_path: Path) -> None:
    values = config_values(LONG_QUEUE)
    flags = f"--config={write_config(tmp_path, values)}", "--kinds=v5e", "--pairs=4", f"--json={tmp_path / 'rows.json'}"
    ended = called(scaling.main, *flags, "--chips=16,256")
    assert ended.returncode == 1
    assert "256 x v5e: temporaries of 1.26 GiB are more than 1.2 times the 1.02 GiB of 16 chips" in ended.stderr
    row = scaling.read_rows(tmp_path / "rows.json")[0]
    much = dataclasses.replace(row, sent={HARD_NEGATIVES: 4.5 * row.tokens})
    assert scaling.growing([much], 1.2) == ["16 x v5e: hard negatives send 4.5 times a chip's own tokens, more than 4"]


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--kinds=", "--kinds=: expected of v4, v5e, v5p, v6e"),
        ("--kinds=v2", "--kinds=v2: expected of v4, v5e, v5p, v6e"),
        ("--chips=12", "--chips=12: expected of 8, 16, 64, 256, 1024"),
    ],
)
def test_refuses_what_it_does_not_know(scaling: ModuleType, tmp_path: Path, flag: str, said: str) -> None:
    flags = f"--config={write_config(tmp_path, config_values())}", f"--json={tmp_path / 'rows.json'}"
    ended = called(scaling.main, *flags, flag)
    assert ended.returncode == 2
    assert said in ended.stderr


def test_refuses_a_file_of_something_else(scaling: ModuleType, tmp_path: Path) -> None:
    other = tmp_path / "rows.json"
    # The second is a row of the time when temporaries had the machine code among them.
    for text in ('{"rounds": []}', '{"rows": [{"config": "vitl_250m", "kind": "v5e", "temporaries": 7}]}'):
        other.write_text(text, encoding="utf-8")
        ended = called(scaling.main, f"--config={write_config(tmp_path, config_values())}", f"--json={other}")
        assert ended.returncode == 2
        assert "holds no rows of this program" in ended.stderr
        assert other.read_text(encoding="utf-8") == text
