"""What programs wrap around a model is recognised and named; what is no single model is refused."""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import called
from random_models import random_model
from safetensors.numpy import save_file

import r2d2_jax
from r2d2_jax.convert.conversion import open_model
from r2d2_jax.convert.tensor_files import read_tensor_file
from r2d2_jax.convert.torch_r2d2 import to_published
from r2d2_jax.errors import UserError
from r2d2_jax.launch.convert import main
from r2d2_jax.trees import flat


def published(prefix: str = "", within: str = "") -> dict[str, torch.Tensor]:
    """A published state dict with a prefix before every name, and a word after the first word of it."""
    tensors = {name: torch.from_numpy(np.require(each, requirements="W")) for name, each in to_published(MODEL).items()}
    return {prefix + name.replace(".", f".{within}", 1): tensor for name, tensor in tensors.items()}


MODEL = random_model(layers=1, cross_layers=1)
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}

WRAPPINGS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "torch.compile": (published("_orig_mod."), ("names without _orig_mod. of torch.compile",)),
    "DDP": (published("module."), ("names without module. of DataParallel or DDP",)),
    "both": (published("_orig_mod.module."), ("_orig_mod.", "module.")),
    "both, the other way round": (published("module._orig_mod."), ("_orig_mod.", "module.")),
    "DDP twice": (published("module.module."), ("module.",)),
    "one tower compiled": (published(within="_orig_mod."), ("_orig_mod.",)),
    "one tower in DDP": (published(within="module."), ("module.",)),
    "FSDP": (published("_fsdp_wrapped_module.", "_fsdp_wrapped_module."), ("of FSDP",)),
    "activation checkpointing": (published(within="_checkpoint_wrapped_module."), ("of activation checkpointing",)),
    "Fabric": ({"model": published("_forward_module.")}, ("of Lightning Fabric",)),
    "Lightning": (
        {
            "state_dict": published("model."),
            "epoch": 3,
            "optimizer_states": [OPTIMIZER],
            "hyper_parameters": {"lr": 0.1},
            "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(3.0)}},
        },
        ("state dict under 'state_dict'", "epoch, optimizer_states", "names without model."),
    ),
    "Lightning around a wrapper": ({"state_dict": published("model.model.")}, ("names without model.model.",)),
    "Lightning, compiled": ({"state_dict": published("net._orig_mod.")}, ("_orig_mod.", "names without net.")),
    "Lightning with a loss that has a weight": (
        {"state_dict": published("model.") | {"criterion.weight": torch.ones(2)}},
        ("names without model.", "left out 1 tensor(s): criterion.weight"),
    ),
    "DeepSpeed": (
        {"module": published(), "optimizer": None, "ds_config": {"zero": 1}, "param_shapes": [torch.Size([3])]},
        ("state dict under 'module'", "ds_config"),
    ),
    "DeepSpeed of DDP": ({"module": published("module.")}, ("state dict under 'module'", "module.")),
    "PyTorch's tutorial": (
        {"model_state_dict": published(), "optimizer_state_dict": OPTIMIZER, "loss": torch.tensor(0.5)},
        ("state dict under 'model_state_dict'", "optimizer_state_dict, loss"),
    ),
    "an average beside the model": ({"model": published(), "model_ema": published()}, ("'model'", "model_ema")),
    "timm": ({"state_dict": published(), "state_dict_ema": published()}, ("'state_dict'", "state_dict_ema")),
    "an average alone": ({"ema": {"module": published(), "updates": 5}}, ("'ema'", "'module'", "updates")),
    "an average among the names": (
        published("model.") | published("model_ema."),
        ("names without model.", "left out", "model_ema."),
    ),
    "a momentum copy among the names": (published() | published("momentum."), ("left out", "momentum.")),
    "AveragedModel": (published("module.") | {"n_averaged": torch.tensor(3)}, ("module.",)),
    "a key of one's own": ({"my_r2d2": published(), "optimizer": OPTIMIZER, "step": 3}, ("'my_r2d2'", "optimizer")),
    "a key within a key": ({"model": {"state_dict": published()}, "step": 3}, ("'model'", "'state_dict'")),
    "arguments and figures beside it": (
        {
            "model": published(),
            "args": argparse.Namespace(output=Path("a"), lr=1),
            "best": np.float64(3),
            "random": np.random.default_rng(0).integers(0, 9, 5),
        },
        ("args, best, random",),
    ),
    "a number among the tensors": (published() | {"epoch": 3}, ("left out what is no tensor: epoch",)),
}


@pytest.mark.parametrize("name", WRAPPINGS)
def test_a_wrapping_is_recognised_and_named(tmp_path: Path, name: str) -> None:
    content, noted = WRAPPINGS[name]
    torch.save(content, tmp_path / "in.ckpt")
    model = open_model(tmp_path / "in.ckpt")
    want, got = dict(flat(MODEL.params)), dict(flat(model.params))
    assert got.keys() == want.keys()
    assert all(np.array_equal(got[path], want[path]) for path in want)
    line = "; ".join(model.notes)
    assert all(words in line for words in noted), line


def test_the_published_form_needs_no_word(tmp_path: Path) -> None:
    for content in (published(), {"model": published()}):
        torch.save(content, tmp_path / "in.pth")
        assert open_model(tmp_path / "in.pth").notes == ()


def test_the_program_says_it_in_one_line_and_verifies_the_same_weights(tmp_path: Path) -> None:
    torch.save({"state_dict": published("model._orig_mod."), "epoch": 1}, tmp_path / "in.ckpt")
    done = called(main, f"--input={tmp_path / 'in.ckpt'}", "--verify")
    assert done.returncode == 0, done.stderr
    first, second, *_ = done.stdout.splitlines()
    assert first == (
        f"{tmp_path / 'in.ckpt'}: state dict under 'state_dict', beside it and left out: epoch; "
        "names without _orig_mod. of torch.compile; names without model."
    )
    assert "R2D2, " in second


def test_loading_for_inference_logs_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"module": published()}, tmp_path / "in.pt")
    with caplog.at_level("INFO", "r2d2_jax.inference"):
        r2d2_jax.load(tmp_path / "in.pt")
    assert f"{tmp_path / 'in.pt'}: state dict under 'module'" in caplog.text


def test_safetensors_have_wrapped_names_too(tmp_path: Path) -> None:
    tensors = {f"module.{name}": tensor for name, tensor in to_published(MODEL).items()}
    save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt", "step": "3"})
    assert open_model(tmp_path / "in.safetensors").notes == ("names without module. of DataParallel or DDP",)


@pytest.mark.parametrize(
    ("dtype", "exact"), [(torch.float16, False), (torch.bfloat16, False), (torch.float64, True), (torch.float32, True)]
)
def test_weights_of_any_precision_become_float32(tmp_path: Path, dtype: torch.dtype, exact: bool) -> None:
    half = {name: each.to(dtype) if each.is_floating_point() else each for name, each in published().items()}
    torch.save({"model": half}, tmp_path / "in.pth")
    kernel = open_model(tmp_path / "in.pth").params["text_projection"]["kernel"]
    want = MODEL.params["text_projection"]["kernel"]
    assert kernel.dtype == np.float32
    assert np.array_equal(kernel, want) == exact
    np.testing.assert_allclose(kernel, want, atol=1e-2)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "holds no tensors; expected a state dict, or a dict with one as 'model' or 'state_dict'"),
        ({"model": {}}, "holds no tensors, only model; expected a state dict"),
        ({"epoch": 3, "lr": 0.1}, "holds no tensors, only epoch, lr; expected"),
        ({"optimizer": OPTIMIZER}, "holds no tensors, only optimizer; expected"),
        ({"a": {"x": torch.ones(2)}, "b": {"x": torch.ones(2)}}, "holds several state dicts, under a, b; save the one"),
        (
            {"module": {"x": torch.ones(0), "y": torch.ones(0)}},
            "holds 2 tensors without a number in them, as DeepSpeed's",
        ),
        (
            {"module.x": torch.ones(1), "x": torch.ones(1)},
            "holds x twice, with and without a wrapper's prefix; save one",
        ),
        ({"x": torch.ones(2, device="meta")}, r"x is no plain tensor \(.*meta.*\); save it as float32"),
        ({"x": torch.ones(2, 2).to_sparse()}, r"x is no plain tensor \(.*\); save it as float32"),
        (torch.ones(2), "holds a Tensor; expected a state dict"),
    ],
)
def test_what_is_no_state_dict_is_refused(tmp_path: Path, content: Any, message: str) -> None:
    torch.save(content, tmp_path / "in.pth")
    with pytest.raises(UserError, match=f"in.pth:? {message}"):
        read_tensor_file(tmp_path / "in.pth")


def test_several_models_are_refused(tmp_path: Path) -> None:
    torch.save(published("a.") | published("b."), tmp_path / "in.pth")
    with pytest.raises(UserError, match=r"holds several such models, with names that begin with 'a.', 'b.'; save one"):
        open_model(tmp_path / "in.pth")


def test_whole_numbers_in_place_of_weights_are_refused(tmp_path: Path) -> None:
    torch.save(published() | {"temp": torch.tensor(3, dtype=torch.int8)}, tmp_path / "in.pth")
    with pytest.raises(UserError, match="type: temp is int8, expected floating-point numbers"):
        open_model(tmp_path / "in.pth")
