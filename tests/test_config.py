"""One negative test per message, all problems together, conversions that are allowed, and the JSON round trip."""

import dataclasses
import json
from typing import Any

import pytest
from ml_collections import ConfigDict

from r2d2_jax.config.reading import Config
from r2d2_jax.config.run import EvaluationConfig
from r2d2_jax.config.tasks import LossConfig
from r2d2_jax.errors import UserError


def values() -> dict[str, Any]:
    """A small valid configuration."""
    return {
        "model": {
            "image": {"image_size": 32, "patch_size": 16, "width": 24, "layers": 2, "heads": 3, "mlp_width": 48},
            "text": {
                "vocabulary_size": 50,
                "text_length": 8,
                "width": 16,
                "layers": 2,
                "heads": 2,
                "mlp_width": 32,
                "max_positions": 12,
            },
            "cross": {"layers": 2, "width": 16, "heads": 2, "mlp_width": 32},
            "dtype": "float32",
        },
        "loss": {"queue_length": 16},
        "data": {"directory": "somewhere"},
        "optimizer": {"learning_rate": 1e-4},
        "train": {"batch_size": 8, "epochs": 2.0},
    }


# Fine-tuning for retrieval, with the block of pre-training's terms at its defaults, as it must be.
RETRIEVAL: dict[str, Any] = {"task": "retrieval", "loss__queue_length": LossConfig().queue_length}


def changed(**changes: Any) -> dict[str, Any]:
    """`values()` with some keys set; `model__text__heads=3` sets model.text.heads."""
    result = values()
    for path, value in changes.items():
        *blocks, name = path.split("__")
        block = result
        for part in blocks:
            block = block.setdefault(part, {})
        block[name] = value
    return result


def without(path: str) -> dict[str, Any]:
    result = values()
    *blocks, name = path.split(".")
    block = result
    for part in blocks:
        block = block[part]
    del block[name]
    return result


def read(config: dict[str, Any]) -> Config:
    return Config.from_config_dict(ConfigDict(config))


def problems(config: dict[str, Any]) -> list[str]:
    """What is wrong, one problem a line, from the message."""
    with pytest.raises(UserError) as error:
        read(config)
    head, *lines = str(error.value).splitlines()
    assert head == (
        f"the configuration has {len(lines)} problem(s); correct them in the config file or with --config.KEY=VALUE:"
    )
    assert all(line.startswith("  - ") for line in lines)
    return [line.removeprefix("  - ") for line in lines]


def test_a_valid_configuration_is_read() -> None:
    config = read(values())
    assert (config.model.image.width, config.model.text.max_positions, config.train.batch_size) == (24, 12, 8)
    assert config.data.train_split == "train"
    assert (config.loss.queue_length, config.loss.contrastive) == (16, "tgd")
    assert config.mesh.fsdp == 1


def test_blocks_with_defaults_may_be_left_out() -> None:
    config = read(without("loss"))
    assert config.loss == LossConfig()


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        read(values()).train.batch_size = 4  # type: ignore[misc]


def test_ints_are_accepted_for_floats_and_lists_for_tuples() -> None:
    config = read(
        changed(
            train__epochs=3,
            optimizer__learning_rate=1,
            model__temperature_range=[0.01, 1],
            loss__match_class_weights=[1, 2],
            data__crop_scale=(1, 1),
        )
    )
    assert (config.train.epochs, type(config.train.epochs)) == (3.0, float)
    assert config.optimizer.learning_rate == 1.0
    assert config.model.temperature_range == (0.01, 1.0)
    assert config.loss.match_class_weights == (1.0, 2.0)
    assert type(config.loss.match_class_weights[0]) is float
    assert config.data.crop_scale == (1.0, 1.0)


def test_corpora_of_any_number() -> None:
    assert (read(values()).data.corpora, read(values()).data.corpus_weights) == ((), ())
    data = read(changed(data__corpora=["a", "b", "c"], data__corpus_weights=[1, 2.5, 3])).data
    assert (data.corpora, data.corpus_weights) == (("a", "b", "c"), (1.0, 2.5, 3.0))


def test_round_trip_through_json() -> None:
    config = read(
        changed(
            data__foil_split="swapped",
            data__corpora=["a", "b"],
            data__corpus_weights=[1, 2],
            model__temperature_range=[0.01, 0.4],
            loss__fgd=False,
        )
    )
    plain = config.to_dict()
    assert plain["model"]["temperature_range"] == [0.01, 0.4]
    assert read(json.loads(json.dumps(plain))) == config
    assert json.loads(json.dumps(plain)) == plain


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            changed(model__image__widht=3),
            "unknown key model.image.widht; known here: image_size, patch_size, width, layers, heads, mlp_width",
        ),
        (
            changed(trian={}),
            "unknown key trian; "
            "known here: model, data, optimizer, train, task, loss, retrieval, initial, mesh, evaluation",
        ),
        (without("train.epochs"), "missing key train.epochs (float)"),
        (without("data.directory"), "missing key data.directory (str)"),
        (without("data"), "missing key data (DataConfig)"),
        (without("model.text.heads"), "missing key model.text.heads (int)"),
        (changed(train__batch_size="8"), "train.batch_size is '8' of type str; expected int"),
        (changed(train__batch_size=8.0), "train.batch_size is 8.0 of type float; expected int"),
        (changed(train__batch_size=True), "train.batch_size is True of type bool; expected int"),
        (changed(train__epochs=None), "train.epochs is None of type NoneType; expected float"),
        (changed(loss__queue_decay=True), "loss.queue_decay is True of type bool; expected float"),
        (changed(loss__fgr=1), "loss.fgr is 1 of type int; expected bool"),
        (changed(model__dtype=32), "model.dtype is 32 of type int; expected str"),
        (changed(data__crop_scale=0.5), "data.crop_scale is 0.5 of type float; expected tuple[float, float]"),
        (changed(data__crop_scale=(0.5,)), "data.crop_scale is (0.5,) of type tuple; expected tuple[float, float]"),
        (
            changed(data__crop_scale=[0.5, 0.6, 0.7]),
            "data.crop_scale is [0.5, 0.6, 0.7] of type list; expected tuple[float, float]",
        ),
        (changed(data__crop_scale=(0.5, "x")), "data.crop_scale is 'x' of type str; expected float"),
        (changed(data__corpora="a"), "data.corpora is 'a' of type str; expected tuple[str, ...]"),
        (changed(data__corpora=("a", 1)), "data.corpora is 1 of type int; expected str"),
        (
            changed(data__corpora=("a", "b"), data__corpus_weights=(1.0, "2")),
            "data.corpus_weights is '2' of type str; expected float",
        ),
        (changed(mesh=2), "mesh is 2; expected a block of keys"),
    ],
)
def test_unknown_missing_and_mistyped_keys(config: dict[str, Any], message: str) -> None:
    assert problems(config) == [message]


def test_a_block_that_is_no_block_also_lists_what_it_needs() -> None:
    assert problems(changed(data="here")) == [
        "data is 'here'; expected a block of keys",
        "missing key data.directory (str)",
    ]


POSITIVE = (
    "train__batch_size",
    "train__epochs",
    "train__log_every",
    "train__keep_last",
    "optimizer__learning_rate",
    "optimizer__clip_norm",
    "evaluation__batch_size",
)
NOT_NEGATIVE = (
    "train__checkpoint_every",
    "train__evaluate_every",
    "train__keep_best",
    "data__workers",
    "data__validation_images",
    "evaluation__rerank_candidates",
    "optimizer__warmup_steps",
    "optimizer__weight_decay",
)
SHARES = ("soft_target_share", "queue_decay", "teacher_momentum", "fgd_mean_momentum")
WHOLE = {"batch_size", "log_every", "keep_last"}


@pytest.mark.parametrize("path", POSITIVE)
def test_numbers_that_must_be_positive(path: str) -> None:
    whole = path.split("__")[1] in WHOLE
    for number in (0, -1) if whole else (0.0, -0.5, float("nan"), float("inf")):
        found = problems(changed(**{path: number}))  # a batch of none is also too small for a hard negative
        assert f"{path.replace('__', '.')} is {number}; expected a positive number" in found
        assert len(found) == (2 if path == "train__batch_size" else 1)


@pytest.mark.parametrize("path", NOT_NEGATIVE)
def test_numbers_that_must_not_be_negative(path: str) -> None:
    number = -0.5 if path.endswith("decay") else -1
    assert problems(changed(**{path: number})) == [f"{path.replace('__', '.')} is {number}; expected 0 or more"]


@pytest.mark.parametrize("name", SHARES)
def test_shares_lie_between_zero_and_one(name: str) -> None:
    for number in (-0.1, 1.1, float("nan")):
        message = f"loss.{name} is {number}; expected a number from 0 to 1"
        assert problems(changed(**{f"loss__{name}": number})) == [message]
    for number in (0.0, 1.0):
        read(changed(**{f"loss__{name}": number}))


@pytest.mark.parametrize("number", [0.0, 1.0, -0.1, 2.0])
def test_mask_share_lies_strictly_between_zero_and_one(number: float) -> None:
    message = f"loss.mask_share is {number}; expected a number between 0 and 1"
    assert problems(changed(loss__mask_share=number)) == [message]


@pytest.mark.parametrize("name", ["fgd_teacher_temperature", "fgd_student_temperature"])
def test_distillation_temperatures_are_positive(name: str) -> None:
    for number in (0.0, -1.0, float("nan")):
        message = f"loss.{name} is {number}; expected a positive number"
        assert problems(changed(**{f"loss__{name}": number})) == [message]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__crop_scale": (0.0, 1.0)}, "data.crop_scale is (0.0, 1.0); expected 0 < low <= high <= 1"),
        ({"data__crop_scale": (0.9, 0.5)}, "data.crop_scale is (0.9, 0.5); expected 0 < low <= high <= 1"),
        ({"data__augmentation": "none"}, "data.augmentation is 'none'; expected 'crop_and_flip' or 'random_augment'"),
        ({"data__augmentation_magnitude": -0.5}, "data.augmentation_magnitude is -0.5; expected a number from 0 to 10"),
        ({"data__augmentation_magnitude": 10.5}, "data.augmentation_magnitude is 10.5; expected a number from 0 to 10"),
        ({"data__crop_scale": (0.5, 1.5)}, "data.crop_scale is (0.5, 1.5); expected 0 < low <= high <= 1"),
        ({"mesh__data": 0}, "mesh.data is 0; expected a number of devices, or -1 for all that are left"),
        ({"mesh__fsdp": -2}, "mesh.fsdp is -2; expected a number of devices, or -1 for all that are left"),
        (
            {"mesh__data": -1, "mesh__fsdp": -1},
            "mesh.data and mesh.fsdp are both -1; at most one axis can take what is left",
        ),
        (
            {"loss__fgr": False},
            "evaluation.rerank_candidates is 16 but no match heads are trained "
            "(fgr is False or model.cross.layers is 0); set it to 0",
        ),
        (
            {"model__cross__layers": 0, "loss__fgr": False, "loss__mlm": False},
            "evaluation.rerank_candidates is 16 but no match heads are trained "
            "(fgr is False or model.cross.layers is 0); set it to 0",
        ),
        ({"model__image__image_size": 33}, "model.image.image_size 33 is not a multiple of model.image.patch_size 16"),
        ({"model__image__patch_size": 0}, "model.image.patch_size is 0; expected a positive number"),
        ({"model__image__layers": 0}, "model.image.layers is 0; expected a positive number"),
        ({"model__text__mlp_width": -1}, "model.text.mlp_width is -1; expected a positive number"),
        ({"model__embed_size": 0}, "model.embed_size is 0; expected a positive number"),
        ({"optimizer__beta1": 1.0}, "optimizer.beta1 is 1.0; expected 0 or more and less than 1"),
        ({"optimizer__beta2": 1.0}, "optimizer.beta2 is 1.0; expected 0 or more and less than 1"),
        ({"optimizer__beta2": -0.1}, "optimizer.beta2 is -0.1; expected 0 or more and less than 1"),
        ({"optimizer__weight_decay": float("nan")}, "optimizer.weight_decay is nan; expected 0 or more"),
        ({"optimizer__final_learning_rate": -1.0}, "optimizer.final_learning_rate is -1.0; expected 0 or more"),
        ({"train__seed": -1}, "train.seed is -1; expected 0 or more"),
        (
            {"data__directory": "gs://bucket/data"},
            "data.directory is gs://bucket/data, an address; expected a local or mounted path: mount it first",
        ),
        (
            {"data__vocabulary": "https://x.org/vocab.txt"},
            "data.vocabulary is https://x.org/vocab.txt, an address; expected a local or mounted path: mount it first",
        ),
        ({"data__directory": ""}, "data.directory is empty; expected the folder of a prepared dataset"),
        (
            {"data__corpora": ("a", "https://b")},
            "data.corpora names https://b, an address; expected a local or mounted path: mount it first",
        ),
        ({"data__corpora": ("a", "b", "a")}, "data.corpora names a 2 times; expected it once: give it a larger weight"),
        ({"data__corpora": ("a", "")}, "data.corpora has an empty name; expected folders of prepared datasets"),
        (
            {"data__corpora": ("a", "b"), "data__corpus_weights": (1.0,)},
            "data.corpus_weights has 1 number(s) for the 2 folder(s) of data.corpora; expected one for each, or none "
            "at all",
        ),
        (
            {"data__corpus_weights": (1.0,)},
            "data.corpus_weights has 1 number(s) for the 0 folder(s) of data.corpora; expected one for each, or none "
            "at all",
        ),
        (
            {"data__corpora": ("a", "b"), "data__corpus_weights": (1.0, 0.0)},
            "data.corpus_weights is 0.0; expected a positive number",
        ),
        (
            {"data__corpora": ("a", "b"), "data__corpus_weights": (float("inf"), 1.0)},
            "data.corpus_weights is inf; expected a positive number",
        ),
        ({"data__max_broken_share": -1.0}, "data.max_broken_share is -1.0; expected a number from 0 to 1"),
        ({"loss__match_class_weights": (-1.0, 2.0)}, "loss.match_class_weights is -1.0; expected 0 or more"),
        ({"loss__soft_target_ramp_epochs": -1.0}, "loss.soft_target_ramp_epochs is -1.0; expected 0 or more"),
        ({"model__image__heads": 5}, "model.image.width 24 is not a multiple of model.image.heads 5"),
        ({"model__text__heads": 0}, "model.text.heads is 0; expected a positive number"),
        ({"model__cross__heads": 3}, "model.cross.width 16 is not a multiple of model.cross.heads 3"),
        (
            {"model__text__text_length": 13},
            "model.text.text_length 13 is larger than model.text.max_positions 12; there is no position embedding for "
            "the last tokens",
        ),
        ({"model__text__text_length": 2}, "model.text.text_length is 2; expected at least 3: CLS, one token, SEP"),
        (
            {"model__cross__width": 32},
            "model.cross.width 32 differs from model.text.width 16; the text-image cross encoder is fed with text "
            "tokens directly",
        ),
        ({"model__cross__layers": -1}, "model.cross.layers is -1; expected 1 or more, or 0 for PRD2"),
        ({"model__dtype": "float16"}, "model.dtype is 'float16'; expected 'bfloat16' or 'float32'"),
        (
            {"model__temperature_init": 0.6},
            "model.temperature_init 0.6 lies outside model.temperature_range (0.001, 0.5)",
        ),
        (
            {"model__temperature_range": (0.0, 0.5)},
            "model.temperature_init 0.07 lies outside model.temperature_range (0.0, 0.5)",
        ),
        ({"loss__contrastive": "clip"}, "loss.contrastive is 'clip'; expected 'tgd' or 'gcpr'"),
        (
            {"loss__queue_length": 7},
            "loss.queue_length 7 is shorter than the global train.batch_size 8; a whole batch must fit into the queue",
        ),
        ({"train__batch_size": 1}, "loss.fgr needs a hard negative, so train.batch_size must be at least 2"),
        (
            {"model__cross__layers": 0, "evaluation__rerank_candidates": 0},
            "loss.fgr or loss.mlm is on but model.cross.layers is 0; PRD2 has neither",
        ),
        (
            {"model__cross__layers": 0, "loss__fgr": False, "evaluation__rerank_candidates": 0},
            "loss.fgr or loss.mlm is on but model.cross.layers is 0; PRD2 has neither",
        ),
        ({"task": "captioning"}, "task is 'captioning'; expected one of pretraining, retrieval"),
        (
            {"retrieval__fgr": False},
            "retrieval is set, but its terms are those of retrieval and task is 'pretraining'; leave it out",
        ),
        (
            {"task": "retrieval"},
            "loss is set, but its terms are those of pretraining and task is 'retrieval'; leave it out",
        ),
        (
            {**RETRIEVAL, "model__cross__layers": 0, "evaluation__rerank_candidates": 0},
            "retrieval.fgr is on but model.cross.layers is 0; PRD2 has no cross encoders to train: set it to False",
        ),
        (
            {**RETRIEVAL, "train__batch_size": 1},
            "a pair is compared with the others of its batch, so train.batch_size must be at least 2",
        ),
        (
            {**RETRIEVAL, "retrieval__match_class_weights": (-1.0, 2.0)},
            "retrieval.match_class_weights is -1.0; expected 0 or more",
        ),
        (
            {**RETRIEVAL, "retrieval__fgr": False},
            "evaluation.rerank_candidates is 16 but no match heads are trained (fgr is False or model.cross.layers "
            "is 0); set it to 0",
        ),
        ({"optimizer__rates": (("bias", -1.0),)}, "optimizer.rates of 'bias' is -1.0; expected 0 or more"),
        (
            {"optimizer__rates": (("(", 1.0),)},
            "optimizer.rates has the pattern '(', which is no regular expression: missing ), unterminated subpattern "
            "at position 0",
        ),
    ],
)
def test_contradictions(changes: dict[str, Any], message: str) -> None:
    assert problems(changed(**changes)) == [message]


@pytest.mark.parametrize(
    "changes",
    [
        {"loss__contrastive": "gcpr", "loss__queue_length": 1},  # no queue, so its length is of no matter
        {"train__batch_size": 1, "loss__fgr": False, "evaluation__rerank_candidates": 0},
        {"model__cross__layers": 0, "loss__fgr": False, "loss__mlm": False, "evaluation__rerank_candidates": 0},  # PRD2
        {"mesh__data": 2, "mesh__fsdp": -1},
        {"loss__queue_length": 8},
        {"model__text__text_length": 12},
        {"model__temperature_init": 0.5},
        {"train__checkpoint_every": 0, "train__evaluate_every": 0, "train__keep_best": 0},
    ],
)
def test_what_only_looks_like_a_contradiction(changes: dict[str, Any]) -> None:
    read(changed(**changes))


def test_all_problems_of_the_keys_are_listed_together() -> None:
    config = changed(model__image__widht=3, train__batch_size="8", loss__fgr=1, evaluation__nothing=0)
    del config["data"]["directory"]
    assert sorted(problems(config)) == sorted(
        [
            "unknown key model.image.widht; known here: image_size, patch_size, width, layers, heads, mlp_width",
            "missing key data.directory (str)",
            "train.batch_size is '8' of type str; expected int",
            "loss.fgr is 1 of type int; expected bool",
            "unknown key evaluation.nothing; known here: rerank_candidates, rerank_during_training, batch_size",
        ]
    )


def test_all_contradictions_are_listed_together() -> None:
    found = problems(
        changed(
            model__image__heads=5, loss__queue_length=7, data__crop_scale=(0.9, 0.5), mesh__data=0, loss__mask_share=0.0
        )
    )
    assert len(found) == 5


@pytest.mark.parametrize(
    ("contrastive", "fgd", "expected"),
    [("tgd", True, True), ("tgd", False, True), ("gcpr", True, True), ("gcpr", False, False)],
)
def test_a_teacher_is_kept_for_either_distillation(contrastive: str, fgd: bool, expected: bool) -> None:
    assert LossConfig(contrastive=contrastive, fgd=fgd).has_teacher is expected


@pytest.mark.parametrize(
    "candidates, during, expected", [(16, True, "reranked"), (16, False, "dual"), (0, True, "dual")]
)
def test_checkpoints_are_compared_by_what_every_evaluation_measures(
    candidates: int, during: bool, expected: str
) -> None:
    settings = EvaluationConfig(rerank_candidates=candidates, rerank_during_training=during)
    assert settings.compared_by == expected
