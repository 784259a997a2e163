"""launch/ablate.py: what it refuses, what it hands on, and one small ablation to its table."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from programs import called, write_config
from small_model import CHEAPEST, config_values, write_small_dataset

from r2d2_jax.ablation import cost, schedule
from r2d2_jax.ablation.cost import COSTS
from r2d2_jax.ablation.plan import FULL, kept_plan
from r2d2_jax.ablation.runs import AblationRun
from r2d2_jax.ablation.schedule import Failure
from r2d2_jax.launch.ablate import main
from r2d2_jax.lineage import LINEAGE, write_lineage
from r2d2_jax.lock import held

RUN: dict[str, Any] = {"data": {"foil_split": "swapped"}, "train": {"epochs": 1.0, "log_every": 1}}


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A configuration file of the whole method at its smallest."""
    folder = tmp_path_factory.mktemp("config")
    return str(write_config(folder, config_values(RUN, {"data": {"directory": str(folder / "data")}})))


def leave_result(run: AblationRun, **figures: float) -> None:
    """Leaves what a run of four steps leaves that tells its result."""
    write_lineage(({"task": "pretraining", "planned_steps": 4},), run.folder / LINEAGE)
    (run.folder / "evaluation.json").write_text(json.dumps({"step": 4, **figures}))


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Every run has a result at once, its seed; returns the commands of the runs."""
    commands: list[list[str]] = []

    def train_all(
        runs: Sequence[AblationRun], command: Callable[[AblationRun], list[str]], *_: Any, finished: Callable[[], None]
    ) -> list[Failure]:
        for run in (run for run in runs if run.result() is None):
            commands.append(command(run))
            leave_result(run, **{"foil/dual": float(run.seed)})
            finished()
        return []

    monkeypatch.setattr(schedule, "train_all", train_all)
    monkeypatch.setattr(cost, "measure_in_child", lambda plan, folder: "")
    return commands


def test_the_articles_variants_are_trained_with_three_seeds(
    at_once: list[list[str]], config: str, tmp_path: Path
) -> None:
    done = called(main, f"--config={config}", f"--workdir={tmp_path}", "--config.train.epochs=2")
    assert done.returncode == 0, done.stderr
    variants = ["full", "prd2", "without_et", "without_twd", "without_fgd", "without_tgd"]
    assert [command[-1] for command in at_once] == [
        f"--workdir={tmp_path}/{variant}/seed_{seed}" for seed in (0, 1, 2) for variant in variants
    ]
    assert at_once[1][3:5] == [f"--config={tmp_path}/prd2/config.py", "--config.train.seed=0"]
    plan = kept_plan(tmp_path)
    assert plan is not None
    assert plan.config["train"]["epochs"] == 2.0
    assert "| prd2 | 3 | 1.00 ± 1.00 | none |" in done.stdout
    assert (tmp_path / "ablation.md").read_text() in done.stdout
    assert json.loads((tmp_path / "ablation.json").read_text())["variants"]["prd2"]["seeds"] == [0, 1, 2]
    assert (tmp_path / "ablation.png").is_file()


def test_own_variants_and_more_seeds_are_added(at_once: list[list[str]], config: str, tmp_path: Path) -> None:
    own = "--variant=slow: loss.teacher_momentum=0.9 optimizer.rates='((\"bias\", 2.0),)'"
    given = (f"--config={config}", f"--workdir={tmp_path}")
    called(main, *given, "--seeds=5", own)
    plan = kept_plan(tmp_path)
    assert plan is not None
    assert plan.variants == {
        FULL: {}, "slow": {"loss.teacher_momentum": 0.9, "optimizer.rates": [["bias", 2.0]]},
    }  # fmt: skip
    del at_once[:]
    done = called(main, *given, "--seeds=5,7", "--variants=prd2,full")
    assert [command[-1].partition(str(tmp_path))[2] for command in at_once] == [
        "/prd2/seed_5", "/full/seed_7", "/prd2/seed_7",
    ]  # fmt: skip
    assert "| slow | 1 |" in done.stdout
    table = called(main, f"--workdir={tmp_path}", "--table_only").stdout
    assert table == done.stdout


def test_a_table_of_nothing(tmp_path: Path) -> None:
    done = called(main, f"--workdir={tmp_path}", "--table_only")
    assert done.returncode == 2
    assert done.stderr == f"error: --workdir={tmp_path} holds no ablation yet\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--variants=prd2,withot_et"],
            "--variants: there is no variant 'withot_et'; the article has prd2, without_et, ",
        ),
        (["--seeds="], "--seeds=: expected numbers, as --seeds=0,1,2"),
        (["--seeds=0,,1"], "--seeds=0,,1: expected numbers, as --seeds=0,1,2"),
        (["--seeds=0,4294967296"], "--seeds=0,4294967296: 4294967296 is too large; expected 4294967295 at most"),
        (["--variant=lock: loss.fgd=False"], "a variant cannot have the name 'lock'; expected at most 60 letters"),
        (["--seeds=0,1,01"], "--seeds=0,1,01: 1 is there twice, which would be one run"),
        (
            ["--config.train.seed=3"],
            "--config.train.seed=3: every variant is trained with the same seeds; list them in",
        ),
        (
            ["--variant=mine: train.seed=3"],
            "--variant=mine: train.seed=3: every variant is trained with the same seeds",
        ),
        (
            ["--variant=mine"],
            "--variant=mine: expected 'NAME: KEY=VALUE KEY=VALUE', as in 'queue_64: loss.queue_length=6",
        ),
        (["--variant=mine: 'a"], "--variant=mine: 'a: No closing quotation"),
        (["--variant=a/b: loss.fgd=False"], "a variant cannot have the name 'a/b'; expected at most"),
        (["--variant=prd2: loss.fgd=False"], "--variant=prd2: loss.fgd=False: there is a variant prd2 already; choose"),
        (
            ["--variant=mine: loss.fdg=False"],
            "--variant=mine: loss.fdg=False: a --config.KEY=VALUE names a key that the",
        ),
        (
            ["--variant=mine: loss.queue_length=2"],
            "--variant=mine: loss.queue_length=2: the configuration has 1 problem",
        ),
        (["--variant=mine: loss.fgd=True"], "the variant mine changes nothing in this configuration"),
        (
            ["--variants=without_fgd", "--config.loss.fgd=False"],
            "the variant without_fgd changes nothing in this config",
        ),
        (["--at_once=0"], "flag --at_once=0: 0 is not a positive integer"),
        (["--sedes=1"], "unknown flag --sedes=1; --help lists the flags"),
        (["--table_only"], "--config does not go with --table_only, whose table is of all that --workdir holds"),
        (["--workdir=a:b"], "--workdir=a:b: expected a local or mounted folder whose path has no colon"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str, config: str, tmp_path: Path) -> None:
    done = called(main, f"--config={config}", f"--workdir={tmp_path / 'new'}", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert not (tmp_path / "new" / "plan.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("demo_retrieval", "--variants: the article's variants are of pre-training, and --config=demo_retrieval is a"),
        ("retrieval:own", "initial.model is not set; a fine-tuning starts from a model and has its sizes"),
    ],
)
def test_a_fine_tuning_needs_variants_of_its_own_and_a_model(name: str, message: str, tmp_path: Path) -> None:
    done = called(main, f"--config={name}", f"--workdir={tmp_path / 'new'}")
    assert (done.returncode, done.stderr[:7]) == (2, "error: ")
    assert message in done.stderr


def test_without_a_configuration(tmp_path: Path) -> None:
    assert called(main, f"--workdir={tmp_path}").stderr == "error: --config is not given; --help lists the flags\n"


def test_another_ablation_in_the_folder(at_once: list[list[str]], config: str, tmp_path: Path) -> None:
    given = (f"--config={config}", f"--workdir={tmp_path}", "--variants=prd2")
    called(main, *given)
    done = called(main, *given, "--config.train.batch_size=16")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == ["  - train.batch_size: 8 in the ablation, 16 now"]
    with held(tmp_path, "", ""):
        assert "another ablation is at work in" in called(main, *given).stderr


def test_failures_are_listed_with_their_logs(config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = AblationRun(tmp_path, "prd2", 1)
    monkeypatch.setattr(schedule, "train_all", lambda *_, **__: [Failure(run, "error: no memory")])
    done = called(main, f"--config={config}", f"--workdir={tmp_path}", "--variants=prd2")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-2:] == [
        "runs that failed; the same command tries them again, and then measures costs:",
        f"  - prd2/seed_1: error: no memory (all that it printed: {run.output})",
    ]


def test_a_small_ablation_goes_on_to_its_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real training, of four steps, beside one that is done; what both cost is known."""
    write_small_dataset(tmp_path / "data", 32)
    config = write_config(tmp_path, config_values(RUN, CHEAPEST, {"data": {"directory": str(tmp_path / "data")}}))
    folder = tmp_path / "ablation"
    given = [f"--config={config}", f"--workdir={folder}", "--variant=hot: model.temperature_init=0.2", "--seeds=1"]
    with monkeypatch.context() as patch:
        patch.setattr(schedule, "train_all", lambda *_, **__: [])
        patch.setattr(cost, "measure_in_child", lambda plan, folder: "")
        called(main, *given)
    leave_result(AblationRun(folder, FULL, 1), **{"validation/dual/mean": 50.0})
    (folder / COSTS).write_text(json.dumps({"variants": {FULL: {}, "hot": {"relative_speed": 1.25}}}))
    done = called(main, *given)
    assert done.returncode == 0, done.stderr
    run = AblationRun(folder, "hot", 1)
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    assert evaluation["step"] == 4
    document = json.loads((folder / "ablation.json").read_text())
    difference = document["variants"]["hot"]["differences"]["recall"]["dual"]
    assert difference["values"] == {"1": evaluation["validation/dual/mean"] - 50.0}
    assert (run.folder / "plots" / "losses.png").is_file()
    assert not (run.folder / "report.html").exists()  # the ablation has a table of all
    again = called(main, *given)
    assert "at work" not in again.stderr
    assert again.stdout == done.stdout
