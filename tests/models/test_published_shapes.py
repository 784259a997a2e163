"""Our parameters are exactly those of the published checkpoints: every name, every shape, in both directions.

The map is written out here once more, without the converter's code, so that the two check each other.
"""

import json
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from reference import ABSENT, FOLDER
from safetensors import safe_open

from r2d2_jax.config.model import CrossEncoderConfig, ImageTowerConfig, ModelConfig, TextTowerConfig
from r2d2_jax.models.r2d2 import R2D2

VIT_L = ImageTowerConfig(image_size=224, patch_size=14, width=1024, layers=24, heads=16, mlp_width=4096)
VIT_B = ImageTowerConfig(image_size=224, patch_size=16, width=768, layers=12, heads=12, mlp_width=3072)
TEXT = TextTowerConfig(vocabulary_size=21128, text_length=64, width=768, layers=12, heads=12, mlp_width=3072)
CROSS = CrossEncoderConfig(layers=6, width=768, heads=12, mlp_width=3072)
NO_CROSS = CrossEncoderConfig(layers=0, width=768, heads=12, mlp_width=3072)

# Published name -> our path. "{i}" is the layer; ours stand at index i of a stacked array, or, as the last layer of a
# cross encoder, apart. The published code really says "pre_layrnorm".
IMAGE = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "patch_embedding/kernel",
    "embeddings.position_embedding.weight": "position_embedding",
    "pre_layrnorm.weight": "pre_norm/norm/scale",
    "pre_layrnorm.bias": "pre_norm/norm/bias",
    "encoder.layers.{i}.layer_norm1.weight": "layers/{i}/attention_norm/norm/scale",
    "encoder.layers.{i}.layer_norm1.bias": "layers/{i}/attention_norm/norm/bias",
    "encoder.layers.{i}.self_attn.q_proj.weight": "layers/{i}/attention/query/kernel",
    "encoder.layers.{i}.self_attn.q_proj.bias": "layers/{i}/attention/query/bias",
    "encoder.layers.{i}.self_attn.k_proj.weight": "layers/{i}/attention/key/kernel",
    "encoder.layers.{i}.self_attn.k_proj.bias": "layers/{i}/attention/key/bias",
    "encoder.layers.{i}.self_attn.v_proj.weight": "layers/{i}/attention/value/kernel",
    "encoder.layers.{i}.self_attn.v_proj.bias": "layers/{i}/attention/value/bias",
    "encoder.layers.{i}.self_attn.out_proj.weight": "layers/{i}/attention/out/kernel",
    "encoder.layers.{i}.self_attn.out_proj.bias": "layers/{i}/attention/out/bias",
    "encoder.layers.{i}.layer_norm2.weight": "layers/{i}/mlp_norm/norm/scale",
    "encoder.layers.{i}.layer_norm2.bias": "layers/{i}/mlp_norm/norm/bias",
    "encoder.layers.{i}.mlp.fc1.weight": "layers/{i}/mlp/up/kernel",
    "encoder.layers.{i}.mlp.fc1.bias": "layers/{i}/mlp/up/bias",
    "encoder.layers.{i}.mlp.fc2.weight": "layers/{i}/mlp/down/kernel",
    "encoder.layers.{i}.mlp.fc2.bias": "layers/{i}/mlp/down/bias",
}
TEXT_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "word_embedding/embedding",
    "embeddings.position_embeddings.weight": "position_embedding/embedding",
    "embeddings.token_type_embeddings.weight": "type_embedding/embedding",
    "embeddings.LayerNorm.weight": "embedding_norm/norm/scale",
    "embeddings.LayerNorm.bias": "embedding_norm/norm/bias",
}


def bert_attention(published: str, ours: str) -> dict[str, str]:
    """One attention of BERT and the norm behind it."""
    return {
        f"encoder.layer.{{i}}.{published}.self.query.weight": f"layers/{{i}}/{ours}/query/kernel",
        f"encoder.layer.{{i}}.{published}.self.query.bias": f"layers/{{i}}/{ours}/query/bias",
        f"encoder.layer.{{i}}.{published}.self.key.weight": f"layers/{{i}}/{ours}/key/kernel",
        f"encoder.layer.{{i}}.{published}.self.key.bias": f"layers/{{i}}/{ours}/key/bias",
        f"encoder.layer.{{i}}.{published}.self.value.weight": f"layers/{{i}}/{ours}/value/kernel",
        f"encoder.layer.{{i}}.{published}.self.value.bias": f"layers/{{i}}/{ours}/value/bias",
        f"encoder.layer.{{i}}.{published}.output.dense.weight": f"layers/{{i}}/{ours}/out/kernel",
        f"encoder.layer.{{i}}.{published}.output.dense.bias": f"layers/{{i}}/{ours}/out/bias",
        f"encoder.layer.{{i}}.{published}.output.LayerNorm.weight": f"layers/{{i}}/{ours}_norm/norm/scale",
        f"encoder.layer.{{i}}.{published}.output.LayerNorm.bias": f"layers/{{i}}/{ours}_norm/norm/bias",
    }


BERT_MLP = {
    "encoder.layer.{i}.intermediate.dense.weight": "layers/{i}/mlp/up/kernel",
    "encoder.layer.{i}.intermediate.dense.bias": "layers/{i}/mlp/up/bias",
    "encoder.layer.{i}.output.dense.weight": "layers/{i}/mlp/down/kernel",
    "encoder.layer.{i}.output.dense.bias": "layers/{i}/mlp/down/bias",
    "encoder.layer.{i}.output.LayerNorm.weight": "layers/{i}/mlp_norm/norm/scale",
    "encoder.layer.{i}.output.LayerNorm.bias": "layers/{i}/mlp_norm/norm/bias",
}
BERT_LAYERS = bert_attention("attention", "attention") | BERT_MLP
CROSS_ATTENTION = bert_attention("crossattention", "cross_attention")
CROSS_LAYERS = bert_attention("attention", "self_attention") | CROSS_ATTENTION | BERT_MLP
HEADS = {"vision_proj": "image_projection", "text_proj": "text_projection"}
CROSS_HEADS = {
    "img_joint_proj": "image_text_projection",
    "itm_head": "text_image_match_head",
    "itm_head_i": "image_text_match_head",
}

# What a published checkpoint holds although no output reads it.
UNUSED = (
    r"(visual_encoder|text_encoder|text_joint_layer|img_joint_layer)\.embeddings\.position_ids",  # 0, 1, 2, ...
    r"visual_encoder\.post_layernorm\.(weight|bias)",  # CLS is taken before it
    r"text_encoder\.pooler\.dense\.(weight|bias)",
)
UNUSED_JOINT = (r"(text|img)_joint_layer\.embeddings\.(word_embeddings|position_embeddings|LayerNorm)\.(weight|bias)",)


def name_map(config: ModelConfig) -> dict[str, str]:
    """Published name -> our path, layers written out."""
    stages = [
        ("visual_encoder", "image_encoder", IMAGE, config.image.layers),
        ("text_encoder", "text_encoder", TEXT_EMBEDDINGS | BERT_LAYERS, config.text.layers),
    ]
    heads = HEADS
    if config.cross.layers:
        stages.append(("text_joint_layer", "text_image_encoder", CROSS_LAYERS, config.cross.layers))
        stages.append(("img_joint_layer", "image_text_encoder", CROSS_LAYERS, config.cross.layers))
        heads = HEADS | CROSS_HEADS
    names = {"temp": "temperature"}
    for published, ours, inner, layers in stages:
        for theirs, path in inner.items():
            for i in range(layers if "{i}" in theirs else 1):
                names[f"{published}.{theirs}".replace("{i}", str(i))] = f"{ours}/{path}".replace("{i}", str(i))
    for published, ours in heads.items():
        names |= {f"{published}.weight": f"{ours}/kernel", f"{published}.bias": f"{ours}/bias"}
    return names


def our_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Our path -> shape in the published convention, stacked layers one by one, without the masked-language-model head.

    Dense kernels are transposed; the patch kernel [patch * patch * 3, d] stands for a convolution [d, 3, patch, patch].
    """
    matching = bool(config.cross.layers)
    model = R2D2(config, matching=matching, masked_lm=matching)
    side, length = config.image.image_size, config.text.text_length
    arguments = (jnp.zeros((1, side, side, 3)), jnp.zeros((1, length), jnp.int32), jnp.ones((1, length), bool))
    tree = jax.eval_shape(model.init, jax.random.key(0), *arguments)["params"]
    shapes: dict[str, tuple[int, ...]] = {}
    for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        path, shape = jax.tree_util.keystr(keys, simple=True, separator="/"), leaf.shape
        if path.startswith("masked_lm_head/"):
            continue  # the published checkpoints have no such head
        if "/layers/" in path:
            for i in range(shape[0]):
                shapes[path.replace("/layers/", f"/layers/{i}/")] = published_shape(path, shape[1:], config)
        else:
            path = path.replace("/last_layer/", f"/layers/{config.cross.layers - 1}/")
            shapes[path] = published_shape(path, shape, config)
    return shapes


def published_shape(path: str, shape: tuple[int, ...], config: ModelConfig) -> tuple[int, ...]:
    if path == "image_encoder/patch_embedding/kernel":
        patch = config.image.patch_size
        assert shape == (patch * patch * 3, config.image.width)
        return (config.image.width, 3, patch, patch)
    return shape[::-1] if path.endswith("/kernel") else shape


def layout(name: str) -> dict[str, tuple[int, ...]]:
    path = FOLDER.parent / f"layout_{name}.json"
    if not path.exists():
        pytest.skip(f"no reference values: {path} is absent; name the folder of tiny/ in R2D2_REFERENCE_DIR")
    return {published: tuple(shape) for published, shape in json.loads(path.read_text()).items()}


def is_unused(published: str, patterns: tuple[str, ...]) -> bool:
    return any(re.fullmatch(pattern, published) for pattern in patterns)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("r2d2_large", ModelConfig(image=VIT_L, text=TEXT, cross=CROSS, embed_size=768)),
        ("r2d2_base", ModelConfig(image=VIT_B, text=TEXT, cross=CROSS, embed_size=768)),
        ("prd2_large", ModelConfig(image=VIT_L, text=TEXT, cross=NO_CROSS, embed_size=768)),
    ],
)
def test_parameters_are_those_of_the_published_checkpoint(name: str, config: ModelConfig) -> None:
    published, ours, names = layout(name), our_shapes(config), name_map(config)
    patterns = UNUSED + UNUSED_JOINT if config.cross.layers else UNUSED
    unused = {key for key in published if is_unused(key, patterns)}
    assert all(any(re.fullmatch(pattern, key) for key in unused) for pattern in patterns), "a pattern matches nothing"
    assert set(names) == set(published) - unused, "every published name is mapped or listed as unused, and none else"
    assert len(set(names.values())) == len(names), "no parameter of ours stands for two published ones"
    assert set(names.values()) == set(ours), "every parameter of ours is mapped"
    assert {key: ours[path] for key, path in names.items()} == {key: published[key] for key in names}


def tiny_config(sizes: dict[str, Any]) -> ModelConfig:
    return ModelConfig(
        image=ImageTowerConfig(
            sizes["image_size"],
            sizes["patch_size"],
            sizes["vision_width"],
            sizes["vision_layers"],
            sizes["vision_heads"],
            sizes["vision_mlp"],
        ),
        text=TextTowerConfig(
            sizes["vocab"],
            sizes["text_len"],
            sizes["text_width"],
            sizes["text_layers"],
            sizes["text_heads"],
            sizes["text_mlp"],
            max_positions=sizes["max_pos"],
        ),
        cross=CrossEncoderConfig(sizes["cross_layers"], sizes["text_width"], sizes["text_heads"], sizes["text_mlp"]),
        embed_size=sizes["embed_dim"],
    )


@pytest.mark.parity
def test_the_published_fine_tuning_sends_gradients_to_what_is_mapped_and_to_nothing_else() -> None:
    """What is listed as unused receives no gradient in the published code; all that is mapped does, but for the frozen
    image tower."""
    if not (FOLDER / "expected.safetensors").exists():
        pytest.skip(ABSENT)
    config = tiny_config(json.loads((FOLDER / "sizes.json").read_text()))
    ours, names = our_shapes(config), name_map(config)
    with safe_open(FOLDER / "expected.safetensors", framework="numpy") as values:
        gradients = {
            key.removeprefix("grad."): tuple(values.get_slice(key).get_shape())
            for key in values.keys()  # noqa: SIM118 - it is no mapping
            if key.startswith("grad.")
        }
    trained = {key: ours[path] for key, path in names.items() if not key.startswith("visual_encoder.")}
    assert gradients == trained
