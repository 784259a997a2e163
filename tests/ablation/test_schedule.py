"""The runs of an ablation, whatever is killed, stopped or fails meanwhile."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fake_ablation as program
import pytest
from fake_ablation import PLAN, fake_ablation
from fake_run import STEPS
from small_corpus import until

from r2d2_jax.ablation import schedule
from r2d2_jax.ablation.plan import Plan
from r2d2_jax.ablation.runs import AblationRun, results_of
from r2d2_jax.ablation.table import ablation_document
from r2d2_jax.errors import UserError
from r2d2_jax.lock import held

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ablation that nothing has disturbed."""
    root = tmp_path_factory.mktemp("undisturbed")
    assert fake_ablation(root) == []
    return root


def table(root: Path, plan: Plan = PLAN) -> str:
    return json.dumps(ablation_document(plan, results_of(plan, root), {}))


def test_every_variant_is_trained_with_every_seed(undisturbed: Path) -> None:
    results = results_of(PLAN, undisturbed)
    assert {variant: list(runs) for variant, runs in results.items()} == {"full": [0, 1], "other": [0, 1]}
    assert len({runs[seed]["validation/dual/mean"] for runs in results.values() for seed in runs}) == 4


def killed_parent(root: Path, run: AblationRun, lines: int) -> None:
    """An ablation that is killed as soon as a run has so many lines in its log."""
    process = subprocess.Popen(
        [sys.executable, program.__file__, str(root)],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    log = run.folder / "metrics.jsonl"
    until(lambda: log.exists() and log.read_bytes().count(b"\n") >= lines, process)
    process.kill()
    process.communicate()


def test_killed_at_several_moments_it_gives_the_same_table(undisturbed: Path, tmp_path: Path) -> None:
    """The ablation twice, and then a run."""
    killed_parent(tmp_path, AblationRun(tmp_path, "full", 0), lines=2)
    killed_parent(tmp_path, AblationRun(tmp_path, "other", 0), lines=6)
    (tmp_path / "other" / "kill").touch()
    (failure,) = fake_ablation(tmp_path)
    assert (failure.run.variant, failure.reason) == ("other", "killed by SIGKILL, as when memory ends")
    assert fake_ablation(tmp_path) == []
    assert table(tmp_path) == table(undisturbed)


def test_a_killed_ablation_leaves_nobody_at_work(tmp_path: Path) -> None:
    run = AblationRun(tmp_path, "full", 0)
    keep_waiting(tmp_path, "full")
    killed_parent(tmp_path, run, lines=1)
    until(lambda: not (run.folder / "lock").exists())  # it has noticed, and left in good order
    step, _ = json.loads((run.folder / "state.json").read_text())
    assert 1 <= step < STEPS


def keep_waiting(root: Path, *variants: str) -> list[Path]:
    """Files that keep runs of variants at work; returns them."""
    files = [root / variant / "wait" for variant in variants]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        file.touch()
    return files


def test_stopping_lets_the_others_save(tmp_path: Path) -> None:
    def stop() -> None:
        until(lambda: len(list(tmp_path.glob("*/seed_0/metrics.jsonl"))) == 3)
        raise KeyboardInterrupt

    plan = Plan({}, {"full": {}, "other": {"a": 1}, "third": {"b": 1}}, (0,))
    fake_ablation(tmp_path, plan=Plan({}, {"full": {}}, (0,)))
    (tmp_path / "full" / "seed_0" / "evaluation.json").unlink()  # only evaluates, and is done first
    waiting = keep_waiting(tmp_path, "other", "third")
    with pytest.raises(KeyboardInterrupt):
        fake_ablation(tmp_path, plan=plan, at_once=3, finished=stop)
    assert list(results_of(plan, tmp_path)["full"]) == [0]
    assert not list(tmp_path.glob("*/seed_0/lock"))
    assert all((file.parent / "seed_0" / "state.json").exists() for file in waiting)
    for file in waiting:
        file.unlink()
    assert fake_ablation(tmp_path, plan=plan) == []


def test_a_run_that_fails_does_not_keep_the_others(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "fail").touch()
    failures = fake_ablation(tmp_path)
    assert [(failure.run.name, failure.reason) for failure in failures] == [
        (f"other/seed_{seed}", "error: there is no data;\nmake some") for seed in (0, 1)
    ]
    assert {variant: list(runs) for variant, runs in results_of(PLAN, tmp_path).items()} == {
        "full": [0, 1],
        "other": [],
    }


def test_while_nothing_is_done_a_failure_ends_it(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "fail").touch()
    (failure,) = fake_ablation(tmp_path)
    assert failure.run.name == "full/seed_0"
    assert not (tmp_path / "other").exists()


def test_a_run_that_somebody_stops_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "stop").touch()
    plan = Plan({}, PLAN.variants, (0,))
    (failure,) = fake_ablation(tmp_path, plan=plan)
    assert (failure.run.name, failure.reason) == ("other/seed_0", "it was stopped before its end")


def test_added_seeds_and_variants_leave_what_is_there(undisturbed: Path, tmp_path: Path) -> None:
    fake_ablation(tmp_path, plan=Plan({}, {"full": {}}, (0,)))
    before = (tmp_path / "full" / "seed_0" / "evaluation.json").stat().st_mtime_ns
    fake_ablation(tmp_path)
    assert (tmp_path / "full" / "seed_0" / "evaluation.json").stat().st_mtime_ns == before
    assert table(tmp_path) == table(undisturbed)


def test_somebody_who_trains_there_and_does_not_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "_PREDECESSOR_SECONDS", 0.0)
    folder = AblationRun(tmp_path, "full", 0).folder
    with held(folder, "a run", "--workdir"), pytest.raises(UserError, match="another run is at work in"):
        fake_ablation(tmp_path)
