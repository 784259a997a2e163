"""What led to a model's weights outlives the models that led to them."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from random_models import SPECIAL_TOKENS, random_model
from small_model import (
    CHEAPEST,
    assert_bitwise_equal,
    random_state,
    saved_state,
    small_config,
    small_plan,
    write_small_dataset,
)
from small_runs import NO_EVALUATION, run

import r2d2_jax
from r2d2_jax.convert.conversion import Form, open_model, write_model
from r2d2_jax.errors import UserError
from r2d2_jax.lineage import LINEAGE, NOT_RECORDED, Lineage, described, read_lineage, unrecorded
from r2d2_jax.models.store import CONFIG, Model
from r2d2_jax.runs import EVALUATION, load_state

pytestmark = pytest.mark.usefixtures("compiled_once")

PARENT = {"task": "retrieval", "initial": {"model": "r2d2.pth"}, "steps": 30, "pairs": 240}
HALF: dict[str, Any] = {"train": {"seed": 5, "epochs": 0.5}}
SHORT: tuple[dict[str, Any], ...] = (CHEAPEST, NO_EVALUATION, {"train": {"epochs": 1.0, "log_every": 1}})


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_dataset(tmp_path_factory.mktemp("prepared"), train=32)


@pytest.fixture(scope="module")
def child(prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from the weights of a model that is gone, itself trained from a published file."""
    folder, config = tmp_path_factory.mktemp("lineage"), small_config(*SHORT)
    params = random_state(small_plan(config)).params
    write_model(Model(config.model, params, lineage=(unrecorded("r2d2.pth"), PARENT)), folder / "parent")
    run(prepared, folder / "child", *SHORT, {"initial": {"model": str(folder / "parent")}, **HALF})
    shutil.rmtree(folder / "parent")
    return folder / "child"


def test_a_run_knows_what_its_gone_ancestors_were(child: Path, prepared: Path) -> None:
    published, parent, own = open_model(child).lineage
    assert published == {"task": NOT_RECORDED, "source": "r2d2.pth"}
    assert parent == PARENT
    assert own.pop("started") > "2020-01-01"
    assert own == {
        "task": "pretraining",
        "initial": {"model": str(child.with_name("parent"))},
        "data": [{"folder": str(prepared), "split": "train", "records": 32}],
        "batch_size": 8,
        "planned_epochs": 0.5,
        "planned_steps": 2,
        "seed": 5,
        "version": r2d2_jax.__version__,
        "steps": 2,
        "pairs": 16,
        "epochs": 0.5,
    }


@pytest.mark.parametrize("form", [Form.OURS, Form.TRANSFORMERS])
def test_a_converted_folder_keeps_it(child: Path, form: Form, tmp_path: Path) -> None:
    model = open_model(child)
    write_model(model, tmp_path / "model", form)
    assert open_model(tmp_path / "model").lineage == model.lineage


@pytest.mark.parametrize("step, kept", [(2, True), (1, False)])
def test_figures_of_a_run_belong_to_the_step_that_was_measured(
    child: Path, step: int, kept: bool, tmp_path: Path
) -> None:
    shutil.copytree(child, tmp_path / "run")
    figures = {"validation/dual/i2t_r1": 50.0}
    (tmp_path / "run" / EVALUATION).write_text(json.dumps({"step": step, **figures}), encoding="utf-8")
    assert open_model(tmp_path / "run").evaluation == (figures if kept else {})


def test_a_damaged_evaluation_is_one_message(child: Path, tmp_path: Path) -> None:
    shutil.copytree(child, tmp_path / "run")
    (tmp_path / "run" / EVALUATION).write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"evaluation\.json cannot be read: .*; copy it back, or remove it"):
        open_model(tmp_path / "run")


def test_a_run_that_resumes_keeps_its_lineage(child: Path, prepared: Path, tmp_path: Path) -> None:
    shutil.copytree(child, tmp_path / "run")
    started, state = (child / LINEAGE).read_bytes(), saved_state(child)
    run(prepared, tmp_path / "run", *SHORT, {"initial": {"model": "gone"}, **HALF})
    assert (tmp_path / "run" / LINEAGE).read_bytes() == started
    assert_bitwise_equal(saved_state(tmp_path / "run"), state)


def test_a_run_from_before_lineages_says_what_its_configuration_says(child: Path, tmp_path: Path) -> None:
    shutil.copytree(child, tmp_path / "run")
    (tmp_path / "run" / LINEAGE).unlink()
    parent, own = open_model(tmp_path / "run").lineage
    assert parent == {"task": NOT_RECORDED, "source": load_state(child)[1]["initial"]["model"]}
    assert (own["steps"], own["pairs"], "records" in own["data"][0]) == (2, 16, False)


def test_a_folder_from_before_lineages_has_none(tmp_path: Path) -> None:
    model = random_model(tokens=SPECIAL_TOKENS)
    write_model(model, tmp_path / "model")
    description = json.loads((tmp_path / "model" / CONFIG).read_text(encoding="utf-8"))
    assert description.pop("lineage") == []
    (tmp_path / "model" / CONFIG).write_text(json.dumps(description), encoding="utf-8")
    assert open_model(tmp_path / "model").lineage == ()


@pytest.mark.parametrize("content", ["[", '{"task": "retrieval"}', '["retrieval"]', "[{}]"])
def test_a_damaged_lineage_is_one_message(content: str, tmp_path: Path) -> None:
    path = tmp_path / LINEAGE
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"{path}.*copy") as caught:
        read_lineage(path)
    assert "\n" not in str(caught.value)


def test_a_line_for_each_training() -> None:
    lineage: Lineage = (
        {"task": NOT_RECORDED, "source": "r2d2.pth"},
        {
            "task": "retrieval",
            "initial": {"model": "r2d2.pth"},
            "data": [{"folder": "data/a", "split": "train", "records": 1000}, {"folder": "data/b", "split": "train"}],
            "seed": 3,
            "planned_steps": 4000,
            "version": "0.2.0",
            "started": "2030-01-02",
            "steps": 2500,
            "pairs": 20000,
            "epochs": 20.0,
            "weights": "teacher",
        },
    )
    assert list(described(lineage)) == [
        "training not recorded: r2d2.pth",
        "retrieval of model from r2d2.pth; on data/a (1,000 records), data/b; 2,500 of 4,000 steps, 20,000 pairs; "
        "20 epochs; seed 3; teacher weights; r2d2_jax 0.2.0; 2030-01-02",
    ]
    assert list(described(())) == ["training not recorded"]
