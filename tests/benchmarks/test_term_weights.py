"""benchmarks/term_weights.py: its table, what it starts from, and where it fails."""

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import numpy as np
import pytest
from programs import loaded_benchmark, write_config
from random_models import VOCABULARY, random_model
from small_model import BASE

from r2d2_jax.convert.conversion import write_model
from r2d2_jax.models.r2d2 import R2D2, abstract_params
from r2d2_jax.models.store import Model


@pytest.fixture(scope="module")
def term_weights() -> Iterator[ModuleType]:
    """The program."""
    with loaded_benchmark("term_weights") as module:
        yield module


@pytest.fixture(scope="module")
def model() -> Model:
    return random_model(tokens=VOCABULARY)


def config_of(model: Model, folder: Path, initial: dict[str, str]) -> Path:
    """A configuration with the sizes of a model, of GCPR and a form of FgD that drowns it."""
    write_model(model, folder / "model")
    sizes = model.config.described() | {"dtype": "float32"}
    loss = {"contrastive": "gcpr", "fgr": False, "mlm": False, "fgd_features": "projected"}
    loss |= {"fgd_student_temperature": 0.01, "fgd_teacher_temperature": 0.01}
    values: dict[str, Any] = {
        **{name: BASE[name] for name in ("optimizer", "train")},
        "model": sizes,
        "loss": loss,
        "data": {"directory": "nowhere", "vocabulary": str(folder / "model" / "vocab.txt")},
        "evaluation": {"rerank_candidates": 0},
        "initial": initial,
    }
    return write_config(folder, values)


def test_the_table_of_weights_at_hand(
    term_weights: ModuleType, model: Model, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_of(model, tmp_path, {"model": str(tmp_path / "model")})
    assert term_weights.main([f"--config={config}", "--pairs=4", "--layers=2"]) == 1
    printed, errors = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[0] == "small: 4 random pairs, layers 2 + 2 + 2, float32"
    assert lines[1] == f"  whole model from {tmp_path / 'model'}"
    head, *rows, last = lines[-5:]
    assert head.split() == ["term", "value", "image_features", "text_features", "text_tower", "all"]
    assert [row.split()[0] for row in rows] == ["fgd", "gcpr", "loss"]
    values = {row.split()[0]: float(row.split()[1]) for row in rows}
    assert values["loss"] == pytest.approx(values["fgd"] + values["gcpr"], abs=2e-3)
    assert "   0 %" in rows[0], "FgD has no gradient in the image"
    assert last.startswith("most of the text tower's gradient: fgd, ")
    assert "feature-guided distillation holds more than half" in errors


def test_the_first_layers_are_read(term_weights: ModuleType, model: Model) -> None:
    fewer = R2D2(random_model(layers=2).config, matching=True, masked_lm=False)
    loaded = {part: model.params[part] for part in abstract_params(fewer) if part in model.params}
    found = term_weights.cut(loaded, fewer)
    kernel = lambda params: params["text_encoder"]["layers"]["mlp"]["up"]["kernel"]  # noqa: E731
    np.testing.assert_array_equal(kernel(found), kernel(loaded)[:2])
    assert kernel(loaded).shape[0] == 3


def test_imitated_towers(term_weights: ModuleType) -> None:
    """The spread of each kernel, zero biases, and the depth of the whole model although there are fewer layers."""
    config = random_model(layers=2).config
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), abstract_params(R2D2(config)))
    found = term_weights.imitated(params, random_model(layers=8).config)
    assert set(found) == {"image_encoder", "text_encoder"}
    text, image = found["text_encoder"]["layers"], found["image_encoder"]["layers"]
    deviation = {
        "text query": text["attention"]["query"]["kernel"],
        "image query": image["attention"]["query"]["kernel"],
        "image out": image["attention"]["out"]["kernel"],
        "image up": image["mlp"]["up"]["kernel"],
        "image patches": found["image_encoder"]["patch_embedding"]["kernel"],
    }
    expected = {"text query": 0.02, "image query": 1 / 32, "image out": 1 / 8, "image up": 128**-0.5}
    for name, values in deviation.items():
        assert np.std(values) == pytest.approx(expected.get(name, 0.02), rel=0.05), name
    assert not image["mlp"]["up"]["bias"].any()


def test_weights_that_are_absent_are_said(term_weights: ModuleType, model: Model, tmp_path: Path) -> None:
    config = term_weights.read_configuration(str(config_of(model, tmp_path, {"text": str(tmp_path / "none.bin")})))
    whole = term_weights.Config.from_config_dict(config)
    params, (note,) = term_weights.starting_params(R2D2(whole.model, matching=False, masked_lm=False), whole)
    assert note.startswith("the initial weights are not at hand, so random towers imitate them: initial weights")
    assert np.std(params["text_encoder"]["layers"]["mlp"]["up"]["kernel"]) == pytest.approx(0.02, rel=0.05)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--data=/nowhere", "error: data folder /nowhere does not exist"),
        ("--layers=-1", "error: flag --layers=-1: -1 is not a non-negative integer"),
    ],
)
def test_bad_input_is_told_before_parameters_are_made(
    term_weights: ModuleType,
    model: Model,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    flag: str,
    message: str,
) -> None:
    monkeypatch.setattr(term_weights, "starting_params", None)
    assert term_weights.main([f"--config={config_of(model, tmp_path, {})}", flag]) == 2
    assert capsys.readouterr().err.startswith(message)


@pytest.mark.parametrize("own, rest, status", [(2.0, 2.0, 0), (2.1, 2.0, 1)])
def test_fails_where_distillation_holds_more_than_half(
    term_weights: ModuleType, own: float, rest: float, status: int
) -> None:
    found = {"fgd": 1.0, "tgd": 1.0, "gradient/fgd/text_tower": own, "gradient/without_fgd/text_tower": rest}
    found |= {"gradient/tgd/text_tower": rest, "gradient/without_tgd/text_tower": own}
    assert term_weights.judged(found) == status
