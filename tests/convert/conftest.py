"""An ONNX export, which takes long, for all tests of conversion."""

from pathlib import Path

import pytest
from random_models import VOCABULARY, random_model

from r2d2_jax.convert.conversion import Form, write_model
from r2d2_jax.models.store import Model


@pytest.fixture(scope="session")
def onnx_model() -> Model:
    return random_model(layers=2, tokens=VOCABULARY)


@pytest.fixture(scope="session")
def onnx_folder(onnx_model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`onnx_model` as a folder of ONNX graphs."""
    path = tmp_path_factory.mktemp("exports") / "onnx"
    write_model(onnx_model, path, Form.ONNX)
    return path
