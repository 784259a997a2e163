"""The ONNX graphs compute in ONNX Runtime what the model computes in JAX, for any number of rows and tokens."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from random_models import VOCABULARY, random_model

from r2d2_jax.convert.conversion import Form, open_model, write_model
from r2d2_jax.convert.onnx_folder import ENCODE_IMAGE, ENCODE_TEXT, MATCH, session
from r2d2_jax.convert.verification import Sample, compared, jax_stages, onnx_stages, sample_inputs
from r2d2_jax.errors import UserError
from r2d2_jax.models.store import Model


def test_onnx_runtime_agrees_with_jax(onnx_model: Model, onnx_folder: Path) -> None:
    sample = sample_inputs(onnx_model.config)
    report = compared(jax_stages(onnx_model, sample), onnx_stages(onnx_folder, onnx_model.config, sample))
    assert len(report.differences) == 5
    assert report.first_broken is None, report.table()


@pytest.mark.parametrize(("rows", "length"), [(1, 7), (5, 4)])
def test_rows_and_tokens_may_be_any_number(onnx_model: Model, onnx_folder: Path, rows: int, length: int) -> None:
    rng = np.random.default_rng(rows)
    images = rng.normal(size=(rows, 24, 24, 3)).astype(np.float32)
    input_ids = rng.integers(0, 11, (rows, length), dtype=np.int32)
    sample = Sample(images, input_ids, np.arange(length) < rng.integers(2, length + 1, (rows, 1)))
    report = compared(jax_stages(onnx_model, sample), onnx_stages(onnx_folder, onnx_model.config, sample))
    assert report.first_broken is None, report.table()


def test_the_card_names_every_graph_input_and_output(onnx_folder: Path) -> None:
    card = (onnx_folder / "README.md").read_text(encoding="utf-8")
    for graph in (ENCODE_IMAGE, ENCODE_TEXT, MATCH):
        onnx.checker.check_model(onnx_folder / graph.file)
        running = session(onnx_folder, graph)
        assert tuple(node.name for node in running.get_inputs()) == graph.inputs
        assert tuple(node.name for node in running.get_outputs()) == graph.outputs
        row = next(line for line in card.splitlines() if f"`{graph.file}`" in line)
        assert all(name in row for name in (*graph.inputs, *graph.outputs))


def test_the_folder_holds_what_a_service_needs_and_says_that_it_is_no_source(onnx_folder: Path) -> None:
    names = {path.name for path in onnx_folder.iterdir()}
    assert names >= {"tokenizer.json", "preprocessor_config.json", "config.json", "vocab.txt", "match.onnx.data"}
    with pytest.raises(UserError, match=r"is no model; expected .* \(ONNX excepted\)"):
        open_model(onnx_folder)


def test_prd2_has_no_match_graph(tmp_path: Path) -> None:
    model = random_model(layers=1, cross_layers=0, tokens=VOCABULARY)
    write_model(model, tmp_path / "onnx", Form.ONNX)
    assert not (tmp_path / "onnx" / MATCH.file).exists()
    sample = sample_inputs(model.config)
    report = compared(jax_stages(model, sample), onnx_stages(tmp_path / "onnx", model.config, sample))
    assert len(report.differences) == 4
    assert report.first_broken is None, report.table()


def test_what_is_needed_is_named(onnx_model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"an ONNX export needs onnxscript, which is not installed: .*\[onnx\]"):
        write_model(onnx_model, tmp_path / "out", Form.ONNX)
