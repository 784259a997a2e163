"""benchmarks/train_step.py: the structure of what it reports, and where it stops and fails."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import pytest
from absl.testing import flagsaver
from ml_collections import ConfigDict
from programs import loaded_benchmark, write_config
from small_model import NO_CROSS, config_values

from r2d2_jax.errors import UserError


@pytest.fixture(scope="module")
def train_step() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("train_step") as module:
        yield module


def test_a_row_for_each_task_with_what_was_measured(
    train_step: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file, report_file = write_config(tmp_path, config_values()), tmp_path / "steps.json"
    with flagsaver.flagsaver(
        config=[str(config_file)],
        kind=["float32"],
        float32_batch_size=4,
        steps=2,
        matrix=32,
        json=str(report_file),
    ):
        train_step.main([])
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert set(report["matrix_tflops"]) == {"bfloat16", "float32"}
    assert set(report["g_multiply_adds_per_pair"]) == {"small pretraining", "small retrieval"}
    assert [(row["task"], row["batch_size"], row["outcome"]) for row in report["rows"]] == [
        ("pretraining", 4, "measured"),
        ("retrieval", 4, "measured"),
    ]
    for row in report["rows"]:
        assert report["g_multiply_adds_per_pair"][f"small {row['task']}"] > 0
        assert all(row[name] > 0 for name in ("compile_s", "planned_gib", "step_ms", "pairs_per_s", "share"))
        assert row["first_step"]["loss"] > 0
        assert row["pairs_per_s"] == pytest.approx(4e3 / row["step_ms"])
    printed = capsys.readouterr().out.splitlines()
    assert printed[1].startswith("config ")
    assert len([text for text in printed if text.startswith("small        ")]) == 2


def test_every_layer_counts_once(train_step: ModuleType) -> None:
    """Layers in a loop count as so many, and recomputing them is no work."""
    two, three = (
        train_step.multiply_adds(ConfigDict(config_values({"model": {"remat": remat, "text": {"layers": layers}}})), 8)
        for layers, remat in ((2, "all"), (3, "none"))
    )
    assert 1.02 * two < three < 1.5 * two


def test_stops_at_the_first_batch_that_does_not_fit(train_step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def step_times(step: object, state: object, plan: object, steps: int) -> tuple[list[float], dict[str, float]]:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.")

    monkeypatch.setattr(train_step, "step_times", step_times)
    with flagsaver.flagsaver(kind=["bfloat16"], batch_sizes=["8", "4"]):
        config = ConfigDict(config_values(NO_CROSS, {"task": "pretraining"}))
        rows = list(train_step.rows_of("small", config, jax.devices()[0], 1e6, 1e12, 0.0))
    assert [(row.batch_size, row.outcome) for row in rows] == [(4, "out of memory")]
    assert rows[0].planned_gib > 0
    assert "out of memory" in train_step.line(rows[0])


def test_names_what_there_was_no_time_for(train_step: ModuleType) -> None:
    config = ConfigDict(config_values(NO_CROSS, {"task": "pretraining"}))
    with flagsaver.flagsaver(kind=["bfloat16", "float32"], batch_sizes=["4"], seconds=0.0):
        rows = list(train_step.rows_of("small", config, jax.devices()[0], 1e6, 1e12, 0.0))
    assert [(row.kind, row.outcome) for row in rows] == [("bfloat16", "no time left"), ("float32", "no time left")]


def test_unknown_kinds_and_wrong_batch_sizes_are_named(train_step: ModuleType) -> None:
    with (
        flagsaver.flagsaver(kind=["int8"]),
        pytest.raises(UserError, match=r"^--kind=int8: expected of bfloat16, bfloat16_products"),
    ):
        train_step.main([])
    with flagsaver.flagsaver(task=[]), pytest.raises(UserError, match=r"^--task=: expected of pretraining, retrieval"):
        train_step.main([])
    with (
        flagsaver.flagsaver(batch_sizes=["32", "many"]),
        pytest.raises(UserError, match=r"--batch_sizes=32,many: expected numbers above 1"),
    ):
        train_step.batch_sizes("bfloat16")
