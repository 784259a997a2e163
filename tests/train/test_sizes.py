"""A fine-tuning has the sizes of the model that it starts from, and once it has begun those of its own checkpoint."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict
from random_models import VOCABULARY, random_model
from small_model import CHEAPEST, small_config
from small_runs import NO_EVALUATION, run

from r2d2_jax.config.model import ModelConfig
from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError
from r2d2_jax.launch.configuration import read_configuration
from r2d2_jax.models.store import save_model
from r2d2_jax.train.sizes import with_sizes


def fine_tuning(*overrides: str) -> ConfigDict:
    return read_configuration("retrieval:own", [f"--config.{override}" for override in overrides])


def sizes(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    return of(Config.from_config_dict(with_sizes(config, workdir)).model)


def of(model: ModelConfig) -> dict[str, Any]:
    """The sizes of a model; dropout is none, and stays the configuration's."""
    values = dataclasses.asdict(model)
    for block in ("text", "cross"):
        del values[block]["dropout"]
    return {name: values[name] for name in ("image", "text", "cross", "embed_size")}


def test_sizes_are_those_of_the_initial_model(tmp_path: Path) -> None:
    model = random_model(layers=1, cross_layers=2, tokens=VOCABULARY)
    save_model(model, tmp_path / "model")
    config = fine_tuning(f"initial.model={tmp_path / 'model'}")
    expected = of(model.config)
    assert sizes(config, tmp_path / "run") == expected
    shorter = fine_tuning(f"initial.model={tmp_path / 'model'}", "model.text.text_length=5")
    assert sizes(shorter, tmp_path / "run")["text"] == expected["text"] | {"text_length": 5}, "what is given stays"


def test_a_run_that_resumes_needs_no_parent(prepared: Path, tmp_path: Path) -> None:
    parent, child = tmp_path / "parent", tmp_path / "child"
    run(prepared, parent, CHEAPEST, NO_EVALUATION, {"train": {"epochs": 0.25}})
    config = fine_tuning(f"initial.model={parent}", "retrieval.fgr=False", "evaluation.rerank_candidates=0")
    found = sizes(config, child)
    assert found == of(small_config(CHEAPEST).model)
    shutil.copytree(parent / "checkpoints", child / "checkpoints")
    shutil.rmtree(parent)
    again = fine_tuning(f"initial.model={parent}", "retrieval.fgr=False", "evaluation.rerank_candidates=0")
    assert sizes(again, child) == found


def test_prd2_hears_what_to_leave_out(tmp_path: Path) -> None:
    save_model(random_model(layers=1, cross_layers=0, tokens=VOCABULARY), tmp_path / "model")
    with pytest.raises(UserError) as said:
        sizes(fine_tuning(f"initial.model={tmp_path / 'model'}"), tmp_path / "run")
    assert "retrieval.fgr is on but model.cross.layers is 0; PRD2 has no cross encoders to train: set it" in str(
        said.value
    )
    assert "evaluation.rerank_candidates is 16 but no match heads are trained" in str(said.value)


@pytest.mark.parametrize("values", [{}, {"model": 3}])
def test_what_is_no_block_of_sizes_is_left_to_the_reader(values: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="missing key model|model is 3"):
        Config.from_config_dict(with_sizes(ConfigDict(values), tmp_path))


def test_no_model_and_none_that_is_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="initial.model is not set; a fine-tuning starts from a model"):
        with_sizes(fine_tuning(), tmp_path)
    with pytest.raises(UserError, match=f"initial.model: {tmp_path} is no model; expected a published"):
        with_sizes(fine_tuning(f"initial.model={tmp_path}"), tmp_path / "run")
