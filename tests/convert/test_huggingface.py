"""Towers initialised from transformers' own PyTorch models compute what those compute."""

import dataclasses
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers_models import bert_config, clip_config

from r2d2_jax.config.model import CrossEncoderConfig, ImageTowerConfig, ModelConfig, TextTowerConfig
from r2d2_jax.convert.huggingface import image_tower, located, text_tower
from r2d2_jax.errors import UserError
from r2d2_jax.models.r2d2 import R2D2

CONFIG = ModelConfig(
    image=ImageTowerConfig(image_size=32, patch_size=8, width=24, layers=3, heads=3, mlp_width=40),
    text=TextTowerConfig(
        vocabulary_size=50, text_length=12, width=32, layers=3, heads=4, mlp_width=48, max_positions=20
    ),
    cross=CrossEncoderConfig(layers=2, width=32, heads=4, mlp_width=48),
    embed_size=16,
    dtype="float32",
)
LIMIT = 1e-4


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray]:
    """(folder of a CLIPVisionModel, images, its hidden states before the last norm)."""
    torch.manual_seed(0)
    model = transformers.CLIPVisionModel(clip_config(CONFIG.image)).eval()
    shaken(model)
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        hidden = model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state
    return folder, images, hidden.numpy()


def shaken(model: torch.nn.Module) -> None:
    """Random norms and biases as well, which transformers starts at one and zero."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))


def apply(params: dict[str, Any], *arguments: Any, method: Any) -> np.ndarray:
    variables = {"params": jax.tree.map(jnp.asarray, params) | {"temperature": jnp.ones(())}}
    return np.asarray(R2D2(CONFIG).apply(variables, *map(jnp.asarray, arguments), method=method))


def image_hidden(params: dict[str, Any], images: np.ndarray) -> np.ndarray:
    return apply(params, images, method=lambda m, images: m.image_encoder(images))


def test_image_tower_agrees_with_clip_vision_model(clip: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, images, hidden = clip
    weights = image_tower(str(folder), CONFIG)
    assert np.abs(image_hidden(weights.params, images) - hidden).max() < LIMIT
    assert any("last norm" in note for note in weights.notes)


def test_image_tower_of_a_whole_clip_model(tmp_path: Path) -> None:
    text = transformers.CLIPTextConfig(
        vocab_size=30,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
    )
    config = transformers.CLIPConfig(
        text_config=text.to_dict(), vision_config=clip_config(CONFIG.image).to_dict(), projection_dim=16
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    images = np.random.default_rng(1).normal(size=(2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        hidden = model.vision_model(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).last_hidden_state
    weights = image_tower(str(tmp_path), CONFIG)
    assert np.abs(image_hidden(weights.params, images) - hidden.numpy()).max() < LIMIT
    assert any("text tower" in note for note in weights.notes)


@pytest.mark.parametrize("wrapper", ["", "module."])
def test_image_tower_in_openai_layout(clip: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, wrapper: str) -> None:
    """OpenAI's names, and Chinese-CLIP's, which wraps the same in "module." under "state_dict"."""
    folder, images, hidden = clip
    published = {f"{wrapper}{name}": torch.from_numpy(tensor) for name, tensor in openai_layout(folder).items()}
    torch.save({"epoch": 3, "state_dict": published}, tmp_path / "clip.pt")
    weights = image_tower(str(tmp_path / "clip.pt"), CONFIG)
    assert np.abs(image_hidden(weights.params, images) - hidden).max() < LIMIT


def openai_layout(folder: Path) -> dict[str, np.ndarray]:
    theirs = {
        name.removeprefix("vision_model."): tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    tensors = {
        "visual.class_embedding": theirs["embeddings.class_embedding"],
        "visual.positional_embedding": theirs["embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs["embeddings.patch_embedding.weight"],
        "visual.proj": np.zeros((24, 16), np.float32),
        "logit_scale": np.zeros((), np.float32),
        "text_projection": np.zeros((16, 16), np.float32),
    }
    for part in ("weight", "bias"):
        tensors[f"visual.ln_pre.{part}"] = theirs[f"pre_layrnorm.{part}"]
        tensors[f"visual.ln_post.{part}"] = theirs[f"post_layernorm.{part}"]
        for layer in range(CONFIG.image.layers):
            block, old = f"visual.transformer.resblocks.{layer}", f"encoder.layers.{layer}"
            tensors[f"{block}.attn.in_proj_{part}"] = np.concatenate(
                [theirs[f"{old}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            )
            tensors[f"{block}.attn.out_proj.{part}"] = theirs[f"{old}.self_attn.out_proj.{part}"]
            tensors[f"{block}.ln_1.{part}"] = theirs[f"{old}.layer_norm1.{part}"]
            tensors[f"{block}.ln_2.{part}"] = theirs[f"{old}.layer_norm2.{part}"]
            tensors[f"{block}.mlp.c_fc.{part}"] = theirs[f"{old}.mlp.fc1.{part}"]
            tensors[f"{block}.mlp.c_proj.{part}"] = theirs[f"{old}.mlp.fc2.{part}"]
    return tensors


def test_another_image_size_is_interpolated_only_when_asked(clip: tuple[Path, np.ndarray, np.ndarray]) -> None:
    folder, _, _ = clip
    larger = dataclasses.replace(CONFIG, image=dataclasses.replace(CONFIG.image, image_size=48))
    differs = re.escape("embeddings.position_embedding.weight is [17, 24], expected [37, 24]")
    with pytest.raises(UserError, match=differs):
        image_tower(str(folder), larger)
    weights = image_tower(str(folder), larger, resize_positions=True)
    old = image_tower(str(folder), CONFIG).params["image_encoder"]["position_embedding"]
    new = weights.params["image_encoder"]["position_embedding"]
    grid = torch.from_numpy(old[1:].reshape(1, 4, 4, 24).transpose(0, 3, 1, 2).copy())
    want = torch.nn.functional.interpolate(grid, (6, 6), mode="bicubic", align_corners=False, antialias=True)
    assert np.array_equal(new[0], old[0])
    # PyTorch repeats the border, JAX leaves it out and renormalises: the two agree away from it.
    inner = np.s_[1:-1, 1:-1]
    theirs = want[0].permute(1, 2, 0).numpy()
    assert np.abs(new[1:].reshape(6, 6, 24)[inner] - theirs[inner]).max() < 0.1 * np.abs(theirs).max()
    assert any("interpolated from 16 to 36 patches" in note for note in weights.notes)


@pytest.fixture(scope="module")
def texts() -> tuple[np.ndarray, np.ndarray]:
    input_ids = np.random.default_rng(0).integers(0, 50, (3, 12)).astype(np.int32)
    return input_ids, np.arange(12)[None] < np.array([12, 5, 8])[:, None]


def test_text_tower_agrees_with_bert_model(tmp_path: Path, texts: tuple[np.ndarray, np.ndarray]) -> None:
    torch.manual_seed(0)
    model = transformers.BertModel(bert_config(CONFIG.text)).eval()
    shaken(model)
    model.save_pretrained(tmp_path)
    input_ids, mask = texts
    with torch.no_grad():
        hidden = model(torch.from_numpy(input_ids).long(), torch.from_numpy(mask).long()).last_hidden_state.numpy()
    weights = text_tower(str(tmp_path), CONFIG, masked_lm=True)
    ours = apply(weights.params, input_ids, mask, method=lambda m, ids, mask: m.text_encoder(ids, mask))
    assert np.abs(ours - hidden)[mask].max() < LIMIT
    assert set(weights.params) == {"text_encoder"}
    assert any("starts random" in note for note in weights.notes)


def masked_lm_model(folder: Path) -> Any:
    torch.manual_seed(1)
    model = transformers.BertForMaskedLM(bert_config(CONFIG.text)).eval()
    shaken(model)
    model.save_pretrained(folder)
    return model


def test_masked_lm_head_agrees_with_bert_for_masked_lm(tmp_path: Path, texts: tuple[np.ndarray, np.ndarray]) -> None:
    model = masked_lm_model(tmp_path)
    input_ids, mask = texts
    with torch.no_grad():
        logits = model(torch.from_numpy(input_ids).long(), torch.from_numpy(mask).long()).logits.numpy()
    params = text_tower(str(tmp_path), CONFIG, masked_lm=True).params
    ours = apply(params, input_ids, mask, method=lambda m, ids, mask: m.masked_lm_logits(m.text_encoder(ids, mask)))
    assert np.abs(ours - logits)[mask].max() < LIMIT


def test_a_head_is_left_out_where_the_model_has_none(tmp_path: Path) -> None:
    masked_lm_model(tmp_path)
    weights = text_tower(str(tmp_path), CONFIG, masked_lm=False)
    assert set(weights.params) == {"text_encoder"}
    assert any("no masked-language-model head" in note for note in weights.notes)


def test_old_names_of_norms_are_understood(tmp_path: Path) -> None:
    masked_lm_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    }
    assert old.keys() != tensors.keys()
    torch.save({name: torch.from_numpy(tensor) for name, tensor in old.items()}, tmp_path / "pytorch_model.bin")
    new = text_tower(str(tmp_path), CONFIG, masked_lm=True).params
    (tmp_path / "model.safetensors").unlink()
    again = text_tower(str(tmp_path), CONFIG, masked_lm=True).params
    assert np.array_equal(
        new["text_encoder"]["layers"]["mlp_norm"]["norm"]["scale"],
        again["text_encoder"]["layers"]["mlp_norm"]["norm"]["scale"],
    )


def test_every_name_that_differs_is_listed(tmp_path: Path) -> None:
    masked_lm_model(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors.pop("bert.embeddings.LayerNorm.bias")
    tensors["bert.surprise"] = np.zeros(3, np.float32)
    tensors["bert.embeddings.word_embeddings.weight"] = np.zeros((51, 32), np.float32)
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(UserError) as refused:
        text_tower(str(tmp_path), CONFIG, masked_lm=True)
    for line in (
        "missing: embeddings.LayerNorm.bias [32]",
        "unexpected: surprise [3]",
        "shape: embeddings.word_embeddings.weight is [51, 32], expected [50, 32]",
        "3 name(s) differ",
    ):
        assert line in str(refused.value)


def test_absent_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds none of model.safetensors, pytorch_model.bin"):
        located(str(tmp_path))
    with pytest.raises(UserError, match="do not exist; expected a file, a folder or a hub name"):
        located(str(tmp_path / "absent.safetensors"))


def renamed(source: Path, target: Path, prefix: str, replacement: str) -> Path:
    """The weights of a folder, with another prefix."""
    target.mkdir()
    tensors = load_file(source / "model.safetensors")
    save_file({name.replace(prefix, replacement, 1): t for name, t in tensors.items()}, target / "model.safetensors")
    return target


def same_text_tower(folder: Path, other: Path) -> bool:
    one, two = (text_tower(str(each), CONFIG, masked_lm=True).params["text_encoder"] for each in (folder, other))
    return bool(jax.tree.all(jax.tree.map(np.array_equal, one, two)))


def test_a_classifier_is_listed_and_left_out(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.BertForSequenceClassification(bert_config(CONFIG.text)).save_pretrained(tmp_path / "classifier")
    weights = text_tower(str(tmp_path / "classifier"), CONFIG, masked_lm=False)
    notes = "; ".join(weights.notes)
    assert "names without bert." in notes
    assert "left out 2 tensor(s), classifier.bias, classifier.weight: no part of the text tower" in notes
    assert "left out 2 tensor(s), pooler.dense." in notes
    bare = renamed(tmp_path / "classifier", tmp_path / "bare", "bert.", "")
    assert same_text_tower(tmp_path / "classifier", bare)
    notes = "; ".join(text_tower(str(bare), CONFIG, masked_lm=False).notes)
    assert "left out 2 tensor(s), classifier.bias, classifier.weight" in notes


@pytest.mark.parametrize(
    "prefix", ["roberta.", "text_model.", "model.bert.", "clip.text_model.", "module.bert.", "net."]
)
def test_a_text_tower_within_a_larger_model_is_found(tmp_path: Path, prefix: str) -> None:
    torch.manual_seed(0)
    transformers.BertForTokenClassification(bert_config(CONFIG.text)).save_pretrained(tmp_path / "bert")
    assert same_text_tower(tmp_path / "bert", renamed(tmp_path / "bert", tmp_path / "other", "bert.", prefix))


def test_both_heads_of_pre_training_are_understood_below_a_wrapper(tmp_path: Path) -> None:
    torch.manual_seed(0)
    transformers.BertForPreTraining(bert_config(CONFIG.text)).save_pretrained(tmp_path / "bert")
    tensors = load_file(tmp_path / "bert" / "model.safetensors")
    torch.save(
        {"state_dict": {f"model.{name}": torch.from_numpy(tensor) for name, tensor in tensors.items()}},
        tmp_path / "lightning.ckpt",
    )
    plain, wrapped = (text_tower(str(tmp_path / name), CONFIG, masked_lm=True) for name in ("bert", "lightning.ckpt"))
    assert set(wrapped.params) == {"text_encoder", "masked_lm_head"}
    assert jax.tree.all(jax.tree.map(np.array_equal, plain.params, wrapped.params))
    assert any("next-sentence prediction" in note for note in wrapped.notes)
    assert "state dict under 'state_dict'" in wrapped.notes


@pytest.mark.parametrize(
    "prefix", ["", "vision_model.", "clip.vision_model.", "visual_encoder.", "module.vision_model."]
)
def test_an_image_tower_within_a_larger_model_is_found(
    clip: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path, prefix: str
) -> None:
    tensors = {
        prefix + name.removeprefix("vision_model."): tensor
        for name, tensor in load_file(clip[0] / "model.safetensors").items()
    }
    save_file(tensors | {"classifier.weight": np.ones((2, 24), np.float32)}, tmp_path / "in.safetensors")
    found, want = image_tower(str(tmp_path / "in.safetensors"), CONFIG), image_tower(str(clip[0]), CONFIG)
    assert jax.tree.all(jax.tree.map(np.array_equal, found.params, want.params))
    assert any(note.startswith("left out 1 tensor(s), classifier.weight: ") for note in found.notes)


def test_shards_of_a_tower_are_read(tmp_path: Path) -> None:
    model = masked_lm_model(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert not (tmp_path / "many" / "model.safetensors").exists()
    assert same_text_tower(tmp_path / "one", tmp_path / "many")


def test_towers_that_are_not_finite_are_refused(clip: tuple[Path, np.ndarray, np.ndarray], tmp_path: Path) -> None:
    tensors = load_file(clip[0] / "model.safetensors")
    name = next(name for name in tensors if name.endswith("class_embedding"))
    save_file(tensors | {name: np.full(24, np.nan, np.float32)}, tmp_path / "in.safetensors")
    with pytest.raises(
        UserError, match=r"are not finite; .*\n  - embeddings.class_embedding \[24\]: 24 NaN, 0 infinite"
    ):
        image_tower(str(tmp_path / "in.safetensors"), CONFIG)


def test_a_folder_of_another_framework_is_named(tmp_path: Path) -> None:
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(
        UserError, match="or name a file. tf_model.h5 is of another framework: convert it to PyTorch first"
    ):
        located(str(tmp_path))
