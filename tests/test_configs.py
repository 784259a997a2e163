"""Every configuration resolves; the numbers that matter, golden; variants differ in what they say and nothing else."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ml_collections import ConfigDict

from r2d2_jax import presets
from r2d2_jax.config.reading import Config
from r2d2_jax.errors import UserError

FOLDER = Path(__file__).resolve().parents[1] / "configs"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py"))
VITB = {"image_size": 224, "patch_size": 16, "width": 768, "layers": 12, "heads": 12, "mlp_width": 3072}
VITL = {"image_size": 224, "patch_size": 14, "width": 1024, "layers": 24, "heads": 16, "mlp_width": 4096}
ROBERTA = {
    "vocabulary_size": 21128, "text_length": 64, "width": 768, "layers": 12, "heads": 12, "mlp_width": 3072,
    "max_positions": 512, "token_types": 2, "dropout": 0.1,
}  # fmt: skip
ARTICLE_LOSS = {
    "contrastive": "tgd", "fgr": True, "mlm": True, "fgd": True, "enhanced_training": True, "soft_target_share": 0.4,
    "soft_target_ramp_epochs": 1.0, "queue_length": 36864, "queue_decay": 0.99, "mask_share": 0.15,
    "whole_word_masking": False, "match_class_weights": [1.0, 2.0], "teacher_momentum": 0.995,
    "fgd_features": "layer_norm", "fgd_teacher_temperature": 4.0, "fgd_student_temperature": 4.0,
    "fgd_mean_momentum": 0.9, "fgd_ramp_epochs": 1.0, "negative_hardness": 1.0, "text_ids": False,
}  # fmt: skip
# name -> image tower, layers of the cross encoders, batch size, epochs, fsdp, data
ARTICLE = {
    "vitb_2m": (VITB, 6, 1024, 15.0, 1, "data/zero_2m"),
    "vitb_23m": (VITB, 6, 2048, 10.0, 1, "data/zero_23m"),
    "vitl_2m": (VITL, 6, 1024, 15.0, 8, "data/zero_2m"),
    "vitl_23m": (VITL, 6, 2048, 10.0, 8, "data/zero_23m"),
    "vitl_250m": (VITL, 6, 4096, 5.0, 8, "data/zero_250m"),
    "prd2_vitl_250m": (VITL, 0, 8192, 5.0, 8, "data/zero_250m"),
}
# variant -> exactly what differs from the whole method
VARIANTS: dict[str, dict[str, Any]] = {
    "prd2": {
        "model.cross.layers": 0, "model.cross.dropout": 0.0, "loss.fgr": False, "loss.mlm": False,
        "evaluation.rerank_candidates": 0,
    },
    "without_et": {"loss.enhanced_training": False},
    "without_twd": {"loss.contrastive": "gcpr", "loss.fgd": False},
    "without_fgd": {"loss.fgd": False},
    "without_tgd": {"loss.contrastive": "gcpr"},
}  # fmt: skip


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def resolved(name: str, *argument: str) -> dict[str, Any]:
    """With the sizes of the article's model where a fine-tuning leaves them to its initial model."""
    config = module(name).get_config(*argument)
    sizes = flat(presets.article_model(presets.vit_large()).to_dict() | {"text": {**ROBERTA}})
    with config.unlocked():
        config.update_from_flattened_dict(
            {f"model.{path}": size for path, size in sizes.items() if open_size(config, path)}
        )
    return Config.from_config_dict(config).to_dict()


def open_size(config: ConfigDict, path: str) -> bool:
    value = config.model
    for name in path.split("."):
        value = value.get(name)
    return value == presets.AS_INITIAL


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    result = {}
    for key, value in values.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return result


@pytest.mark.parametrize("name", NAMES)
def test_resolves(name: str) -> None:
    config = resolved(name)
    if name not in ("retrieval", "matching"):
        assert config["evaluation"]["rerank_candidates"] == (16 if config["model"]["cross"]["layers"] else 0)
    assert config["evaluation"]["batch_size"] % 64 == 0


def test_the_article_s_models_are_all_here() -> None:
    assert set(ARTICLE) | {"demo"} <= set(NAMES)


@pytest.mark.parametrize("name", ARTICLE)
def test_golden(name: str) -> None:
    image, cross_layers, batch_size, epochs, fsdp, directory = ARTICLE[name]
    config = resolved(name)
    model, train = config["model"], config["train"]
    assert model["image"] == image
    assert model["text"] == ROBERTA
    dropout = 0.1 if cross_layers else 0.0
    assert model["cross"] == {"layers": cross_layers, "width": 768, "heads": 12, "mlp_width": 3072, "dropout": dropout}
    assert (model["embed_size"], model["temperature_init"], model["temperature_range"]) == (768, 0.07, [0.001, 0.5])
    assert (model["freeze_image_tower"], model["dtype"]) == (True, "bfloat16")
    assert model["remat"] == "products"
    ranking = {} if cross_layers else {"fgr": False, "mlm": False}
    assert config["loss"] == ARTICLE_LOSS | ranking
    assert (train["batch_size"], train["epochs"]) == (batch_size, epochs)
    assert config["mesh"] == {"data": -1, "fsdp": fsdp}
    assert (config["data"]["directory"], config["data"]["vocabulary"]) == (directory, "hfl/chinese-roberta-wwm-ext")
    assert config["data"]["map_punctuation"] is True
    assert config["optimizer"]["learning_rate"] == 1e-4


def test_golden_demo() -> None:
    config = resolved("demo")
    terms = ("contrastive", "fgr", "mlm", "fgd", "enhanced_training", "mask_share", "match_class_weights")
    assert {key: config["loss"][key] for key in terms} == {key: ARTICLE_LOSS[key] for key in terms}
    assert config["model"]["freeze_image_tower"] is False
    assert config["model"]["dtype"] == "float32"
    assert config["model"]["text"]["dropout"] == config["model"]["cross"]["dropout"] == 0
    assert config["data"]["directory"] == "data/demo"
    assert config["data"]["foil_split"] == "swapped"
    assert config["data"]["flip"] is False


@pytest.mark.parametrize("name", ["vitb_2m", "vitl_2m", "flickr8k_cn", "flickr8k_cn_large"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_variant_differs_in_exactly_what_it_says(name: str, variant: str) -> None:
    base, changed = flat(resolved(name)), flat(resolved(name, variant))
    assert base.keys() == changed.keys()
    differences = {key: changed[key] for key in base if base[key] != changed[key]}
    if variant == "prd2" and name.startswith("flickr8k_cn"):
        assert differences.pop("train.epochs") > base["train.epochs"]  # PRD2 trains for the same time
    assert differences == {key: value for key, value in VARIANTS[variant].items() if base[key] != value}
    assert len(differences) == len(VARIANTS[variant]) or name == "flickr8k_cn"  # which has no dropout


def test_all_variants_are_tested() -> None:
    assert set(presets.VARIANTS) == set(VARIANTS)


@pytest.mark.parametrize("name", ["vitb_2m", "vitl_2m", "flickr8k_cn", "flickr8k_cn_large"])
def test_unknown_variant(name: str) -> None:
    message = "there is no variant 'without_mlm'; the article has prd2, without_et, without_twd, without_fgd, without_t"
    with pytest.raises(UserError, match=message):
        module(name).get_config("without_mlm")


# set -> epochs, candidates, test split, its folder, directions
RETRIEVAL_SETS = {
    "flickr30k_cn": (20.0, 128, "test", "", ["i2t", "t2i"]),
    "flickr30k_cna": (20.0, 128, "test", "data/flickr30k_cn", ["i2t", "t2i"]),
    "coco_cn": (20.0, 128, "test", "", ["i2t", "t2i"]),
    "aic_icc": (10.0, 64, "", "", ["i2t", "t2i"]),
    "muge": (10.0, 64, "", "", ["t2i"]),
    "icr": (10.0, 64, "", "", ["i2t", "t2i"]),
    "iqr": (10.0, 64, "", "", ["i2t", "t2i"]),
    "own": (20.0, 16, "", "", ["i2t", "t2i"]),
}


@pytest.mark.parametrize("dataset", RETRIEVAL_SETS)
def test_golden_retrieval(dataset: str) -> None:
    config = resolved("retrieval", dataset)
    data, train, asked, optimizer = (config[block] for block in ("data", "train", "evaluation", "optimizer"))
    test = (data["test_split"], data["test_directory"])
    assert (train["epochs"], asked["rerank_candidates"], *test, asked["directions"]) == RETRIEVAL_SETS[dataset]
    assert data["directory"] == ("data/mine" if dataset == "own" else f"data/{dataset}")
    assert data["augmentation"] == "random_augment"
    assert config["retrieval"] == {"fgr": True, "match_class_weights": [1.0, 2.0], "negative_hardness": 1.0}
    rates = [optimizer[name] for name in ("learning_rate", "initial_learning_rate", "final_learning_rate")]
    assert (rates, optimizer["warmup_steps"], optimizer["schedule"]) == ([1e-5, 1e-6, 0.0], 500, "cosine")
    assert (optimizer["weight_decay"], optimizer["rates"]) == (0.05, [])
    per_set = (train["batch_size"], optimizer["warmup_share"], data["workers"])
    assert per_set == ((32, 0.1, 2) if dataset == "own" else (8 * 32, 1.0, 8))
    assert (train["evaluate_every"], train["evaluate_every_epochs"], train["keep_best"]) == (0, 1.0, 1)
    assert (config["model"]["image"], config["model"]["freeze_image_tower"]) == (VITL, True)


@pytest.mark.parametrize("dataset", ["icm", "iqm", "own"])
def test_golden_matching(dataset: str) -> None:
    config = resolved("matching", dataset)
    train, optimizer = config["train"], config["optimizer"]
    assert (config["task"], config["matching"]) == ("matching", {"loss": "cross_entropy"})
    assert (optimizer["learning_rate"], optimizer["initial_learning_rate"]) == (3e-6, pytest.approx(0.15e-6))
    schedule = (optimizer["schedule"], optimizer["warmup_steps"])
    assert schedule == (("cosine", 100) if dataset == "own" else ("triangular", 3125))
    assert (optimizer["weight_decay"], optimizer["rates"]) == (0.01, [["bias", 2.0]])
    assert (train["epochs"], train["evaluate_every_epochs"]) == (20.0, 1.0)
    assert (train["batch_size"], optimizer["warmup_share"]) == ((64, 0.1) if dataset == "own" else (8 * 64, 1.0))


@pytest.mark.parametrize("name", ["retrieval", "matching"])
def test_unknown_data_set(name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} has no data set 'mine'; it has .*own"):
        module(name).get_config("mine")
