"""The parity report: the PyTorch side is right, every stage is told apart, and what is checked is what lies on disk."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from programs import called
from random_models import VOCABULARY, random_model
from reference import reference, reference_model

from r2d2_jax.convert.conversion import Form, write_model
from r2d2_jax.convert.tensor_files import read_tensors
from r2d2_jax.convert.torch_model import torch_model
from r2d2_jax.convert.torch_r2d2 import published_parameters
from r2d2_jax.convert.verification import (
    IMAGE_EMBED,
    IMAGE_TEXT,
    IMAGE_TOKENS,
    LIMIT,
    MATCH,
    STAGES,
    TEXT_EMBED,
    TEXT_IMAGE,
    TEXT_TOKENS,
    Sample,
    Stages,
    compared,
    jax_stages,
    sample_inputs,
    torch_stages,
    verify,
)
from r2d2_jax.errors import UserError
from r2d2_jax.launch.convert import main
from r2d2_jax.models.store import Model
from r2d2_jax.trees import flat, nested


def model_with_heads(cross_layers: int = 2) -> Model:
    """A random model whose heads are several, so that a wrong split into heads shows."""
    model = random_model(cross_layers=cross_layers, tokens=VOCABULARY)
    parts = {part: dataclasses.replace(getattr(model.config, part), heads=4) for part in ("image", "text", "cross")}
    return dataclasses.replace(model, config=dataclasses.replace(model.config, **parts))


def changed(model: Model, path: str) -> Model:
    leaves = dict(flat(model.params))
    leaves[path] = leaves[path] + np.float32(0.5) * (1 + np.arange(leaves[path].size).reshape(leaves[path].shape) % 3)
    return dataclasses.replace(model, params=nested(leaves))


@pytest.fixture(scope="module")
def in_torch() -> Stages:
    model = model_with_heads()
    return torch_stages(torch_model(model.config, published_parameters(model)), sample_inputs(model.config))


@pytest.mark.parity
def test_the_pytorch_side_computes_what_the_published_code_does() -> None:
    model, expected = reference_model(), reference("expected.safetensors")
    sample = Sample(expected["image"].transpose(0, 2, 3, 1), expected["input_ids"], expected["attention_mask"] > 0)
    torch_side = torch_model(model.config, reference("checkpoint.pth"))
    published = {
        IMAGE_TOKENS: "image_hidden",
        IMAGE_EMBED: "image_embed",
        TEXT_TOKENS: "text_hidden",
        TEXT_EMBED: "text_embed",
        TEXT_IMAGE: "text_cross_hidden",
        IMAGE_TEXT: "image_cross_hidden",
        MATCH: "match_score",
    }
    report = compared({stage: expected[name] for stage, name in published.items()}, torch_stages(torch_side, sample))
    assert list(report.differences) == list(STAGES)
    assert report.first_broken is None, report.table()
    assert report.differences[MATCH] < 1e-5


@pytest.mark.parity
def test_the_reference_checkpoint_is_verified() -> None:
    model = reference_model()
    sample = sample_inputs(model.config)
    torch_side = torch_model(model.config, reference("checkpoint.pth"))
    assert compared(jax_stages(model, sample), torch_stages(torch_side, sample)).first_broken is None


@pytest.mark.parametrize(
    ("path", "stage"),
    [
        ("image_encoder/position_embedding", IMAGE_TOKENS),
        ("image_encoder/layers/mlp/down/kernel", IMAGE_TOKENS),
        ("image_projection/bias", IMAGE_EMBED),
        ("text_encoder/type_embedding/embedding", TEXT_TOKENS),
        ("text_encoder/layers/attention_norm/norm/scale", TEXT_TOKENS),
        ("text_projection/kernel", TEXT_EMBED),
        ("text_image_encoder/last_layer/cross_attention/value/bias", TEXT_IMAGE),
        ("image_text_projection/kernel", IMAGE_TEXT),
        ("image_text_encoder/layers/self_attention/out/bias", IMAGE_TEXT),
        ("image_text_match_head/bias", MATCH),
    ],
)
def test_the_first_stage_that_breaks_is_where_the_fault_lies(in_torch: Stages, path: str, stage: str) -> None:
    model = changed(model_with_heads(), path)
    report = compared(jax_stages(model, sample_inputs(model.config)), in_torch)
    assert report.first_broken == stage
    assert report.table().endswith(f"the first stage that breaks: {stage}")


def test_a_sound_model_agrees_in_every_stage(in_torch: Stages) -> None:
    model = model_with_heads()
    sample = sample_inputs(model.config)
    assert not sample.attention_mask.all(axis=1).all(), "padding must be looked at too"
    assert sample.attention_mask[0].all()
    report = compared(jax_stages(model, sample), in_torch)
    assert list(report.differences) == list(STAGES)
    assert report.first_broken is None
    assert report.table().endswith("all stages agree")


def test_heads_are_looked_at(in_torch: Stages) -> None:
    model = random_model(tokens=VOCABULARY)
    assert compared(jax_stages(model, sample_inputs(model.config)), in_torch).first_broken == IMAGE_TOKENS


def test_what_is_not_a_number_is_above_the_limit(in_torch: Stages) -> None:
    broken = {**in_torch, TEXT_TOKENS: np.full_like(in_torch[TEXT_TOKENS], np.nan)}
    assert compared(in_torch, broken, limit=1e9).first_broken == TEXT_TOKENS


def test_prd2_has_no_cross_stages() -> None:
    model = model_with_heads(cross_layers=0)
    report = verify(model, Path("absent"), None, None)
    assert list(report.differences) == [IMAGE_TOKENS, IMAGE_EMBED, TEXT_TOKENS, TEXT_EMBED]
    assert report.first_broken is None


@pytest.mark.parametrize(
    ("form", "name", "stage"),
    [
        (Form.OURS, "out", TEXT_EMBED),
        (Form.PUBLISHED, "out.safetensors", TEXT_EMBED),
        (Form.TRANSFORMERS, "out", TEXT_EMBED),
    ],
)
def test_what_lies_on_disk_is_what_is_checked(tmp_path: Path, form: Form, name: str, stage: str) -> None:
    """The report on a target that holds other weights than the source finds them."""
    model, source, target = model_with_heads(), tmp_path / "in.safetensors", tmp_path / name
    write_model(model, source)
    write_model(changed(model, "text_projection/bias"), target, form)
    assert verify(model, source, target, form).first_broken == stage
    write_model(model, tmp_path / f"sound_{name}", form)
    assert verify(model, source, tmp_path / f"sound_{name}", form).first_broken is None


def test_an_onnx_folder_is_what_is_checked(tmp_path: Path, onnx_model: Model, onnx_folder: Path) -> None:
    """Its graphs hold other weights than the source."""
    source, other = tmp_path / "in.safetensors", changed(onnx_model, "text_projection/bias")
    write_model(other, source)
    assert verify(other, source, onnx_folder, Form.ONNX).first_broken == TEXT_EMBED
    assert verify(onnx_model, source, onnx_folder, Form.ONNX).first_broken is None


def convert(*arguments: str) -> subprocess.CompletedProcess[str]:
    return called(main, *arguments)


def test_the_program_prints_the_report_and_its_status_says_whether_all_agree(tmp_path: Path) -> None:
    write_model(random_model(), tmp_path / "in.pth")
    done = convert(f"--input={tmp_path / 'in.pth'}", "--verify", f"--output={tmp_path / 'ours'}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line[:26].strip() for line in lines[2:-1]] == list(STAGES)
    assert lines[-1] == "all stages agree"
    assert all(float(line[26:44]) < LIMIT for line in lines[2:-1])
    done = convert(f"--input={tmp_path / 'in.pth'}", "--verify", "--limit=1e-12")
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "the first stage that breaks: image tokens"


def test_a_verification_after_the_fact_reads_the_file(tmp_path: Path) -> None:
    write_model(random_model(), tmp_path / "in.safetensors")
    other = changed(random_model(), "image_projection/bias")
    assert verify(other, tmp_path / "in.safetensors", None, None).first_broken == IMAGE_EMBED
    assert read_tensors(tmp_path / "in.safetensors")


@pytest.mark.parametrize(
    ("absent", "form", "message"),
    [
        ("torch", None, r"--verify needs torch, which is not installed: pip install -e '.\[convert\]'"),
        ("onnxruntime", Form.ONNX, r"--verify of an ONNX export needs onnxruntime, .* pip install -e '.\[onnx\]'"),
    ],
)
def test_what_is_needed_is_named(monkeypatch: pytest.MonkeyPatch, absent: str, form: Any, message: str) -> None:
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(UserError, match=message):
        verify(random_model(), Path("a"), Path("b"), form)
