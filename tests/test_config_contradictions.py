"""Values that cannot be and values that contradict each other: one negative test per message, and all together."""

from typing import Any

import pytest
from small_values import changed, problems, read

from r2d2_jax.config.tasks import LossConfig

# Fine-tuning for retrieval, with the block of pre-training's terms at its defaults, as it must be.
RETRIEVAL: dict[str, Any] = {"task": "retrieval", "loss__queue_length": LossConfig().queue_length}

POSITIVE = (
    "train__batch_size",
    "train__epochs",
    "train__log_every",
    "train__micro_batches",
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
    "optimizer__initial_learning_rate",
)
SHARES = ("soft_target_share", "negative_hardness", "queue_decay", "teacher_momentum", "fgd_mean_momentum")
WHOLE = {"batch_size", "micro_batches", "log_every", "keep_last"}


@pytest.mark.parametrize("path", POSITIVE)
def test_numbers_that_must_be_positive(path: str) -> None:
    whole = path.split("__")[1] in WHOLE
    for number in (0, -1) if whole else (0.0, -0.5, float("nan"), float("inf")):
        found = problems(changed(**{path: number}))  # a batch of none is also too small for a hard negative
        assert f"{path.replace('__', '.')} is {number}; expected a positive number" in found
        assert len(found) == (2 if path == "train__batch_size" else 1)


@pytest.mark.parametrize("path", NOT_NEGATIVE)
def test_numbers_that_must_not_be_negative(path: str) -> None:
    number = -0.5 if path.endswith(("decay", "rate")) else -1
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


def test_features_that_are_distilled_have_one_of_three_forms() -> None:
    message = "loss.fgd_features is 'layernorm'; expected 'layer_norm', 'unit' or 'projected'"
    assert problems(changed(loss__fgd_features="layernorm")) == [message]


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
        ({"model__image__layers": 10**12}, "model.image.layers is 1000000000000; expected 1,000 at most"),
        ({"model__cross__layers": 1001}, "model.cross.layers is 1001; expected 1,000 at most"),
        ({"model__embed_size": 2**24 + 1}, "model.embed_size is 16777217; expected 16,777,216 at most"),
        ({"model__text__mlp_width": -1}, "model.text.mlp_width is -1; expected a positive number"),
        ({"model__embed_size": 0}, "model.embed_size is 0; expected a positive number"),
        ({"optimizer__beta1": 1.0}, "optimizer.beta1 is 1.0; expected 0 or more and less than 1"),
        ({"optimizer__beta2": 1.0}, "optimizer.beta2 is 1.0; expected 0 or more and less than 1"),
        ({"optimizer__beta2": -0.1}, "optimizer.beta2 is -0.1; expected 0 or more and less than 1"),
        ({"optimizer__weight_decay": float("nan")}, "optimizer.weight_decay is nan; expected 0 or more"),
        ({"optimizer__final_learning_rate": -1.0}, "optimizer.final_learning_rate is -1.0; expected 0 or more"),
        ({"optimizer__schedule": "linear"}, "optimizer.schedule is 'linear'; expected 'cosine' or 'triangular'"),
        (
            {"optimizer__initial_learning_rate": 1.0, "optimizer__warmup_steps": 5},
            "optimizer.initial_learning_rate is 1.0; expected optimizer.learning_rate 0.0001 at most, to which the "
            "rate rises",
        ),
        (
            {"optimizer__schedule": "triangular"},
            "optimizer.warmup_steps is 0, so there is no way up for optimizer.initial_learning_rate 0.0 or the "
            "schedule 'triangular'; expected a number of steps",
        ),
        (
            {"optimizer__schedule": "triangular", "optimizer__warmup_steps": 5, "optimizer__final_learning_rate": 1e-9},
            "optimizer.final_learning_rate is 1e-09, and a triangular schedule falls to "
            "optimizer.initial_learning_rate; leave it at 0",
        ),
        ({"optimizer__warmup_share": 0.0}, "optimizer.warmup_share is 0.0; expected more than 0 and at most 1"),
        (
            {"optimizer__schedule": "triangular", "optimizer__warmup_steps": 5, "optimizer__warmup_share": 0.1},
            "optimizer.warmup_share is 0.1, and the sides of a triangular schedule may be longer than the run; leave "
            "it at 1",
        ),
        (
            {"evaluation__directions": ("t2i", "i2t")},
            "evaluation.directions is ('t2i', 'i2t'); expected ('i2t', 't2i'), or one of the two",
        ),
        (
            {"data__test_directory": "data/other"},
            "data.test_directory is set and data.test_split is not; expected the name of a split, such as 'test'",
        ),
        (
            {"data__test_split": "test", "data__validation_split": ""},
            "data.test_split is set and data.validation_split is not; the weights to test are chosen on validation: "
            "expected the name of that split, or no test_split: launch/evaluate.py measures any split",
        ),
        (
            {"data__test_split": "test", "train__keep_best": 0},
            "data.test_split is set and train.keep_best is 0; the best weights are tested: expected 1 at least",
        ),
        (
            {"train__evaluate_every_epochs": 1.0, "train__keep_best": 0},
            "train.evaluate_every_epochs chooses the best epoch and train.keep_best is 0; expected to keep 1 at least",
        ),
        (
            {"train__evaluate_every_epochs": 1.0, "data__validation_split": ""},
            "train.evaluate_every_epochs is set and data.validation_split is not; expected the name of a split",
        ),
        (
            {**RETRIEVAL, "task": "matching", "matching__loss": "twice"},
            "matching.loss is 'twice'; expected 'cross_entropy' or 'published'",
        ),
        (
            {**RETRIEVAL, "task": "matching", "data__validation_split": ""},
            "task is 'matching' and data.validation_split is not set; expected a split of labelled pairs",
        ),
        (
            {**RETRIEVAL, "task": "matching", "data__foil_split": "swapped"},
            "data.foil_split is 'swapped' and task is 'matching', which measures no foils; leave it out",
        ),
        (
            {**RETRIEVAL, "task": "matching", "model__cross__layers": 0, "evaluation__rerank_candidates": 0},
            "task is 'matching' but model.cross.layers is 0; PRD2 has no cross encoders, and matching trains these",
        ),
        ({"loss__queue_length": 2**32}, "loss.queue_length is 4294967296; expected 16,777,216 at most"),
        ({**RETRIEVAL, "train__batch_size": 2**32}, "train.batch_size is 4294967296; expected 16,777,216 at most"),
        ({"train__seed": -1}, "train.seed is -1; expected 0 or more"),
        ({"train__seed": 2**32}, "train.seed is 4294967296; expected 4294967295 at most"),
        (
            {"data__directory": "gs://bucket/data"},
            "data.directory is gs://bucket/data, an address; records are read from disks: mount or copy that folder",
        ),
        ({"data__directory": ""}, "data.directory is empty; expected the folder of a prepared dataset"),
        (
            {"data__corpora": ("a", "https://b")},
            "data.corpora names https://b, an address; records are read from disks: mount or copy that folder",
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
        ({"loss__fgd_ramp_epochs": -1.0}, "loss.fgd_ramp_epochs is -1.0; expected 0 or more"),
        ({"model__image__heads": 5}, "model.image.width 24 is not a multiple of model.image.heads 5"),
        ({"model__text__heads": 0}, "model.text.heads is 0; expected a positive number"),
        ({"model__cross__heads": 3}, "model.cross.width 16 is not a multiple of model.cross.heads 3"),
        (
            {"model__text__text_length": 13},
            "model.text.text_length 13 is larger than model.text.max_positions 12; there is no position embedding for "
            "the last tokens",
        ),
        ({"model__text__dropout": 1.0}, "model.text.dropout is 1.0; expected 0 or more and less than 1"),
        ({"model__cross__dropout": -0.1}, "model.cross.dropout is -0.1; expected 0 or more and less than 1"),
        ({"model__cross__dropout": float("nan")}, "model.cross.dropout is nan; expected 0 or more and less than 1"),
        ({"model__text__text_length": 2}, "model.text.text_length is 2; expected at least 3: CLS, one token, SEP"),
        (
            {"model__cross__width": 32},
            "model.cross.width 32 differs from model.text.width 16; the text-image cross encoder is fed with text "
            "tokens directly",
        ),
        ({"model__cross__layers": -1}, "model.cross.layers is -1; expected 1 or more, or 0 for PRD2"),
        ({"model__dtype": "float16"}, "model.dtype is 'float16'; expected 'bfloat16' or 'float32'"),
        (
            {"optimizer__first_moment_dtype": "float16"},
            "optimizer.first_moment_dtype is 'float16'; expected 'float32' or 'bfloat16'",
        ),
        *(
            (
                {"model__remat": value},
                f"model.remat is {value!r}; expected none, products, all for all stacks, or a word for each of image, "
                f"text, cross that is not none, in this order, such as text:products,cross:all{hint}",
            )
            for value, hint in (
                ("dots", ""),
                ("True", ""),
                ("", ""),
                ("cross:some", ""),
                ("cross:none", "; write none"),
                ("cross:all,text:all", "; write text:all,cross:all"),
                ("image:all, text:all, cross:all", "; write all"),
            )
        ),
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
        ({"task": "captioning"}, "task is 'captioning'; expected one of pretraining, retrieval, matching"),
        (
            {"retrieval__fgr": False},
            "retrieval has terms of retrieval and task is 'pretraining'; leave them out, or at retrieval.fgr=True",
        ),
        (
            {"task": "retrieval"},
            "loss has terms of pretraining and task is 'retrieval'; leave them out, or at loss.queue_length=36864",
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
            {**RETRIEVAL, "retrieval__negative_hardness": 1.5},
            "retrieval.negative_hardness is 1.5; expected a number from 0 to 1",
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
            "optimizer.rates has the pattern '(', no regular expression for the end of a path: missing ), "
            "unterminated subpattern at position 5",
        ),
        (
            {"optimizer__rates": (("(?i)bias", 1.0),)},
            "optimizer.rates has the pattern '(?i)bias', no regular expression for the end of a path: global flags not "
            "at the start of the expression at position 6",
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


def test_all_contradictions_are_listed_together() -> None:
    found = problems(
        changed(
            model__image__heads=5, loss__queue_length=7, data__crop_scale=(0.9, 0.5), mesh__data=0, loss__mask_share=0.0
        )
    )
    assert len(found) == 5
