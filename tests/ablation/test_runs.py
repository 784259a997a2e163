"""When a run of an ablation is done, and what its configuration file trains."""

import json
from pathlib import Path

import pytest
from small_model import small_config

from r2d2_jax.ablation.plan import Plan, make_plan
from r2d2_jax.ablation.progress import state_of
from r2d2_jax.ablation.runs import AblationRun, write_configs
from r2d2_jax.config.reading import Config
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.lineage import LINEAGE, write_lineage


@pytest.fixture
def run(tmp_path: Path) -> AblationRun:
    """A run of ten steps that has noted its length."""
    run = AblationRun(tmp_path, "prd2", 3)
    run.folder.mkdir(parents=True)
    write_lineage(({"task": "pretraining", "planned_steps": 10, "batch_size": 8},), run.folder / LINEAGE)
    return run


def evaluated(run: AblationRun, **values: float) -> None:
    (run.folder / "evaluation.json").write_text(json.dumps({"validation/dual/mean": 50.0} | values))


def test_a_run_is_done_with_the_evaluation_of_its_last_step(run: AblationRun) -> None:
    assert run.result() is None
    evaluated(run, step=9)
    assert run.result() is None
    evaluated(run, step=10)
    assert run.result() == {"validation/dual/mean": 50.0}
    evaluated(run, step=6, last_step=10)  # of a run that chose its best weights
    assert run.result() == {"validation/dual/mean": 50.0}


def test_a_run_is_not_done_before_its_last_checkpoint_is_whole(run: AblationRun) -> None:
    evaluated(run, step=10)
    (run.folder / "checkpoints" / "8").mkdir(parents=True)
    (run.folder / "checkpoints" / "10.orbax-checkpoint-tmp").mkdir()
    assert run.result() is None
    (run.folder / "checkpoints" / "10").mkdir()
    assert run.result() is not None


@pytest.mark.parametrize("text", ["", "[", "{}"])
def test_an_evaluation_that_cannot_be_read_is_none(run: AblationRun, text: str) -> None:
    (run.folder / "evaluation.json").write_text(text)
    assert run.result() is None


def test_where_a_run_is_comes_from_its_own_log(run: AblationRun) -> None:
    assert state_of(run) == ("prd2/seed_3 begins", 0.0)
    lines = [{"step": 4, "loss": 1.0, "pairs_per_second": 0.5}, {"step": 4, "validation/dual/mean": 9.0}]
    log = run.folder / "metrics.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines) + '{"step": 5, "lo')
    assert state_of(run) == ("prd2/seed_3 step 4/10, 0:01:36 left", 0.4)
    log.write_text(json.dumps({"step": 10, "loss": 1.0, "pairs_per_second": 0.5}))
    assert state_of(run) == ("prd2/seed_3 evaluates", 1.0)


def test_a_variant_s_file_is_its_configuration(tmp_path: Path) -> None:
    odd = small_config({"data": {"directory": 'a"b\\c'}, "optimizer": {"rates": (("bias", 2.0),)}})
    changed = small_config({"data": {"directory": '"""\\'}, "loss": {"fgd": False}})
    plan: Plan = make_plan(odd, {"odd": changed}, [0])
    write_configs(plan, tmp_path)
    for variant, config in (("full", odd), ("odd", changed)):
        read = read_configuration(str(AblationRun(tmp_path, variant, 0).config), ["--config.train.seed=5"])
        assert Config.from_config_dict(read).train.seed == 5
        read.train.seed = 0
        assert Config.from_config_dict(read) == config
