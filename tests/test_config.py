"""How a configuration is read: keys and types, conversions that are allowed, the JSON round trip, what it implies."""

import dataclasses
import json
from typing import Any

import pytest
from small_values import changed, problems, read, values, without

from r2d2_jax.config.model import REMAT_WORDS, REMATS
from r2d2_jax.config.reading import model_config
from r2d2_jax.config.run import EvaluationConfig
from r2d2_jax.config.tasks import LossConfig


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


def test_each_choice_of_rematerialisation_has_one_name() -> None:
    assert len(REMATS) == 3**3 == len({tuple(words.values()) for words in REMATS.values()})
    for word in REMAT_WORDS:
        assert REMATS[word] == {"image": word, "text": word, "cross": word}
    assert REMATS["text:products,cross:all"] == {"image": "none", "text": "products", "cross": "all"}
    assert read(changed(model__remat="cross:all")).to_dict()["model"]["remat"] == "cross:all"


@pytest.mark.parametrize(
    ("former", "word"),
    [
        ({"model__remat": True}, "all"),
        ({"model__remat": False}, "none"),
        ({"model__remat": True, "model__remat_keeps": "nothing"}, "all"),
        ({"model__remat": True, "model__remat_keeps": "products"}, "products"),
        ({"model__remat_keeps": "products"}, "none"),
        ({"model__remat": "products", "model__remat_keeps": "nothing"}, "all"),  # the former of a preset of now
    ],
)
def test_former_keys_of_rematerialisation(former: dict[str, Any], word: str) -> None:
    """A configuration hears what to write instead; the model of a run or a file that has them opens."""
    assert problems(changed(**former)) == [
        "model.remat is a word now, no longer True or False, and there is no model.remat_keeps; instead of both write "
        f"remat={word!r}"
    ]
    assert model_config(changed(**former)["model"]) == model_config(values()["model"])


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
            "known here: model, data, optimizer, train, task, loss, retrieval, matching, initial, mesh, evaluation",
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


def test_all_problems_of_the_keys_are_listed_together() -> None:
    config = changed(model__image__widht=3, train__batch_size="8", loss__fgr=1, evaluation__nothing=0)
    del config["data"]["directory"]
    assert sorted(problems(config)) == sorted(
        [
            "unknown key model.image.widht; known here: image_size, patch_size, width, layers, heads, mlp_width",
            "missing key data.directory (str)",
            "train.batch_size is '8' of type str; expected int",
            "loss.fgr is 1 of type int; expected bool",
            "unknown key evaluation.nothing; known here: rerank_candidates, rerank_during_training, batch_size, "
            "directions",
        ]
    )


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
