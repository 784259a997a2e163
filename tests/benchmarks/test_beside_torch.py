"""benchmarks/beside_torch.py: PyTorch's step learns what ours learns, and what the program prints and refuses."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from programs import called, loaded_benchmark, write_config
from small_model import config_values

from r2d2_jax.config.reading import Config
from r2d2_jax.convert.naming import to_theirs
from r2d2_jax.convert.torch_r2d2 import published_places
from r2d2_jax.errors import UserError
from r2d2_jax.sharding import global_batch
from r2d2_jax.train.trial import random_rows

torch = pytest.importorskip("torch")
STEPS = 4  # of 8 pairs with a queue of 20: the queue wraps round
LARGE = {"train": {"batch_size": 8}, "optimizer": {"clip_norm": 0.5, "warmup_steps": 2, "initial_learning_rate": 1e-4}}


@pytest.fixture(scope="module")
def beside_torch() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("beside_torch") as module:
        yield module


@pytest.mark.parametrize("frozen", [True, False])
def test_pytorch_learns_the_same(beside_torch: ModuleType, frozen: bool) -> None:
    """Step by step: the terms of the loss; and after the last, parameters, teacher, queue and feature mean.

    The optimizer's epsilon is far above rounding, because Adam makes a whole step of a gradient that is nothing else.
    """
    changes: Mapping[str, Any] = {"model": {"freeze_image_tower": frozen}, "optimizer": {"epsilon": 1e-5}}
    sides = beside_torch.Sides(ConfigDict(config_values(LARGE, changes)))
    plan, state, step = sides.plan, sides.state(), sides.plan.compiled()
    for number in range(STEPS):
        rows = random_rows(plan, number)
        rows["image_id"][1] = rows["image_id"][0]  # two texts of one image
        batch = global_batch(plan.mesh, rows)
        state, metrics = step(state, batch, sides.key)
        draws = beside_torch.OurDraws(plan, batch, sides.key)
        terms = sides.torch_step.step(beside_torch.torch_batch(rows, "cpu"), draws)
        assert set(terms) == {"tgd", "fgr", "mlm", "fgd"}
        for name, term in terms.items():
            assert float(term) == pytest.approx(float(metrics[name]), rel=1e-5, abs=1e-6), (number, name)
    theirs, memory = sides.torch_step, state.memory
    places = published_places(sides.config.model)
    start, params = to_theirs(sides.params, places), jax.device_get(state.params)
    moved_alike(theirs.trained.model.state_dict(), to_theirs(params, places), start)
    averaged = theirs.teacher.state_dict()
    assert any(name.startswith("visual_encoder.") for name in averaged) != frozen
    moved_alike(averaged, to_theirs({**params, **jax.device_get(memory.teacher)}, places), start)
    np.testing.assert_allclose(theirs.queue.text_embed, memory.queue.text_embed, atol=2e-5)
    np.testing.assert_array_equal(theirs.queue.age, memory.queue.age)
    np.testing.assert_allclose(theirs.feature_mean, memory.feature_mean, atol=2e-5)


def moved_alike(theirs: Mapping[str, Any], ours: Mapping[str, np.ndarray], start: Mapping[str, np.ndarray]) -> None:
    """Every tensor has gone the same way from the start, but for rounding, which Adam magnifies."""
    for name in theirs.keys() & ours.keys():
        moved, apart = np.linalg.norm(ours[name] - start[name]), np.linalg.norm(theirs[name].numpy() - ours[name])
        assert apart <= 2e-3 * moved + 1e-6 * ours[name].size ** 0.5, name


def test_prints_and_writes_every_stage(beside_torch: ModuleType, tmp_path: Path) -> None:
    config_file, report_file = write_config(tmp_path, config_values()), tmp_path / "beside.json"
    flags = "--pairs=4", "--dtype=float32", "--rounds=2", f"--json={report_file}"
    ended = called(beside_torch.main, f"--config={config_file}", *flags)
    assert ended.returncode == 0, ended.stderr
    report = json.loads(report_file.read_text(encoding="utf-8"))
    assert [row["stage"] for row in report["rows"]] == ["train_step", "encode_image", "encode_text", "match"]
    assert set(report["apart"]) == {"tgd", "fgr", "mlm", "fgd", "loss"}
    for row in report["rows"]:
        assert len(row["seconds"]) == 2
        assert row["ratio"] == pytest.approx(row["ours"] / row["torch"])
    assert len([line for line in ended.stdout.splitlines() if line.startswith(beside_torch.STAGES)]) == 4


def test_other_work_in_pytorch_fails(beside_torch: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside_torch.TorchPretraining, "_fgd", lambda *_: torch.zeros((), requires_grad=True))
    config_file = write_config(tmp_path, config_values({"loss": {"fgd_ramp_epochs": 0.0}}))
    ended = called(beside_torch.main, f"--config={config_file}", "--pairs=4", "--dtype=float32")
    assert ended.returncode == 1
    assert "error: fgd is another in PyTorch" in ended.stderr
    assert "train_step" not in ended.stdout


@pytest.mark.parametrize(
    ("changes", "other"),
    [({"loss": {"contrastive": "gcpr"}}, "loss.contrastive"), ({"loss": {"text_ids": True}}, "loss.text_ids")],
)
def test_refuses_another_method(beside_torch: ModuleType, changes: Mapping[str, Any], other: str) -> None:
    config = Config.from_config_dict(ConfigDict(config_values(changes)))
    with pytest.raises(UserError, match=rf"of pre-training with the whole method; expected no other {other}"):
        beside_torch.check_whole_method(config)


def test_refuses_unknown_stages(beside_torch: ModuleType, tmp_path: Path) -> None:
    config_file = write_config(tmp_path, config_values())
    ended = called(beside_torch.main, f"--config={config_file}", "--stages=decode")
    assert ended.returncode == 2
    assert "--stages=decode: expected of train_step, encode_image, encode_text, match" in ended.stderr
